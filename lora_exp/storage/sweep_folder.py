"""Reading sweep folders: a table with one row a job, and the results of the jobs that have one.

A sweep's folder holds `sweep.json` and one folder a job (`0/`, `1/`, ...). A job that ran to its end has `result.json`
there, a failed or stopped one `failure.json`, one that never ran neither. A single run reads as a sweep of one job.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lora_exp.errors import LoraExpError, in_words
from lora_exp.measures.logits import Logits, from_tensors
from lora_exp.storage.result import PREDICTIONS, RESULT, RunResult, read
from lora_exp.storage.sweep_file import FAILURE, SWEEP, Stopped, read_about, read_failure, run_command
from lora_exp.storage.table import CLASS_ERRORS, COLUMNS, SECONDS, frame_of, row_of

NAME_BYTES = 120  # of the name of joined sweeps, after which their report's folder is named


@dataclass(frozen=True)
class Sweep:
    """A sweep, read from disk.

    `results` are by job, those of diverged runs included; `stopped` holds, by job, why halving stopped it. `search`
    holds the settings of a search (sampler, seed, batch, trials, objectives, space); None for a grid. `contest` is the
    SHA-256 of the protocol of a contest; None for another sweep.
    """

    folder: Path
    name: str
    command: str
    started: str
    frame: pd.DataFrame
    results: dict[int, RunResult]
    stopped: dict[int, Stopped] = field(default_factory=dict)
    search: dict[str, Any] | None = None
    contest: str | None = None

    def logits(self, job: int) -> Logits:
        """Read the logits of job `job` for the test images. Raises ValueError when its file is absent or damaged."""
        return read_logits(Path(self.frame["folder"].iloc[job]))[0]


def read_logits(folder: Path) -> tuple[Logits, Logits | None]:
    """Read the logits of a run for the test and the validation images. Raises ValueError as `Sweep.logits` does."""
    try:
        tensors = load_file(folder / PREDICTIONS)
    except (OSError, SafetensorError) as error:
        raise ValueError("its predictions can't be read") from error
    return from_tensors(tensors)


def read_sweep(folder: str | Path) -> Sweep:
    """Read the sweep (or the one run) in `folder`, with its results.

    `status` in the frame is "finished", "diverged", "stopped" (by halving), "failed" or "missing". Only finished rows
    have errors; failed and missing ones have no numbers at all. Raises LoraExpError when the folder holds no run or its
    `sweep.json` can't be read.
    """
    folder = Path(folder)
    if (folder / SWEEP).is_file():
        about = read_about(folder)
        folders = [folder / str(job) for job in range(len(about["jobs"]))]
    else:
        about = {"jobs": [None], "presets": []}
        folders = [folder] if (folder / RESULT).is_file() or (folder / FAILURE).is_file() else []
    if not folders:
        raise LoraExpError(f"{folder}: holds no run (neither {SWEEP} with jobs, nor {RESULT}, nor {FAILURE})")

    found = [_outcome(place) for place in folders]
    results = {job: result for job, (result, _) in enumerate(found) if isinstance(result, RunResult)}
    stopped = {job: why for job, (why, _) in enumerate(found) if isinstance(why, Stopped)}
    alone = results.get(0)  # a single run has no sweep.json, so its result gives the name and the time
    name = str(about.get("name") or (alone.spec.name if alone else folder.name))
    rows = []
    for job, (place, planned, (_, row)) in enumerate(zip(folders, about["jobs"], found, strict=True)):
        presets = about["presets"] if planned and planned[0] != "import" else []
        overrides = shlex.join(row.get("overrides", []) if planned is None else [*presets, *planned])
        rows.append({**row, "job": job, "sweep": name, "folder": str(place), "overrides": overrides})
    return Sweep(
        folder=folder,
        name=name,
        command=str(about.get("command") or run_command(rows[0]["overrides"])),
        started=str(about.get("started") or (alone.provenance.get("started", "") if alone else "")),
        frame=frame_of(rows, results),
        results=results,
        stopped=stopped,
        search=about.get("search"),
        contest=about.get("contest"),
    )


def join(sweeps: Sequence[Sweep]) -> Sweep:
    """Join the jobs of several sweeps, renumbered in order; a run that several of them have counts once."""
    rows: list[dict[str, Any]] = []
    results: dict[int, RunResult] = {}
    stopped: dict[int, Stopped] = {}
    seen: set[str] = set()
    for sweep in sweeps:
        for row in sweep.frame.to_dict("records"):
            if row["spec_key"] is not None:  # of an imported adapter it is not known
                if row["spec_key"] in seen:
                    continue
                seen.add(row["spec_key"])
            if row["job"] in sweep.results:
                results[len(rows)] = sweep.results[row["job"]]
            if row["job"] in sweep.stopped:
                stopped[len(rows)] = sweep.stopped[row["job"]]
            own = {str(name): value for name, value in row.items()}
            kept = {
                name: value
                for name, value in own.items()
                if name in COLUMNS or name.startswith((SECONDS, CLASS_ERRORS))
            }
            rows.append(kept | {"job": len(rows)})
    folders = [str(sweep.folder.absolute()) for sweep in sweeps]
    names = list(dict.fromkeys(sweep.name for sweep in sweeps))
    name = "+".join(names)
    if len(name.encode()) > NAME_BYTES or len(names) < len(sweeps):
        name = f"{len(sweeps)} sweeps from {names[0]}"
    return Sweep(
        folder=Path(os.path.commonpath(folders)),
        name=name,
        command=shlex.join(["lora-exp", "report", *folders]),
        started=min((sweep.started for sweep in sweeps if sweep.started), default=""),
        frame=frame_of(rows, results),
        results=results,
        stopped=stopped,
    )


def _outcome(folder: Path) -> tuple[RunResult | Stopped | None, dict[str, Any]]:
    """Read a job's folder: its result, or why halving stopped it, if so; and its row, with its own overrides."""
    if (folder / RESULT).is_file():
        try:
            result = read(folder)
            row = row_of(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{RESULT} can't be read: {in_words(error)}"
            return None, {"status": "failed", "error": reason}
        overrides = result.provenance.get("overrides")
        return result, row | {"overrides": list(map(str, overrides)) if isinstance(overrides, list) else []}
    if (folder / FAILURE).is_file():
        job = read_failure(folder)
        status = {"status": "stopped", "steps": job.stopped.step} if job.stopped else {"status": "failed"}
        return job.stopped, {**status, "error": job.error, "overrides": job.overrides}
    return None, {"status": "missing"}
