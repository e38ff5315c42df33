"""What MLflow records of a sweep when it ends: numbers, the recommendation, a description with links to its runs."""

from __future__ import annotations

import contextlib
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_exp.storage.sweep_file import VERDICT
from lora_exp.storage.words import KEEP
from lora_exp.tracking.facts import ERRORS, NOTE, markdown_table, percent

if TYPE_CHECKING:
    import pandas as pd

    from lora_exp.storage.recommendation import Recommendation
    from lora_exp.storage.sweep_folder import Sweep

# MLflow limits a description to 8,000 characters: rows of a table, characters of a name and of the command.
ROWS, NAME_LIMIT, COMMAND_LIMIT = 12, 60, 1000
JUDGED = ("elsewhere_gained", "elsewhere_forgetting")  # on images that took no part in the choice
RECOMMENDED_HEADER = ["class", "use", "balanced accuracy before", "after", "gained (points)", "forgetting (points)"]
FRONT_HEADER = ["run", "target error before", "after", "other classes before", "after", "forgetting (points)"]


@dataclass(frozen=True)
class Links:
    """Addresses in MLflow's UI: the run of each job, the list of all runs of the sweep, and its report, if any."""

    runs: Mapping[int, str]
    all_runs: str
    report: str | None


def metrics_of_sweep(frame: pd.DataFrame, found: Sequence[Recommendation]) -> dict[str, float]:
    """`jobs_<status>`, and of the finished runs `recommended_*`, `mean_*`, `lowest_*`, `highest_*` and `pareto_runs`.

    Errors are rates, 0 to 1. Where the base as it is is recommended, both recommended numbers are 0.
    """
    from lora_exp.storage.table import finished, pareto_front

    numbers = {f"jobs_{status}": float(count) for status, count in frame["status"].value_counts().items()}
    runs = finished(frame)
    if runs.empty:
        return numbers
    if found:
        for name, of in zip(("recommended_gain", "recommended_forgetting"), JUDGED, strict=True):
            numbers[name] = found[0].means[of] if found[0].is_gain else 0.0
    columns = {name: runs[name] for name in (*ERRORS, *(f"{name}_before" for name in ERRORS), "forgetting")}
    numbers |= {f"mean_{name}": float(values.mean()) for name, values in columns.items()}
    for name in ("balanced_accuracy_gained", "beyond_shift"):
        if runs[name].notna().any():
            numbers |= {f"mean_{name}": float(runs[name].mean()), f"highest_{name}": float(runs[name].max())}
    numbers |= {f"lowest_{name}": float(runs[name].min()) for name in (*ERRORS, "forgetting")}
    return numbers | {"pareto_runs": float(len(pareto_front(frame)))}


def tags_of_sweep(
    sweep: Sweep, found: Sequence[Recommendation], links: Links, ids: Mapping[int, str]
) -> dict[str, str]:
    """The sweep's description (NOTE), what it recommends, and the id of the run to show; `ids` has them by job."""
    tags = {NOTE: _description(sweep, found, links)}
    if found:
        tags |= {
            "recommended": found[0].setting_label if found[0].is_gain else KEEP,
            "chosen_run": ids[found[0].jobs[0]],
        }
    return tags


def _description(sweep: Sweep, found: Sequence[Recommendation], links: Links) -> str:
    """The sweep in Markdown: the jobs by status, the recommendation, or the verdict of a contest, and the command.

    The links come first, because MLflow folds all but the first lines of a description.
    """
    from lora_exp.storage.table import pareto_front

    frame = sweep.frame
    counts = ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())
    pages = f"[All runs of this sweep]({links.all_runs})"
    if links.report is not None:
        pages += f", [its report]({links.report})"
    parts = [f"{len(frame)} job{'s' if len(frame) > 1 else ''}: {counts}. {pages}."]
    if sweep.contest is not None:
        with contextlib.suppress(OSError):
            parts.append((sweep.folder / VERDICT).read_text(encoding="utf-8").strip())
    if found:
        front = pareto_front(frame)
        parts.append(_sentence(found[0], links))
        if len(found) > 1:
            parts.append(markdown_table(RECOMMENDED_HEADER, [_recommended(one, links) for one in found[:ROWS]]))
        parts += [
            f"Pareto fronts{' of each class' if len(found) > 1 else ''}: no other run for the same images has less "
            f"target error without more forgetting, or less forgetting without more error{_first(len(front))}.",
            markdown_table(FRONT_HEADER, _front_rows(frame, front[:ROWS], links)),
        ]
    command = textwrap.shorten(sweep.command, COMMAND_LIMIT, placeholder=" …")
    return "\n\n".join([*parts, f"```\n{command}\n```"])


def _sentence(one: Recommendation, links: Links) -> str:
    """What to use, on which images it was chosen, and what it gains and costs on the others."""
    link = _link(one.setting_label or "this setting", links.runs[one.jobs[0]])
    what = f"use {link}.** Chosen" if one.is_gain else f"keep {KEEP}.** The nearest is {link},"
    gained, forgetting = (f"{100 * one.means[name]:+.2f} points" for name in JUDGED)
    return (
        f"**For {_plain(one.task_label)}: {what} by balanced accuracy on {one.chosen_on}; on images that took no part "
        f"in the choice: balanced accuracy {gained}, forgetting {forgetting}."
    )


def _recommended(one: Recommendation, links: Links) -> list[str]:
    """The cells of a recommendation below RECOMMENDED_HEADER."""
    link = _link(one.setting_label or "this setting", links.runs[one.jobs[0]])
    before, after = one.means["balanced_accuracy_before"], one.means["balanced_accuracy"]
    return [
        _plain(one.task_label),
        link if one.is_gain else f"{KEEP} (nearest: {link})",
        *("–" if math.isnan(share) else percent(share) for share in (before, after)),
        *(f"{100 * one.means[name]:+.2f}" for name in JUDGED),
    ]


def _front_rows(frame: pd.DataFrame, jobs: Sequence[int], links: Links) -> list[list[str]]:
    """The cells of jobs below FRONT_HEADER, each named by what varies."""
    from lora_exp.storage.table import finished
    from lora_exp.storage.varied import label, varied

    names, rows = varied(finished(frame)), frame.set_index("job", drop=False)
    cells = []
    for row in rows.loc[list(jobs)].to_dict("records"):
        errors = [percent(row[error + when]) for error in ERRORS for when in ("_before", "")]
        link = _link(label(row, names) or row["name"], links.runs[row["job"]])
        cells.append([link, *errors, f"{100 * row['forgetting']:+.2f}"])
    return cells


def _first(count: int) -> str:
    return f" (the first {ROWS} of {count})" if count > ROWS else ""


def _link(text: str, address: str) -> str:
    return f"[{_plain(text)}]({address})"


def _plain(text: str) -> str:
    """Text without what Markdown would read as more, and not too long."""
    short = text if len(text) <= NAME_LIMIT else f"{text[: NAME_LIMIT - 1]}…"
    return re.sub(r"([\\\[\]|*_`<>])", r"\\\1", short)
