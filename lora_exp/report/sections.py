"""The sections of a report; `write.py` puts them in order."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_exp.report.document import Block, Code, Grid, Heading, Listing, Section
from lora_exp.report.recommended import headline, note, recommended_table
from lora_exp.report.seeds import CONTESTANTS, MEASURE_NAMES, Comparison, Setting
from lora_exp.report.statistics import Interval
from lora_exp.report.tables import (
    means_table,
    percent,
    points,
    runs_table,
    shown_settings,
)
from lora_exp.report.verdict import verdict
from lora_exp.storage.recommendation import recommendations
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished
from lora_exp.storage.varied import NONE, SEEDS, heading, setting_text, varied
from lora_exp.storage.words import kind_label

# Provenance that other sections show.
SHOWN_ELSEWHERE = ("overrides", "config", "started")
CONTEST = (
    "This sweep is a contest: its verdict is in contest.html. This page shows its runs, those by which the rates were "
    "chosen together with those that were judged, so what it recommends is not that verdict."
)
SIZE_COLUMNS = 8  # of the model table; more methods and ranks are thinned to these
STATUSES = ("finished", "stopped", "diverged", "failed", "missing")
VARIANTS = 10  # values listed of a setting or fact in which the runs differ
OVER_SEEDS = ("balanced_accuracy_gained", "target_error", "forgetting", "beyond_shift")
IN_POINTS = ("balanced_accuracy_gained", "forgetting", "beyond_shift")
HOW_OVER_SEEDS = (
    "Mean ± standard deviation over the seeds, with Student's t interval of the mean (95 %). The last p value is of "
    "the difference in balanced accuracy from the setting where it is highest."
)


def title(sweep: Sweep) -> str:
    """What the sweep is about: its preset, or the report's own name, and what varies; never a time stamp."""
    runs = finished(sweep.frame)
    given = dict(part.partition("=")[::2] for part in shlex.split(sweep.command))
    names = [heading(name) for name in varied(runs) if name not in SEEDS] if len(runs) else []
    joined = sweep.name if "report" in given else ""
    own = given.get("report.name") or given.get("experiment") or joined
    what = " by ".join(names) if len(names) > 1 else f"by {names[0]}" if names else ""
    if not own and not what:
        return next(iter(sweep.results.values())).description.capitalize() if len(runs) == 1 else sweep.name
    return ": ".join(part for part in (own, what) if part)


def head(sweep: Sweep) -> Section:
    """The number of jobs by status, the time, and the command."""
    counts = Counter(sweep.frame["status"])
    jobs = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    started = f" Started {sweep.started}." if sweep.started else ""
    count = f"{len(sweep.frame)} job{'s' if len(sweep.frame) > 1 else ''}"
    contest = [] if sweep.contest is None else [CONTEST]
    return Section("", [f"{count}: {jobs}.{started}", *contest, Listing([sweep.command])])


def recommendation_section(frame: pd.DataFrame) -> Section:
    """Which setting to use for each class and for all, what it gains and costs, and how sure that is."""
    found = recommendations(frame)
    if not found:
        return Section("Recommendation", [verdict(frame)])
    headings, rows = recommended_table(found)
    return Section("Recommendation", [headline(found), Grid((headings, rows), words=2), note(found)])


def verdict_section(frame: pd.DataFrame, comparison: Comparison | None) -> Section:
    """Whether anything beat doing nothing and a moved threshold, and the significant differences."""
    runs = finished(frame)
    sentences = [verdict(frame)]
    sentences += comparison.sentences() if comparison is not None else []
    if 1 < len(runs) < len(frame):
        sentences.append("The means leave out jobs without errors, so they may cover different settings.")
    return Section("Verdict", sentences, folded=True)


def over_seeds(comparison: Comparison | None) -> list[Section]:
    """Every setting with its means, deviations and intervals; no section where no setting has a second seed."""
    if comparison is None or max(setting.seeds for setting in comparison.settings) < 2:
        return []
    highest = comparison.rankings[0] if comparison.rankings else None
    chances = {id(other): chance for other, chance in highest.others} if highest else {}
    names = list(comparison.settings[0].values)
    headings = [*(heading(name) for name in names), "runs", "seeds"]
    for measure in OVER_SEEDS:
        headings += [f"{MEASURE_NAMES[measure]} ({'points' if measure in IN_POINTS else '%'})", "95 % interval"]
        headings += [f"p, {CONTESTANTS[measure]}"] if measure in CONTESTANTS else []
    headings += ["adapter parameters", *(["p, highest"] if highest else [])]
    rows = []
    for setting in comparison.settings:
        row = [*(setting_text(value) for value in setting.values.values()), str(setting.runs), str(setting.seeds)]
        for measure in OVER_SEEDS:
            row += _interval_cells(setting, measure)
            if measure in CONTESTANTS:
                row.append(f"{setting.chances[measure]:.2g}" if measure in setting.chances else NONE)
        row.append(f"{setting.parameters:,.0f}")
        if highest:
            row.append(f"{chances[id(setting)]:.2g}" if id(setting) in chances else "highest")
        rows.append(row)
    return [Section("Settings over seeds", [HOW_OVER_SEEDS, Grid((headings, rows))], folded=True)]


