"""The Markdown page of a report, section by section."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pandas as pd
from tabulate import tabulate

from lora_exp.result import RunResult
from lora_exp.sweep import Sweep, run_command
from lora_exp.tables import (
    NONE,
    Table,
    differing,
    lowest,
    means_table,
    percent,
    representative,
    runs_table,
    sound,
)

# Provenance that would repeat what other sections show.
SHOWN_ELSEWHERE = ("overrides", "config", "started")
RANK_COLUMNS = 8  # of the model table; more ranks are thinned to these
VARIANTS = 10  # values written out where runs differ in their provenance


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its file in `figures/`, its alternative text and what a reader should know."""

    file: str
    alt: str
    note: str


def page(sweep: Sweep, verdict: str, drawn: Mapping[str, Picture | str]) -> str:
    """The whole page; `drawn` maps titles to pictures, or to why there is no picture."""
    results = list(sweep.results.values())
    sections = [
        _head(sweep),
        "## Verdict\n\n" + "\n\n".join([verdict, *_lowest(sweep.frame), *_doubts(sweep.frame)]),
    ]
    sections += [f"## {title}\n\n{_picture(picture)}" for title, picture in drawn.items()]
    if len(sound(sweep.frame)):
        sections.append(_means(sweep.frame))
        sections.append("## Sound runs\n\n" + markdown_table(runs_table(sweep.frame)))
    sections += [
        _unsound(sweep),
        *([_models(results), _proof(sweep)] if results else []),
        _commands(sweep.frame),
    ]
    sections += [_provenance(results)] if results else []
    return "\n\n".join(section for section in sections if section) + "\n"


