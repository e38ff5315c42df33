"""The sweeps in a folder."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT
from lora_exp.storage.sweep_file import FAILURE, SWEEP, read_about, read_failure

log = logging.getLogger(__name__)

STATUSES = ("finished", "diverged", "stopped", "failed", "missing")
HAS_ERRORS = re.compile(rb'"diverged_at": *null')


def list_sweeps(folder: str | Path = "runs") -> pd.DataFrame:
    """The sweeps below `folder`, the newest first: when they started, jobs by status, command, and folder, one a row.

    Their results are not read: `load_sweep` does that. Raises LoraExpError for a folder that does not exist.
    """
    if not Path(folder).is_dir():
        raise LoraExpError(f"{folder}: no such folder; by default sweeps are in runs, below where they were started")
    rows = []
    for path in sorted(Path(folder).absolute().rglob(SWEEP)):
        try:
            about = read_about(path.parent)
        except LoraExpError as error:
            log.warning("%s", error)
            continue
        statuses = Counter(_status(path.parent / str(job)) for job in range(len(about["jobs"])))
        rows.append(
            {
                "started": str(about.get("started", "")),
                "name": str(about.get("name", path.parent.name)),
                "jobs": len(about["jobs"]),
                **{status: statuses[status] for status in STATUSES},
                "command": str(about.get("command", "")),
                "folder": str(path.parent),
            }
        )
    rows.sort(key=lambda row: str(row["started"]), reverse=True)
    columns = ["started", "name", "jobs", *STATUSES, "command", "folder"]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("jobs", *STATUSES), "int64"))
    return frame.assign(started=pd.to_datetime(frame["started"], utc=True, errors="coerce", format="ISO8601"))


def _status(job: Path) -> str:
    """What became of a job, from the files in its folder."""
    try:
        return "finished" if HAS_ERRORS.search((job / RESULT).read_bytes()) else "diverged"
    except OSError:
        pass
    if (job / FAILURE).is_file():
        return "stopped" if read_failure(job).stopped else "failed"
    return "missing"
