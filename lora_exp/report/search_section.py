"""The section of a report on how its jobs were searched for: what was found on validation images, and what it is worth.

The errors on the test set stand beside; they played no part in the choice.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lora_exp.report.document import Block, Code, Grid, Paragraph, Section, paragraphs
from lora_exp.report.tables import MEASURES, percent, points, setting_text
from lora_exp.storage.objectives import values_of
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.trade_off import unbeaten

LOWEST = 5  # trials shown of a search with one objective
# Objective -> what it is called, and how a number of it is written.
WRITTEN = {
    "target_error": ("target error (%)", percent),
    "forgetting": ("forgetting (points)", points),
    "both_errors": ("sum of both errors (%)", percent),
    "parameters": ("adapter parameters", lambda count: f"{count:,.0f}"),
}
BESIDE = ("target_error_before", "target_error", "other_error_before", "other_error", "forgetting")


def search_verdict(sweep: Sweep, search: Mapping[str, Any]) -> str:
    """One line: what the search found, by the validation images alone, and what that is on the test set."""
    values, names = _values(sweep, search), search["objectives"]
    if not values:
        return f"Search: no sound trial among {len(sweep.frame)}."
    found = unbeaten(values)
    if len(names) > 1:
        jobs = ", ".join(map(str, found))
        return (
            f"Search: of {len(values)} sound trials no other beats jobs {jobs} in {' and '.join(map(_plain, names))}."
        )
    job = found[0]
    row = sweep.frame.loc[sweep.frame["job"] == job].iloc[0]
    return (
        f"Search: job {job} has the lowest {_plain(names[0])} of {len(values)} sound trials on the validation images; "
        f"on the test set: target {percent(row['target_error_before'])} % -> {percent(row['target_error'])} %, others "
        f"{percent(row['other_error_before'])} % -> {percent(row['other_error'])} %."
    )


def search_section(sweep: Sweep, search: Mapping[str, Any]) -> Section:
    """Sampler, space and objectives; then the lowest trials, or the front of several objectives."""
    names, values = search["objectives"], _values(sweep, search)
    failed = len(sweep.frame) - len(values)
    facts = (
        f"Sampler {search['sampler']}, seed {search['seed']}; {len(sweep.frame)} of {search['trials']} trials, asked "
        f"{search['batch']} at a time; {failed} without a sound result, told as failed."
    )
    held = ", ".join(f"{size:,}" for size in sorted({each.spec.data.validation for each in sweep.results.values()}))
    chosen = (
        f"Made small: {' and '.join(map(_plain, names))}, on {held} validation images. The test set played no part in "
        "the choice; its errors stand beside."
    )
    blocks: list[Block] = [*paragraphs([facts])]
    for key, space in search["space"].items():
        blocks.append(Paragraph((Code(key), ": ", Code(space))))
    blocks += paragraphs([chosen, search_verdict(sweep, search)])
    if values:
        blocks.append(Grid(_table(sweep, search, values)))
    return Section("Search", tuple(blocks))


def _table(
    sweep: Sweep, search: Mapping[str, Any], values: Mapping[int, Sequence[float]]
) -> tuple[list[str], list[list[str]]]:
    names, searched = search["objectives"], list(search["space"])
    shown = unbeaten(values)
    if len(names) == 1:  # of which many may have the same lowest value
        shown = sorted(values, key=lambda job: values[job][0])[:LOWEST]
    headings = ["job", *searched, *(f"validation:\n{WRITTEN[name][0]}" for name in names)]
    headings += [f"test:\n{MEASURES[name][0]}" for name in BESIDE]
    rows = []
    for job in shown:
        row = sweep.frame.loc[sweep.frame["job"] == job].iloc[0]
        tried = dict(override.partition("=")[::2] for override in shlex.split(row["overrides"]))
        rows.append(
            [
                str(job),
                *(_short(tried.get(key, "")) for key in searched),
                *(WRITTEN[name][1](value) for name, value in zip(names, values[job], strict=True)),
                *(MEASURES[name][1](row[name]) for name in BESIDE),
            ]
        )
    return headings, rows


def _values(sweep: Sweep, search: Mapping[str, Any]) -> dict[int, list[float]]:
    """The objectives of each sound trial."""
    own = {job: result for job, result in sweep.results.items() if not (result.diverged or result.imported)}
    return {job: values_of(result, search["objectives"]) for job, result in own.items()}


def _plain(objective: str) -> str:
    """An objective in words, without its unit."""
    return WRITTEN[objective][0].partition(" (")[0]


def _short(value: str) -> str:
    """A number as short as tables show it; other text as it is."""
    try:
        return setting_text(float(value)) if "." in value else value
    except ValueError:
        return value
