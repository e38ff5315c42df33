"""What a sweep prints at its end: a table with the gain beside the cost, in colour on a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from lora_exp.config.models import MODULE
from lora_exp.report.document import Table
from lora_exp.report.tables import MEASURES, means_table, runs_table
from lora_exp.storage.recommendation import representative
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished, pareto_front

ROWS = 64  # a longer table is replaced by one of means
REASONS = 10
WIDTH = 400  # characters, so that no line of a table is folded or cut
COLOURS = {MEASURES["target_error"][0]: "green", MEASURES["forgetting"][0]: "yellow"}


def sweep_text(frame: pd.DataFrame, terminal: bool) -> str:
    """The finished runs, or their means where they are many, then the other jobs with reasons; coloured if `terminal`.

    The caller prints it: rich would end the process when standard output is closed.
    """
    console = Console(highlight=False, width=WIDTH, force_terminal=terminal)
    with console.capture() as captured:
        _write(console, frame)
    return captured.get()


def _write(console: Console, frame: pd.DataFrame) -> None:
    if len(finished(frame)):
        title, table, jobs = _fitting(frame)
        if title:
            console.print(title, markup=False)
        console.print(_rich(table, jobs, frame))
        if jobs and (shown := representative(frame)) is not None:
            by = f"chosen by balanced accuracy on {frame['chosen_on'].iloc[shown]}"
            console.print(f"job {shown}: {by}; *: on the Pareto front of error and forgetting")
    if (stopped := int((frame["status"] == "stopped").sum())) > 0:
        console.print(f"halving stopped {stopped} jobs; the report says when and why", markup=False)
    others = frame[~frame["status"].isin(["finished", "stopped"])]
    for row in others.head(REASONS).to_dict("records"):
        what = row["name"] or row["overrides"]
        reason = f": {row['error']}" if row["error"] else ""
        console.print(f"job {row['job']} ({what}) {row['status']}{reason}", style="red", markup=False, soft_wrap=True)
    if len(others) > REASONS:
        console.print(f"... and {len(others) - REASONS} more jobs without errors to compare")


def next_text(sweep: Sweep) -> str:
    """The commands that a reader of the table may want next, with their purposes, a line each."""
    steps = [("lora-exp ui", "compare the runs in MLflow")]
    job, runs = representative(sweep.frame), finished(sweep.frame)
    if job is not None and sweep.results[job].spec.model.kind != MODULE:  # which no command can build
        folder = shlex.quote(str(Path(sweep.frame["folder"].iloc[job])))
        steps.append((f"lora-exp reproduce {folder}", "repeat the chosen run from scratch"))
        if len(runs) > 1 and runs["base_seed"].nunique() == 1 and ".seed" not in sweep.command:
            # A search would search over the seeds, so its best job is repeated as a grid.
            once = f"lora-exp {sweep.frame['overrides'].iloc[job]}"
            _, *given = shlex.split(sweep.command if sweep.search is None else once)
            own = [part for part in given if part != "-m" and not part.startswith(("hydra.sweep.dir=", "report.name="))]
            seeds, purpose = ["base.seed=range(0,5)", "finetune.seed=${base.seed}"], "several bases"
            if sweep.results[job].spec.base.epochs == 0:  # the base is given: it has no seed
                seeds, purpose = ["finetune.seed=range(0,5)"], "several seeds"
            again = shlex.join(["lora-exp", "-m", *own, *seeds])
            steps.append((again, f"{purpose} show which differences are chance"))
    lines = (f"{'' if at else 'next':<8} {command}  # {purpose}" for at, (command, purpose) in enumerate(steps))
    return "".join(f"{line}\n" for line in lines)


def _fitting(frame: pd.DataFrame) -> tuple[str, Table, list[int]]:
    """Return the most detailed table that fits, its title if it has means, and the jobs of its rows if it has none."""
    runs = runs_table(frame)
    if len(runs[1]) <= ROWS:
        return "", runs, [int(row[0]) for row in runs[1]]
    for by in (["rank", "target"], ["rank"], ["target"], []):
        table = means_table(frame, by)
        if len(table[1]) <= ROWS:
            break
    return f"means of the finished runs{' by ' + ' and '.join(by) if by else ''}", table, []


def _rich(table: Table, jobs: list[int], frame: pd.DataFrame) -> RichTable:
    headings, rows = table
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for heading in headings:
        drawn.add_column(heading, justify="right", style=COLOURS.get(heading), no_wrap=True)
    shown, front = representative(frame), set(pareto_front(frame))
    for row, job in zip(rows, jobs or [-1] * len(rows), strict=True):
        drawn.add_row(row[0] + ("*" if job in front else ""), *row[1:], style="bold" if job == shown else None)
    return drawn
