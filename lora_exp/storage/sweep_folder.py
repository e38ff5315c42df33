"""Reading a sweep folder: one tidy row per job, whatever became of it.

A sweep's folder holds `sweep.json` and one folder a job (`0/`, `1/`, ...). A finished job left `result.json`,
a failed one `failure.json`, one that never ran neither. A single run's folder reads as a sweep of one job.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lora_exp.config.fields import CLASSES
from lora_exp.errors import LoraExpError
from lora_exp.storage.result import PREDICTIONS, RESULT, RunResult, read
from lora_exp.storage.sweep_file import FAILURE, SWEEP, read_about
from lora_exp.tracking.facts import parameters_of
from lora_exp.training.halving import Stopped, from_dict

# Type of every column, so that a table looks the same whether or not jobs failed. Text is `object`, where an
# absent value is None in every pandas; whole numbers are nullable, so that a failed job leaves 4 a 4.
COLUMNS: dict[str, str] = {
    "job": "int64",
    **dict.fromkeys(("sweep", "name", "digit", "method", "origin"), "object"),
    "rank": "Int64",
    "alpha": "object",
    "scaling": "float64",
    "seed": "Int64",
    "learning_rate": "float64",
    "batch_size": "Int64",
    "replay": "float64",
    **dict.fromkeys(("layers", "hidden", "data"), "object"),
    **dict.fromkeys(("base_seed", "steps"), "Int64"),
    "epochs": "float64",
    "status": "object",
    **dict.fromkeys(("target_error_before", "target_error", "other_error_before", "other_error"), "float64"),
    **dict.fromkeys(("forgetting", "accuracy_before", "accuracy"), "float64"),
    **dict.fromkeys(("parameters_base", "parameters_adapter", "parameters_total"), "Int64"),
    "overhead_percent": "float64",
    **dict.fromkeys(("base_unchanged", "adapter_off_equals_base"), "boolean"),
    "final_loss": "float64",
    **{f"errors_{when}{digit}": "Int64" for digit in range(CLASSES) for when in ("before_", "")},
    **dict.fromkeys(("spec_key", "error", "folder", "overrides"), "object"),
}
NAME_BYTES = 120  # of a report's folder, which joins the names of its sweeps
# What `parameters_of` calls by other names, or what follows from other columns.
SAME_AS_COLUMNS = ("model", "model_hidden", "model_channels", "model_kernel")
# A diverged run has numbers of these kinds too, but they mean nothing and must never be compared.
JUDGEMENTS = ("target_error", "other_error", "forgetting", "accuracy", "errors_")


@dataclass(frozen=True)
class Sweep:
    """A sweep as it lies on disk; by job, `results` holds runs that left one, diverged or not.

    `stopped` holds, by job, why others did not go on.
    `search` tells how the jobs were found: sampler, seed, batch, trials, objectives, space; None for a grid.
    """

    folder: Path
    name: str
    command: str
    started: str
    frame: pd.DataFrame
    results: dict[int, RunResult]
    stopped: dict[int, Stopped] = field(default_factory=dict)
    search: dict[str, Any] | None = None

    def predictions(self, job: int) -> dict[str, NDArray[Any]] | None:
        """What job `job` said of the N test images; None when its file is absent or damaged.

        Keys: `before_predicted`, `predicted` (uint8 [N]), `before_confidence`, `confidence` (float32 [N]).
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            loaded: dict[str, NDArray[Any]] = load_file(Path(self.frame["folder"].iloc[job]) / PREDICTIONS)
        except (OSError, SafetensorError):
            return None
        return loaded


def run_command(overrides: str) -> str:
    """The command that runs the job with these (shell-quoted) overrides by itself.

    A preset may be a sweep, so its job is asked for as a single run; the name of the sweep's report is not its. What
    `lora-exp import` added to a sweep has that sub-command among its overrides.
    """
    own = [override for override in shlex.split(overrides) if not override.startswith("report.")]
    if own[:1] != ["import"] and any(override.startswith("experiment=") for override in own):
        own.append("hydra.mode=RUN")
    return shlex.join(["lora-exp", *own])


def load_sweep(folder: str | Path) -> pd.DataFrame:
    """One row per job of the sweep (or the one run) in `folder`, in job order.

    Columns: `job`, `sweep`, those of `RunResult.row()`, `error`, `folder`, `overrides`; before `status` stands every
    further setting in which the runs differ, such as `dropout` or `data_limit`. Errors are rates from 0 to 1.
    `status` is "finished", "diverged", "stopped" (by halving), "failed" or "missing"; only finished rows have errors,
    and failed or missing ones no numbers at all. Raises LoraExpError when the folder holds no run.
    """
    return read_sweep(folder).frame


