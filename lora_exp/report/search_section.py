"""The section of a report on a search: what it found on the validation images.

The errors on the test set are shown beside; they played no part in the choice.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lora_exp.report.document import Code, Grid, Section, Table
from lora_exp.report.tables import MEASURES, errors_text, percent, points
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import unbeaten
from lora_exp.storage.varied import setting_text

LOWEST = 5  # trials shown of a search with one objective
# Objective -> its name with its unit, and how its numbers are written.
OBJECTIVES = {
    "balanced_error": ("balanced error (%)", percent),
    "target_error": ("target error (%)", percent),
    "forgetting": ("forgetting (points)", points),
    "both_errors": ("sum of both errors (%)", percent),
    "parameters": ("adapter parameters", lambda count: f"{count:,.0f}"),
}
TEST_ERRORS = ("target_error_before", "target_error", "other_error_before", "other_error", "forgetting")


def search_verdict(sweep: Sweep, search: Mapping[str, Any]) -> str:
    """Say in one line what the search found on the validation images, and its errors on the test set."""
    values, names = _values(sweep, search), search["objectives"]
    if not values:
        return f"Search: no finished trial among {len(sweep.frame)}."
    found = unbeaten(values)
    if len(names) > 1:
        jobs, both = ", ".join(map(str, found)), " and ".join(map(_label, names))
        return f"Search: of {len(values)} finished trials, jobs {jobs} are on the Pareto front of {both}."
    return (
        f"Search: job {found[0]} has the lowest {_label(names[0])} of {len(values)} finished trials on the validation "
        f"images; on the test set: {errors_text(sweep.frame.iloc[found[0]])}."
    )


def search_section(sweep: Sweep, search: Mapping[str, Any]) -> Section:
    """Write the section: sampler, space and objectives; then the lowest trials, or the front of several objectives."""
    names, values = search["objectives"], _values(sweep, search)
    failed = len(sweep.frame) - len(values)
    facts = (
        f"Sampler {search['sampler']}, seed {search['seed']}; {len(sweep.frame)} of {search['trials']} trials, in "
        f"batches of {search['batch']}; {failed} without a finished result, which count as failed."
    )
    held = ", ".join(f"{size:,}" for size in sorted({each.spec.data.validation for each in sweep.results.values()}))
    chosen = (
        f"Minimised: {' and '.join(map(_label, names))}, on {held} validation images. The test set played no part in "
        "the choice; its errors are shown beside."
    )
    searched = [(Code(key), ": ", Code(space)) for key, space in search["space"].items()]
    table = [Grid(_table(sweep, search, values))] if values else []
    return Section("Search", [facts, *searched, chosen, search_verdict(sweep, search), *table], folded=True)


def _table(sweep: Sweep, search: Mapping[str, Any], values: Mapping[int, Sequence[float]]) -> Table:
    names, searched = search["objectives"], list(search["space"])
    shown = unbeaten(values)
    if len(names) == 1:  # of one objective, all trials with the lowest value are unbeaten
        shown = sorted(values, key=lambda job: values[job][0])[:LOWEST]
    headings = ["job", *searched, *(f"validation:\n{OBJECTIVES[name][0]}" for name in names)]
    headings += [f"test:\n{MEASURES[name][0]}" for name in TEST_ERRORS]
    rows = []
    for job in shown:
        row = sweep.frame.iloc[job]
        tried = dict(override.partition("=")[::2] for override in shlex.split(row["overrides"]))
        given = [_short(tried.get(key, "")) for key in searched]
        objectives = [OBJECTIVES[name][1](value) for name, value in zip(names, values[job], strict=True)]
        rows.append([str(job), *given, *objectives, *(MEASURES[name][1](row[name]) for name in TEST_ERRORS)])
    return headings, rows


def _values(sweep: Sweep, search: Mapping[str, Any]) -> dict[int, list[float]]:
    """Return the objectives of each finished trial."""
    own = {job: result for job, result in sweep.results.items() if not (result.diverged or result.imported)}
    return {job: result.objectives(search["objectives"]) for job, result in own.items()}


def _label(objective: str) -> str:
    """Return the name of an objective without its unit."""
    return OBJECTIVES[objective][0].partition(" (")[0]


def _short(value: str) -> str:
    """Write a number as short as tables show it; other text as it is."""
    try:
        return setting_text(float(value)) if "." in value else value
    except ValueError:
        return value
