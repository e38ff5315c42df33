"""What of a sweep goes on record: its numbers, which of its runs stand out, and a description in Markdown.

All of it is read from the sweep's folder, so that it can be told later as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import both_errors, finished, pareto_front, representative
from lora_exp.tracking.facts import markdown_table

# Of a description, which MLflow limits to 8,000 characters: runs of a front, and characters of the command.
SHOWN, COMMAND_LIMIT = 20, 1000
ERRORS = ("target_error", "other_error")
HEADER = ["run", "target error before", "after", "other digits before", "after", "forgetting (points)"]


@dataclass(frozen=True)
class Pages:
    """Where a tracker shows things: `runs` by job, all runs of the sweep, and its report, if it has one."""

    runs: Mapping[int, str]
    all_runs: str
    report: str | None


def metrics_of_sweep(frame: pd.DataFrame) -> dict[str, float]:
    """`jobs_<status>`, and of the sound runs `mean_*` and `lowest_*`: errors are rates from 0 to 1."""
    found = {f"jobs_{status}": float(count) for status, count in frame["status"].value_counts().items()}
    runs = finished(frame)
    if runs.empty:
        return found
    columns = {name: runs[name] for name in (*ERRORS, *(f"{name}_before" for name in ERRORS), "forgetting")}
    found |= {f"mean_{name}": float(values.mean()) for name, values in columns.items()}
    columns = {name: runs[name] for name in (*ERRORS, "forgetting")} | {"sum_of_both_errors": both_errors(runs)}
    found |= {f"lowest_{name}": float(values.min()) for name, values in columns.items()}
    return found | {"pareto_runs": float(len(pareto_front(frame)))}


def description_of(sweep: Sweep, pages: Pages) -> str:
    """The sweep in Markdown: what became of its jobs, the runs that stand out, with links, and its command.

    The links come first: MLflow folds all but the first lines of a description.
    """
    frame = sweep.frame
    counts = ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())
    links = f"[All runs of this sweep]({pages.all_runs})"
    if pages.report is not None:
        links += f", [its report]({pages.report})"
    parts = [f"{len(frame)} jobs: {counts}. {links}."]
    lowest = representative(frame)
    if lowest is not None:
        name, before, after, others_before, others, forgetting = _cells(frame, lowest, pages)
        front = pareto_front(frame)
        shown = f" (the first {SHOWN} of {len(front)})" if len(front) > SHOWN else ""
        parts += [
            f"Lowest sum of both errors: {name}, error on the target {before} to {after}, on the other digits "
            f"{others_before} to {others} (forgetting {forgetting} points).",
            "Pareto front: the runs of which none has less error on the target and no more forgetting, or the "
            f"reverse{shown}.",
            markdown_table(HEADER, [_cells(frame, job, pages) for job in front[:SHOWN]]),
        ]
    command = textwrap.shorten(sweep.command, COMMAND_LIMIT, placeholder=" …")
    return "\n\n".join([*parts, f"```\n{command}\n```"])


def _cells(frame: pd.DataFrame, job: int, pages: Pages) -> list[str]:
    row = frame[frame["job"] == job].iloc[0]
    errors = [f"{100 * row[error + when]:.2f} %" for error in ERRORS for when in ("_before", "")]
    return [f"[{row['name']}]({pages.runs[job]})", *errors, f"{100 * row['forgetting']:+.2f}"]