def read_sweep(folder: str | Path) -> Sweep:
    """The sweep (or the one run) in `folder`, with its results.

    Raises LoraExpError, of one line, when the folder holds no run or its `sweep.json` can't be read.
    """
    folder = Path(folder)
    if (folder / SWEEP).is_file():
        about = read_about(folder)
        folders = {job: folder / str(job) for job in range(len(about["jobs"]))}
    elif (folder / RESULT).is_file() or (folder / FAILURE).is_file():
        about, folders = {"jobs": [None]}, {0: folder}
    else:
        about, folders = {"jobs": []}, {}
    if not folders:
        raise LoraExpError(f"{folder}: holds no run (neither {SWEEP} with jobs, nor {RESULT}, nor {FAILURE})")

    rows: list[dict[str, Any]] = []
    results: dict[int, RunResult] = {}
    stopped: dict[int, Stopped] = {}
    for job, place in folders.items():
        result, row = _outcome(place)
        if result is not None:
            results[job] = result
        if "stopped" in row:
            stopped[job] = row.pop("stopped")
        planned = about["jobs"][job]
        overrides = row.pop("overrides", []) if planned is None else planned
        rows.append({"job": job, **row, "folder": str(place), "overrides": shlex.join(overrides)})

    alone = results.get(0)  # names a single run, which has no sweep.json to do so
    name = str(about.get("name") or (alone.spec.name if alone else folder.name))
    rows = [row | {"sweep": name} for row in rows]
    return Sweep(
        folder=folder,
        name=name,
        command=str(about.get("command") or run_command(rows[0]["overrides"])),
        started=str(about.get("started") or (alone.provenance.get("started", "") if alone else "")),
        frame=table(rows, results),
        results=results,
        stopped=stopped,
        search=about.get("search"),
    )


def digits_of(label: str) -> tuple[int, ...]:
    """The digits of a `digit` column's text, by which it sorts: "2,7" -> (2, 7)."""
    return tuple(int(digit) for digit in label.split(","))


def _outcome(folder: Path) -> tuple[RunResult | None, dict[str, Any]]:
    """The result in a job's folder, if any, and the job's row, with its own record of its overrides."""
    if (folder / RESULT).is_file():
        try:
            result = read(folder)
            row = result.row()
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, {"status": "failed", "error": _line(f"{RESULT} can't be read: {error!r}")}
        if result.diverged:
            row = {name: None if name.startswith(JUDGEMENTS) else value for name, value in row.items()}
        return result, {**row, "overrides": _texts(result.provenance.get("overrides"))}
    if (folder / FAILURE).is_file():
        try:
            failure = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
            error_line, overrides = _line(failure["error"]), _texts(failure.get("overrides"))
            stopped = from_dict(failure["stopped"]) if "stopped" in failure else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            error_line, overrides, stopped = _line(f"{FAILURE} can't be read: {error!r}"), [], None
        row = {"status": "failed", "error": error_line, "overrides": overrides}
        return None, row if stopped is None else row | {"status": "stopped", "steps": stopped.step, "stopped": stopped}
    return None, {"status": "missing"}


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list | tuple) else []


def _line(text: Any) -> str:
    return " ".join(str(text).split())


def table(rows: list[dict[str, Any]], results: Mapping[int, RunResult]) -> pd.DataFrame:
    """Rows, a job each, as a table with the types of COLUMNS, in their order.

    Further settings in which the `results` (by job) differ come before the status, times of stages before the key.
    """
    further = _further_settings(results)
    known = list(COLUMNS)
    times = list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS and name not in further))
    status, key = known.index("status"), known.index("spec_key")
    columns = {}
    for name in [*known[:status], *further, *known[status:key], *times, *known[key:]]:
        values = [further[name].get(row["job"]) if name in further else row.get(name) for row in rows]
        numbers = name in times or all(value is None or isinstance(value, float) for value in values)
        kind = COLUMNS.get(name, "float64" if numbers else "object")
        if name == "alpha":
            values, kind = _alphas(values)
        if kind == "float64":
            columns[name] = pd.Series(np.array([np.nan if v is None else v for v in values], dtype=np.float64))
        else:
            columns[name] = pd.Series(values, dtype=kind)
    return pd.DataFrame(columns)


def _further_settings(results: Mapping[int, RunResult]) -> dict[str, dict[int, Any]]:
    """Settings without a column of their own in which results differ: name -> job -> number or text."""
    told = {job: parameters_of(result) for job, result in results.items()}
    found: dict[str, dict[int, Any]] = {}
    for name in dict.fromkeys(name for facts in told.values() for name in facts):
        values: dict[int, Any] = {job: facts[name] for job, facts in told.items() if name in facts}
        if name not in COLUMNS and name not in SAME_AS_COLUMNS and len(set(values.values())) > 1:
            with contextlib.suppress(ValueError):
                values = {job: float(value) for job, value in values.items()}
            found[name] = values
    return found


def _alphas(values: list[Any]) -> tuple[list[Any], str]:
    """Numbers if all are; else text, since "rank" beside 16.0 fits no column of a parquet file."""
    if any(isinstance(value, str) for value in values):
        return [f"{v:g}" if isinstance(v, float) else v for v in values], "object"
    return values, "float64"


def join(sweeps: Sequence[Sweep]) -> Sweep:
    """All jobs of several sweeps as one, numbered anew in order; a run that several of them have counts once."""
    rows: list[dict[str, Any]] = []
    results: dict[int, RunResult] = {}
    stopped: dict[int, Stopped] = {}
    seen: set[tuple[str, str]] = set()
    for sweep in sweeps:
        for row in sweep.frame.to_dict("records"):
            result, run = sweep.results.get(row["job"]), (row["spec_key"], row["origin"])
            if result is not None and row["spec_key"] is not None:
                if run in seen:
                    continue
                seen.add(run)
            if result is not None:
                results[len(rows)] = result
            if row["job"] in sweep.stopped:
                stopped[len(rows)] = sweep.stopped[row["job"]]
            own = {str(name): value for name, value in row.items()}
            kept = {name: value for name, value in own.items() if name in COLUMNS or name.startswith("seconds_")}
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
        frame=table(rows, results),
        results=results,
        stopped=stopped,
    )