def markdown_table(table: Table, words: int = 0) -> str:
    """A table whose first `words` columns are aligned as words and the others as numbers."""
    headings, rows = table
    align = ["left" if column < words else "right" for column in range(len(headings))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(
        cells,
        [heading.replace("-\n", "").replace("\n", " ") for heading in headings],
        "pipe",
        disable_numparse=True,
        colalign=align if rows else None,
    )


def _head(sweep: Sweep) -> str:
    counts = Counter(sweep.frame["status"])
    told = ", ".join(f"{counts[status]} {status}" for status in ("finished", "diverged", "failed", "missing"))
    lines = [f"# {_plain(sweep.name)}", f"```bash\n{sweep.command}\n```"]
    lines.append(f"{'Started ' + sweep.started + '; j' if sweep.started else 'J'}obs: {told}.")
    return "\n\n".join(lines)


def _lowest(frame: pd.DataFrame) -> list[str]:
    """Plain minima over the sound runs, each with both errors."""
    runs = sound(frame)
    job = representative(frame)
    if job is None or len(runs) == 1:
        return []
    weight = "in which the target weighs as much as all others together"
    return [
        f"Lowest sum of both errors, {weight}: {_run(runs, job)}.",
        f"Lowest target error: {_run(runs, lowest(runs, runs['target_error']))}.",
        f"Least forgetting: {_run(runs, lowest(runs, runs['forgetting']))}.",
    ]


def _run(runs: pd.DataFrame, job: int) -> str:
    row = runs[runs["job"] == job].iloc[0]
    return (
        f"job {job} (digit {row['digit'].replace(',', ' and ')}, rank {row['rank']}), target "
        f"{percent(row['target_error_before'])} % -> {percent(row['target_error'])} %, others "
        f"{percent(row['other_error_before'])} % -> {percent(row['other_error'])} %"
    )


def _doubts(frame: pd.DataFrame) -> list[str]:
    """What keeps the numbers from being compared as they stand."""
    runs = sound(frame)
    doubts = []
    if len(runs) > 1 and runs["seed"].nunique() == 1:
        doubts.append("Every setting ran with one seed, so small differences between settings may be chance.")
    if 1 < len(runs) < len(frame):
        doubts.append("Means leave out the jobs without errors, so they may be of different sets of settings.")
    return doubts


def _picture(picture: Picture | str) -> str:
    if isinstance(picture, str):
        return _plain(picture)
    image = f"![{_plain(picture.alt)}](figures/{quote(picture.file)})"
    return f"{picture.note}\n\n{image}" if picture.note else image


def _means(frame: pd.DataFrame) -> str:
    """Means by rank, and by every other setting that differs."""
    names = list(dict.fromkeys(["rank", *differing(sound(frame))]))
    tables = [f"### By {name.replace('_', ' ')}\n\n{markdown_table(means_table(frame, [name]))}" for name in names]
    return "## Means of the sound runs\n\n" + "\n\n".join(tables)


def _unsound(sweep: Sweep) -> str:
    rows = []
    for row in sweep.frame[sweep.frame["status"] != "finished"].to_dict("records"):
        reason = row["error"] or "never ran, or was stopped"
        if row["status"] == "diverged":
            reason = f"the loss stopped being finite at step {sweep.results[row['job']].outcome.diverged_at}"
        rows.append([str(row["job"]), row["status"], _code(row["overrides"]), _plain(reason)])
    if not rows:
        return ""
    return "## Jobs without errors to compare\n\n" + markdown_table((["job", "status", "overrides", "reason"], rows), 4)


def _models(results: Sequence[RunResult]) -> str:
    """Shapes and parameter counts of each model in the sweep, with the adapter's at each rank."""
    kinds: dict[tuple[Any, ...], dict[int, RunResult]] = {}
    for result in results:
        kind = (result.spec.model.hidden, result.spec.adapter.layers)
        kinds.setdefault(kind, {}).setdefault(result.spec.adapter.rank, result)
    parts = []
    for (hidden, layers), by_rank in kinds.items():
        ranks = sorted(by_rank)
        if len(ranks) > RANK_COLUMNS:
            ranks = [ranks[at * (len(ranks) - 1) // (RANK_COLUMNS - 1)] for at in range(RANK_COLUMNS)]
        outcomes = [by_rank[rank].outcome for rank in ranks]
        rows = []
        for at, layer in enumerate(outcomes[0].layers):
            shape = " x ".join(str(side) for side in layer["shape"])
            added = [f"{out.layers[at]['adapter']:,}" for out in outcomes]
            rows.append([layer["layer"], shape, f"{layer['base']:,}", *added])
        base = outcomes[0].parameters_base
        rows.append(["all", "", f"{base:,}", *(f"{out.parameters_adapter:,}" for out in outcomes)])
        rows.append(["with the base", "", f"{base:,}", *(f"{out.parameters_total:,}" for out in outcomes)])
        rows.append(["overhead (%)", "", "", *(f"{out.overhead_percent:.3f}" for out in outcomes)])
        widths = "-".join(str(width) for width in hidden)
        parts.append(f"Hidden layers {widths or 'none'}; adapted: {_code(', '.join(layers))}.")
        headings = ["layer", "weight", "base", *(f"rank {rank}" for rank in ranks)]
        parts.append(markdown_table((headings, rows), words=2))
        if len(by_rank) > len(ranks):
            parts.append(f"{len(ranks)} of {len(by_rank)} ranks.")
    return "## Model: parameters\n\n" + "\n\n".join(parts)


def _proof(sweep: Sweep) -> str:
    total = len(sweep.results)
    same = [job for job, result in sweep.results.items() if result.outcome.base_unchanged]
    off = [job for job, result in sweep.results.items() if result.outcome.adapter_off_equals_base]
    text = (
        f"Base weights unchanged (SHA-256 before and after): {len(same)} of {total} runs. "
        f"Adapter switched off, every prediction equals the base's: {len(off)} of {total} runs."
    )
    broken = sorted(set(sweep.results) - (set(same) & set(off)))
    return "## Proof\n\n" + text + (f" It does not hold for jobs {', '.join(map(str, broken))}." if broken else "")


def _commands(frame: pd.DataFrame) -> str:
    lines = [f"{run_command(row['overrides'])}  # job {row['job']}" for row in frame.to_dict("records")]
    return "## Reproduce a run\n\n```bash\n" + "\n".join(lines) + "\n```"


def _provenance(results: Sequence[RunResult]) -> str:
    """Settings and circumstances: once where all runs agree, with the number of values where they don't."""
    facts = []
    for result in results:
        told = {name: value for name, value in result.provenance.items() if name not in SHOWN_ELSEWHERE}
        facts.append({**_flat(dataclasses.asdict(result.spec)), **_flat(told)})
    rows = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        values = list(dict.fromkeys(fact.get(name, NONE) for fact in facts))
        text = ", ".join(values[:VARIANTS])
        if len(values) > VARIANTS:
            text = f"{len(values)} values: {text}, ..."
        rows.append([name, _code(text)])
    return "## Settings and provenance\n\n" + markdown_table((["what", "value"], rows), words=2)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts by dotted name, as text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[f"{prefix}{name}"] = " ".join(text.split())
    return flat


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    for mark in "\\`*_[]<>#":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("&", "&amp;").split())


def _code(text: str) -> str:
    """An inline code span; a longer fence where the text has backticks of its own."""
    if not text:
        return ""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
