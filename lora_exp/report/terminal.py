"""What a sweep prints at its end: a table of what varies, with the gain beside its price, and what is recommended.

Nothing is wider than the terminal: measures are left out, and long names cut, until a table fits.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from lora_exp.report.recommended import headline
from lora_exp.report.tables import MEASURES, mean_rows, percent, points, shown_settings
from lora_exp.storage.recommendation import Recommendation, recommendations
from lora_exp.storage.table import finished, pareto_front
from lora_exp.storage.varied import NONE, SEEDS, distinct, heading, label, setting_text, task_names, value_label, varied
from lora_exp.storage.words import in_a_sentence

WIDTH = 80  # where nothing else is known
ROWS = 64  # a longer table is replaced by one of means
REASONS = 10
CLASSES = 12  # a row for each, of recommendations and of errors before
NARROWEST = 6  # a name is not cut shorter
# Measures -> headings, in the order of the table. Gain and price stay; the others leave, the last of LEAVING first.
HEADINGS = {
    "balanced_accuracy_gained": "balanced\naccuracy",
    "forgetting": "forget-\nting",
    "target_error": "target\nerror %",
    "other_error": "others'\nerror %",
    "beyond_shift": "beyond\na shift",
    "parameters_adapter": "para-\nmeters",
    "overhead_percent": "over-\nhead %",
}
LEAVING = ("target_error", "parameters_adapter", "beyond_shift", "other_error", "overhead_percent")
COLOURS = {"balanced_accuracy_gained": "green", "forgetting": "yellow"}
# A heading, which may have several lines, and cells.
Column = tuple[str, list[str]]


@dataclass(frozen=True)
class Shown:
    """A table to draw: the settings that it shows, its rows, and whether each of them is a job or a mean."""

    settings: list[str]
    rows: pd.DataFrame
    jobs: bool


def sweep_text(frame: pd.DataFrame, terminal: bool, width: int = WIDTH) -> str:
    """The finished runs, or their means where they are many, then the other jobs with reasons; coloured if `terminal`.

    The caller prints it: rich would end the process when standard output is closed.
    """
    console = _console(terminal, max(width, WIDTH))
    with console.capture() as captured:
        _write(console, frame)
    return captured.get()


def recommended_text(frame: pd.DataFrame, terminal: bool, width: int = WIDTH) -> str:
    """What to use, for each class, and how sure that is; empty without a finished run."""
    found = recommendations(frame)
    if not found:
        return ""
    width = max(width, WIDTH)
    console = _console(terminal, width)
    with console.capture() as captured:
        if len(found) > 1:
            every = f", all with {common}" if (common := _common(found)) else ""
            console.print(f"recommended, or nearest to it{every}; {_noun(found)} to add to be sure of it")
            console.print(_recommended(found[: CLASSES + 1], width))
            if len(found) > CLASSES + 1:
                console.print(f"... and {len(found) - CLASSES - 1} more, in the report")
    return captured.get() + paragraph(headline(found), terminal, width)


def shown_as(one: Recommendation) -> str:
    """What the first job of a recommendation is, where it is shown in detail."""
    return f"a run of the {'recommended setting' if one.is_gain else 'setting nearest to a gain'}"


def paragraph(text: str, terminal: bool, width: int = WIDTH) -> str:
    """A sentence on lines that fit a terminal; on one line for a pipe, where programs read it."""
    return (textwrap.fill(text, max(width, WIDTH), break_on_hyphens=False) if terminal else text) + "\n"


def _console(terminal: bool, width: int) -> Console:
    """What draws; names of classes and methods are no markup."""
    return Console(highlight=False, markup=False, emoji=False, width=width, force_terminal=terminal)


def _write(console: Console, frame: pd.DataFrame) -> None:
    runs = finished(distinct(frame))
    if len(runs):
        shown = _fitting(runs)
        if not shown.jobs:
            by = f" by {' and '.join(map(heading, shown.settings))}" if shown.settings else ""
            console.print(f"means of the {len(runs)} finished runs{by}")
        console.print(before_text(runs))
        first = recommendations(frame)[0]
        table, left_out = _drawn(shown, pareto_front(runs), first.jobs[0], console.width)
        console.print(table)
        if left_out:
            console.print(f"{left_out} more settings vary; the report shows them")
        if shown.jobs:
            on_front = "*: on the Pareto front of target error and forgetting"
            console.print(f"job {first.jobs[0]}: {shown_as(first)}; {on_front}")
    if (stopped := int((frame["status"] == "stopped").sum())) > 0:
        console.print(f"halving stopped {stopped} jobs; the report says when and why")
    others = frame[~frame["status"].isin(["finished", "stopped"])]
    for row in others.head(REASONS).to_dict("records"):
        what = row["name"] or row["overrides"]
        reason = f": {row['error']}" if row["error"] else ""
        console.print(f"job {row['job']} ({what}) {row['status']}{reason}", style="red", soft_wrap=True)
    if len(others) > REASONS:
        console.print(f"... and {len(others) - REASONS} more jobs without errors to compare")


def before_text(runs: pd.DataFrame) -> str:
    """The errors of the base, once for all rows; those of each task where they are few."""
    wide = [name for name in task_names(varied(runs)) if name != "target"]
    groups = runs.groupby([*wide, "target"], sort=False, dropna=False)
    means = groups[["target_error_before", "other_error_before"]].mean().reset_index()
    over = f" (means over {count} bases)" if (count := runs["base_seed"].nunique()) > 1 else ""
    rest = _range(means["other_error_before"])
    if 1 < len(means) <= CLASSES:
        rows = means.to_dict("records")
        names = [" ".join(value_label(name, row[name]) for name in (*wide, "target")) for row in rows]
        names = names if wide else [str(row["target"]) for row in rows]
        own = ", ".join(f"{name} {percent(row['target_error_before'])}" for name, row in zip(names, rows, strict=True))
        return f"base{over}: error (%) on {own}; on the other classes {rest}. Changes are in points."
    own = _range(means["target_error_before"])
    target = in_a_sentence(str(means["target"].iloc[0])) if len(means) == 1 else "the target"
    return f"base{over}: error on {target} {own} %, on the other classes {rest} %. Changes are in points."


def _range(rates: pd.Series[float]) -> str:
    low, high = percent(rates.min()), percent(rates.max())
    return low if low == high else f"{low} to {high}"


def _fitting(runs: pd.DataFrame) -> Shown:
    """The runs, or their means by what varies; keys with most values are averaged over until the rows are few."""
    names = shown_settings(runs)
    if len(runs) <= ROWS:
        return Shown(names, runs, jobs=True)
    by = [name for name in names if name not in SEEDS]
    while len(rows := mean_rows(runs, by, list(HEADINGS))) > ROWS:
        by.remove(max(by, key=lambda name: runs[name].nunique()))
    return Shown(by, rows, jobs=False)


def _drawn(shown: Shown, front: Sequence[int], chosen: int, width: int) -> tuple[RichTable, int]:
    """The table, with as many measures as fit, and then with names cut; and how many settings it leaves out."""
    rows = shown.rows
    measures = [name for name in HEADINGS if name != "overhead_percent" or width > WIDTH]
    if rows["parameters_adapter"].nunique() < 2:
        measures = [name for name in measures if name not in ("parameters_adapter", "overhead_percent")]
    texts = [[setting_text(value) for value in rows[name]] for name in shown.settings]
    heads = [heading(name).replace(" ", "\n") for name in shown.settings]
    count = "job" if shown.jobs else "runs"
    numbers = [f"{number}{'*' if shown.jobs and number in front else ''}" for number in rows[count]]
    written = {name: [_number(name, value) for value in rows[name]] for name in measures}

    own = list(zip(heads, texts, strict=True))

    def room() -> int:
        return width - _wide([(count, numbers), *((HEADINGS[name], written[name]) for name in measures)])

    for name in reversed(LEAVING):
        if _wide(own) > room() and name in measures:
            measures.remove(name)
    own = _cut(own, room())
    drawn = _empty()
    drawn.add_column(count, justify="right")
    for head, _ in own:
        drawn.add_column(head, justify="right", no_wrap=True)
    for name in measures:
        drawn.add_column(HEADINGS[name], justify="right", style=COLOURS.get(name), no_wrap=True)
    for at, number in enumerate(rows[count]):
        style = "bold" if shown.jobs and number == chosen else None
        drawn.add_row(numbers[at], *(cells[at] for _, cells in own), *(written[n][at] for n in measures), style=style)
    return drawn, len(texts) - len(own)


def _cut(columns: Sequence[Column], room: int) -> list[Column]:
    """The columns with the widest cut until they fit; the last ones left out where that is not enough."""
    left = [*columns]
    while left and _wide(left) > room:
        widths = [_wide([column]) - 2 for column in left]
        widest = widths.index(max(widths))
        if widths[widest] <= NARROWEST:
            left.pop()
            continue
        head, cells = left[widest]
        left[widest] = (_short(head, widths[widest] - 1), [_short(cell, widths[widest] - 1) for cell in cells])
    return left


def _short(text: str, width: int) -> str:
    """A text whose lines are cut in the middle, where names that sort together differ least."""
    return "\n".join(map(functools.partial(_short_line, width=width), text.split("\n")))


def _short_line(line: str, width: int) -> str:
    kept = len(line)
    short = line
    while cell_len(short) > width:
        kept -= 1
        short = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
    return short


def _number(name: str, value: float) -> str:
    return NONE if pd.isna(value) else MEASURES[name][1](value)


def _recommended(found: Sequence[Recommendation], width: int) -> RichTable:
    """A row for each recommendation: what to use, or what comes nearest, its gain and price, and how sure that is."""
    names = [name for name in found[0].setting if len({setting_text(one.setting[name]) for one in found}) > 1]
    uses = ["this" if one.is_gain else "base" for one in found]
    texts = [("for", [_task(one) for one in found]), ("use", uses)]
    texts += [(heading(name).replace(" ", "\n"), [setting_text(one.setting[name]) for one in found]) for name in names]
    numbers = [
        ("gained", [points(one.means["elsewhere_gained"]) for one in found]),
        ("forget-\nting", [points(one.means["elsewhere_forgetting"]) for one in found]),
        (f"{_noun(found)}\nto add", [_missing(one) for one in found]),
    ]
    columns = [*_cut(texts, width - _wide(numbers)), *numbers]
    drawn = _empty()
    for head, _ in columns:
        drawn.add_column(head, justify="left" if head in ("for", "use") else "right", no_wrap=True)
    for at, one in enumerate(found):
        drawn.add_row(*(cells[at] for _, cells in columns), style="bold" if one.is_gain else None)
    return drawn


def _common(found: Sequence[Recommendation]) -> str:
    """The settings that all recommendations have in common; empty where none vary among the runs."""
    first = found[0].setting
    same = [name for name in first if len({setting_text(one.setting[name]) for one in found}) == 1]
    return label(first, same)


def _task(one: Recommendation) -> str:
    """`class 3`, `all 10`: shorter than in a sentence."""
    return one.task_label.replace(" classes", "", 1)


def _noun(found: Sequence[Recommendation]) -> str:
    return "bases" if any(one.over_bases or len(one.gained) < 2 for one in found) else "seeds"


def _missing(one: Recommendation) -> str:
    """How many more bases or seeds would decide whether there is a gain."""
    if len(one.gained) < 2:
        return "2+"
    return "100+" if one.further is None else str(one.further)


def _empty() -> RichTable:
    return RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)


def _wide(columns: Sequence[Column]) -> int:
    """The characters that columns take, with the spaces between."""
    return sum(2 + max(map(cell_len, [*head.split("\n"), *cells])) for head, cells in columns)
