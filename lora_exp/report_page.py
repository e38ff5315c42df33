"""The Markdown page of a report, section by section."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_exp.figures import adapted, kind_label, kind_of
from lora_exp.markdown import Picture, code, markdown_table, picture, plain
from lora_exp.result import RunResult
from lora_exp.sweep import Sweep, run_command
from lora_exp.tables import NONE, differing, means_table, percent, runs_table
from lora_exp.trade_off import lowest, representative, sound

# Provenance that would repeat what other sections show.
SHOWN_ELSEWHERE = ("overrides", "config", "started")
SIZE_COLUMNS = 8  # of the model table; more methods and ranks are thinned to these
VARIANTS = 10  # values written out where runs differ in their provenance


def page(sweep: Sweep, verdict: str, drawn: Mapping[str, Picture | str], claim: str = "") -> str:
    """The whole page; `drawn` maps titles to pictures, or to why there is no picture; `claim` is a section or none."""
    results = list(sweep.results.values())
    sections = [
        _head(sweep),
        "## Verdict\n\n" + "\n\n".join([verdict, *_lowest(sweep.frame), *_doubts(sweep.frame)]),
        claim,
    ]
    sections += [f"## {title}\n\n{picture(shown)}" for title, shown in drawn.items()]
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


def _head(sweep: Sweep) -> str:
    counts = Counter(sweep.frame["status"])
    told = ", ".join(f"{counts[status]} {status}" for status in ("finished", "diverged", "failed", "missing"))
    lines = [f"# {plain(sweep.name)}", f"```bash\n{sweep.command}\n```"]
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
    how = adapted(row["method"], None if pd.isna(row["rank"]) else row["rank"])
    return (
        f"job {job} (digit {row['digit'].replace(',', ' and ')} {how}), target "
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
        rows.append([str(row["job"]), row["status"], code(row["overrides"]), plain(reason)])
    if not rows:
        return ""
    return "## Jobs without errors to compare\n\n" + markdown_table((["job", "status", "overrides", "reason"], rows), 4)


def _models(results: Sequence[RunResult]) -> str:
    """Shapes and parameter counts of each model in the sweep, with the adapter's of each method and rank."""
    kinds: dict[tuple[str, tuple[str, ...]], dict[tuple[str, int], RunResult]] = {}
    for result in results:
        adapter = result.spec.adapter
        by_size = kinds.setdefault((result.spec.model.label, adapter.layers), {})
        by_size.setdefault((adapter.method, adapter.rank), result)
    parts = []
    for (label, layers), by_size in kinds.items():
        sizes = sorted(by_size)
        if len(sizes) > SIZE_COLUMNS:
            sizes = [sizes[at * (len(sizes) - 1) // (SIZE_COLUMNS - 1)] for at in range(SIZE_COLUMNS)]
        outcomes = [by_size[size].outcome for size in sizes]
        rows = []
        for at, layer in enumerate(outcomes[0].layers):
            shape = " x ".join(str(side) for side in layer["shape"])
            added = [f"{out.layers[at]['adapter']:,}" for out in outcomes]
            rows.append([layer["layer"], shape, f"{layer['base']:,}", *added])
        base = outcomes[0].parameters_base
        rows.append(["all", "", f"{base:,}", *(f"{out.parameters_adapter:,}" for out in outcomes)])
        rows.append(["with the base", "", f"{base:,}", *(f"{out.parameters_total:,}" for out in outcomes)])
        rows.append(["overhead (%)", "", "", *(f"{out.overhead_percent:.3f}" for out in outcomes)])
        parts.append(f"Hidden layers {label or 'none'}; adapted: {code(', '.join(layers))}.")
        headings = ["layer", "weight", "base", *(kind_label(*kind_of(by_size[size])) for size in sizes)]
        parts.append(markdown_table((headings, rows), words=2))
        if len(by_size) > len(sizes):
            parts.append(f"{len(sizes)} of {len(by_size)} methods and ranks.")
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
        facts.append({**_flat(result.settings), **_flat(told)})
    rows = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        values = list(dict.fromkeys(fact.get(name, NONE) for fact in facts))
        text = ", ".join(values[:VARIANTS])
        if len(values) > VARIANTS:
            text = f"{len(values)} values: {text}, ..."
        rows.append([name, code(text)])
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
