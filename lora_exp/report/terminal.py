"""What a sweep tells a terminal: a table with the gain beside the cost, in colour where there is a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lora_exp.report.tables import MEASURES, Table, means_table, runs_table
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.trade_off import pareto_front, representative, sound

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

ROWS = 64  # a longer table scrolls away; means are shown instead
REASONS = 10
WIDTH = 400  # characters; a line of a table is never folded or cut
COLOURS = {MEASURES["target_error"][0]: "green", MEASURES["forgetting"][0]: "yellow"}


def print_sweep(frame: pd.DataFrame) -> None:
    """The sound runs, a row each, or their means where they are too many; then the others with their reasons.

    Where standard output is no terminal the same text comes without colours.
    """
    from rich.console import Console

    console = Console(highlight=False, width=WIDTH)
    # Printed by Python, whose error, where nobody reads, ends nothing; rich's own printing would end the process.
    with console.capture() as captured:
        _write(console, frame)
    print(captured.get(), end="")


def _write(console: Console, frame: pd.DataFrame) -> None:
    if len(sound(frame)):
        title, table, jobs = _fitting(frame)
        if title:
            console.print(title, markup=False)
        console.print(_rich(table, jobs, frame))
        if jobs:
            shown = representative(frame)
            console.print(f"job {shown}: lowest sum of both errors; *: no other has less of both error and forgetting")
    if (stopped := int((frame["status"] == "stopped").sum())) > 0:
        console.print(f"{stopped} jobs were stopped by halving; the report says when and why", markup=False)
    unsound = frame[~frame["status"].isin(["finished", "stopped"])]
    for row in unsound.head(REASONS).to_dict("records"):
        what = row["name"] or row["overrides"]
        reason = f": {row['error']}" if row["error"] else ""
        console.print(f"job {row['job']} ({what}) {row['status']}{reason}", style="red", markup=False, soft_wrap=True)
    if len(unsound) > REASONS:
        console.print(f"... and {len(unsound) - REASONS} more jobs without errors to compare")


def print_next(sweep: Sweep) -> None:
    """Commands that a reader of the table may want next, each with what it is for."""
    steps = [("lora-exp ui", "compare the runs in MLflow")]
    job, runs = representative(sweep.frame), sound(sweep.frame)
    if job is not None:
        folder = shlex.quote(str(Path(sweep.frame["folder"].iloc[job])))
        steps.append((f"lora-exp reproduce {folder}", "the lowest sum of both errors, made again from nothing"))
        if len(runs) > 1 and runs["seed"].nunique() == 1 and "finetune.seed" not in sweep.command:
            # A search would take seeds for something to search.
            once = f"lora-exp {sweep.frame['overrides'].iloc[job]}"
            _, *given = shlex.split(sweep.command if sweep.search is None else once)
            own = [part for part in given if part != "-m" and not part.startswith("hydra.sweep.dir=")]
            again = shlex.join(["lora-exp", "-m", *own, "finetune.seed=0,1,2,3,4"])
            steps.append((again, "seeds tell differences from chance"))
    for at, (command, purpose) in enumerate(steps):
        print(f"{'' if at else 'next':<8} {command}  # {purpose}")


def _fitting(frame: pd.DataFrame) -> tuple[str, Table, list[int]]:
    """The most detailed table that fits, its title if it needs one, and the jobs of its rows if they are jobs."""
    runs = runs_table(frame)
    if len(runs[1]) <= ROWS:
        return "", runs, [int(row[0]) for row in runs[1]]
    for by in (["rank", "digit"], ["rank"], ["digit"], []):
        table = means_table(frame, by)
        if len(table[1]) <= ROWS:
            break
    return f"means of the sound runs{' by ' + ' and '.join(by) if by else ''}", table, []


def _rich(table: Table, jobs: list[int], frame: pd.DataFrame) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    headings, rows = table
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for heading in headings:
        drawn.add_column(heading, justify="right", style=COLOURS.get(heading), no_wrap=True)
    shown, front = representative(frame), set(pareto_front(frame))
    for at, row in enumerate(rows):
        job = jobs[at] if jobs else None
        mark = "*" if job in front else ""
        drawn.add_row(row[0] + mark, *row[1:], style="bold" if jobs and job == shown else None)
    return drawn