def _interval_cells(setting: Setting, measure: str) -> list[str]:
    write = points if measure in IN_POINTS else percent
    mean: Interval = setting.means[measure]
    if math.isnan(mean.mean):
        return [NONE, NONE]
    if setting.seeds < 2:
        return [write(mean.mean), NONE]
    return [f"{write(mean.mean)} ± {percent(setting.deviations[measure])}", f"{write(mean.low)} to {write(mean.high)}"]


def halving_section(sweep: Sweep) -> list[Section]:
    """The jobs that halving stopped at each rung, and the share of steps that it saved; no section without it."""
    if not sweep.stopped:
        return []
    rows = []
    left = len(sweep.stopped) + len(sweep.results)
    for step, count in sorted(Counter(stopped.step for stopped in sweep.stopped.values()).items()):
        rows.append([str(step), str(left), str(count), str(left - count)])
        left -= count
    ran = sum(result.outcome.steps for result in sweep.results.values())
    made = ran + sum(stopped.step for stopped in sweep.stopped.values())
    whole = ran + sum(stopped.steps for stopped in sweep.stopped.values())
    objective = next(iter(sweep.stopped.values())).objective.replace("_", " ")
    text = (
        f"Jobs competed by their {objective} on validation images, never on test images. "
        f"{made:,} of {whole:,} job-steps were run, which saved {100 * (1 - made / whole):.1f} %."
    )
    return [Section("Successive halving", [text, Grid((["after step", "jobs", "stopped", "went on"], rows))], True)]


def means_section(frame: pd.DataFrame) -> Section:
    """Means by each setting in which the runs differ."""
    blocks: list[Block] = []
    for name in shown_settings(finished(frame)):
        blocks += [Heading(f"By {heading(name)}"), Grid(means_table(frame, [name]))]
    return Section("Means of the finished runs", blocks)


def runs_section(frame: pd.DataFrame) -> Section:
    """One row a finished run."""
    return Section("Finished runs", [Grid(runs_table(frame))])


def unfinished_section(sweep: Sweep) -> list[Section]:
    """The jobs without errors to compare, with the reasons; no section where there are none."""
    rows = []
    for row in sweep.frame[sweep.frame["status"] != "finished"].to_dict("records"):
        reason = row["error"] or "never ran, or was interrupted"
        if row["status"] == "diverged":
            reason = f"the loss stopped being finite at step {sweep.results[row['job']].outcome.diverged_at}"
        rows.append([str(row["job"]), row["status"], Code(row["overrides"]), reason])
    grid = Grid((["job", "status", "overrides", "reason"], rows), words=4)
    return [Section("Jobs without errors to compare", [grid], folded=True)] if rows else []


def model_section(results: Sequence[RunResult]) -> Section:
    """Shapes and parameter counts of each model, and the adapter parameters of each method and rank."""
    kinds: dict[tuple[str, tuple[str, ...]], dict[tuple[str, int], RunResult]] = {}
    for result in results:
        adapter = result.spec.adapter
        by_size = kinds.setdefault((result.spec.model.label, adapter.layers), {})
        by_size.setdefault((adapter.method, adapter.rank), result)
    blocks: list[Block] = []
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
        headings = ["layer", "weight", "base", *(kind_label(by_size[size].kind) for size in sizes)]
        blocks.append((f"Hidden layers {label or 'none'}; adapted: ", Code(", ".join(layers)), "."))
        blocks.append(Grid((headings, rows), words=2))
        if len(by_size) > len(sizes):
            blocks.append(f"{len(sizes)} of {len(by_size)} methods and ranks.")
    return Section("Model: parameters", blocks, folded=True)


def proof_section(sweep: Sweep) -> Section:
    """In how many runs the base stayed unchanged."""
    total = len(sweep.results)
    same = {job for job, result in sweep.results.items() if result.outcome.base_unchanged}
    off = {job for job, result in sweep.results.items() if result.outcome.adapter_off_equals_base}
    text = (
        f"Base weights unchanged (SHA-256 before and after): {len(same)} of {total} runs. "
        f"With the adapter off, every prediction equals the base's: {len(off)} of {total} runs."
    )
    broken = sorted(set(sweep.results) - (same & off))
    said = text + (f" It does not hold for jobs {', '.join(map(str, broken))}." if broken else "")
    return Section("Proof", [said], folded=not broken)


def commands_section(frame: pd.DataFrame) -> Section:
    """The command that reproduces each run."""
    lines = [f"{run_command(row['overrides'])}  # job {row['job']}" for row in frame.to_dict("records")]
    return Section("Reproduce a run", [Listing(lines)], folded=True)


def provenance_section(results: Sequence[RunResult]) -> Section:
    """Settings and provenance: each value once, and how many there are where the runs differ."""
    facts = []
    for result in results:
        provenance = {name: value for name, value in result.provenance.items() if name not in SHOWN_ELSEWHERE}
        facts.append(_flat(result.settings) | _flat(provenance))
    rows: list[list[str]] = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        values = list(dict.fromkeys(fact.get(name, NONE) for fact in facts))
        text = ", ".join(values[:VARIANTS])
        rows.append([name, Code(f"{len(values)} values: {text}, ..." if len(values) > VARIANTS else text)])
    return Section("Settings and provenance", [Grid((["what", "value"], rows), words=2)], folded=True)


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Flatten nested facts: dotted name -> text."""
    if isinstance(value, Mapping):
        return {dotted: text for key in value for dotted, text in _flat(value[key], f"{name}.{key}").items()}
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return {name.removeprefix("."): " ".join(text.split())}
