"""What a sweep and its jobs write about themselves: `sweep.json` and `failure.json`."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SWEEP, FAILURE = "sweep.json", "failure.json"


def begin_sweep(folder: Path, name: str, command: str, jobs: Sequence[Sequence[str]], parent: str | None) -> None:
    """Write `sweep.json`: what was asked, the overrides of each job, and the MLflow parent run."""
    about = {
        "name": name,
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parent_run": parent,
        "jobs": [list(overrides) for overrides in jobs],
    }
    _write(folder / SWEEP, about)


def parent_run(sweep_folder: Path) -> str | None:
    """The MLflow parent run of a sweep; None where there is none."""
    try:
        found = json.loads((sweep_folder / SWEEP).read_text(encoding="utf-8")).get("parent_run")
    except (OSError, ValueError):
        return None
    return str(found) if found else None


def failure_of(folder: Path, error: str, overrides: Sequence[str]) -> None:
    """Write `failure.json`: why a job has no result."""
    _write(folder / FAILURE, {"error": error, "overrides": list(overrides)})


def command_line() -> str:
    """The command as the user could type it again."""
    return shlex.join(["lora-exp", *sys.argv[1:]])


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
