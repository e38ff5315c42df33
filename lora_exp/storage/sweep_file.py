"""What a sweep and its jobs write about themselves: `sweep.json` and `failure.json`, each whole or not there."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_exp.errors import LoraExpError

SWEEP, FAILURE = "sweep.json", "failure.json"


def begin_sweep(
    folder: Path, name: str, jobs: Sequence[Sequence[str]], search: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `sweep.json` says, written where there is none yet: what was asked, where, and each job's overrides.

    A search begins without jobs, and `search` tells how it searches; it may go on with more trials than it had.
    Raises LoraExpError when the folder holds a sweep of other jobs, or another search.
    """
    path, asked = folder / SWEEP, [list(overrides) for overrides in jobs]
    if path.exists():
        about = read_about(folder)
        if about["jobs"][: len(asked)] != asked or not _is_same_search(about.get("search"), search):
            raise LoraExpError(f"hydra.sweep.dir={folder}: holds another sweep, of other jobs; choose another folder")
        if search is not None:
            return note(folder, search={**search, "trials": max(search["trials"], about["search"]["trials"])})
        return about
    about = {
        "name": name,
        "command": shlex.join(["lora-exp", *sys.argv[1:]]),
        "arguments": sys.argv[1:],
        "directory": str(Path.cwd()),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ticket": uuid.uuid4().hex,
        "parent_run": None,
        "jobs": asked,
        **({} if search is None else {"search": dict(search)}),
    }
    write_json(path, about)
    return about


def _is_same_search(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether both search alike, however many trials they have, or neither is a search."""
    if one is None or other is None:
        return one is other
    return {**one, "trials": 0} == {**other, "trials": 0}


def read_about(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says. Raises LoraExpError, of one line, when there is none that can be read."""
    path = folder / SWEEP
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        about["jobs"] = [[str(override) for override in job] for job in about["jobs"]]
    except FileNotFoundError as error:
        raise LoraExpError(f"{folder}: holds no {SWEEP}, so it is not the folder of a sweep") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoraExpError(f"{path}: is not the record of a sweep ({type(error).__name__}: {error})") from error
    return dict(about)


def note(folder: Path, **facts: Any) -> dict[str, Any]:
    """Put facts into `sweep.json`; what it says then."""
    about = read_about(folder) | facts
    write_json(folder / SWEEP, about)
    return about


def end_sweep(folder: Path, status: str, report: Path | None) -> None:
    """Put down how a sweep ended (FINISHED, FAILED or KILLED), when (ms since 1970), and where its report is."""
    note(folder, ended={"status": status, "report": report and str(report), "time": time.time_ns() // 10**6})


def add_job(folder: Path, overrides: Sequence[str]) -> None:
    """Enter one more job, whose files lie in its folder already, into `sweep.json`."""
    note(folder, jobs=[*read_about(folder)["jobs"], list(overrides)])


def check_report_place(out: Path) -> None:
    """Raise LoraExpError when `out` holds something that is not a report, or can't be made."""
    try:
        if out.exists() and not (out / "report.md").is_file() and (not out.is_dir() or any(out.iterdir())):
            raise LoraExpError(f"{out}: is there already and is not a report; name another folder or remove it")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise LoraExpError(
            f"report.folder={out.parent}: must be a folder that can be written to ({error.strerror})"
        ) from error


def parent_run(sweep_folder: Path) -> str | None:
    """The MLflow parent run of a sweep; None where there is none."""
    try:
        found = read_about(sweep_folder).get("parent_run")
    except LoraExpError:
        return None
    return str(found) if found else None


def failure_of(
    folder: Path, name: str, error: str, overrides: Sequence[str], stopped: dict[str, Any] | None = None
) -> None:
    """Write `failure.json`: why a job has no result; `stopped` tells when and why halving stopped it."""
    more = {} if stopped is None else {"stopped": stopped}
    write_json(folder / FAILURE, {"name": name, "error": error, "overrides": list(overrides), **more})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
