"""The files `sweep.json`, on a sweep and its jobs, and `failure.json`, on why a job has no result; a job's command.

Each file is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import math
import os
import platform
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_exp.errors import LoraExpError, in_words, writable_folder
from lora_exp.storage.leases import locked
from lora_exp.storage.ownership import signature
from lora_exp.storage.schema import conform, parsed

SWEEP, FAILURE, LOCK = "sweep.json", "failure.json", "sweep.lock"
VERDICT = "verdict.md"  # of a contest, in a few sentences


@dataclass(frozen=True)
class Failure:
    """Why a job failed, in one line."""

    error: str


@dataclass(frozen=True)
class Stopped:
    """A job that halving stopped after `step` of `steps` steps.

    `error` is its validation error and `limit` the highest of the jobs that went on, rates from 0 to 1. `rivals`
    counts the jobs that competed, itself included.
    """

    step: int
    steps: int
    objective: str
    error: float
    limit: float
    rivals: int

    @property
    def reason(self) -> str:
        """Why it was stopped, in one line."""
        measured = "diverged" if math.isnan(self.error) else f"{100 * self.error:.2f} %"
        return (
            f"stopped after {self.step} of {self.steps} steps: its validation {self.objective.replace('_', ' ')} "
            f"({measured}) was not among the lowest of {self.rivals} jobs, up to {100 * self.limit:.2f} %"
        )


@dataclass(frozen=True)
class FailedJob:
    """The content of `failure.json`: the job's name and overrides, and why it has no result."""

    name: str
    overrides: list[str]
    error: str
    stopped: Stopped | None = None


def begin_sweep(
    folder: Path,
    name: str,
    jobs: Sequence[Sequence[str]],
    search: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    contest: str | None = None,
) -> dict[str, Any]:
    """Write `sweep.json`, unless it exists, with the command, its folder and each job's overrides; return its content.

    `presets` is the argument that names a folder of one's own presets, which every job needs. What `sweep.json` says
    of an earlier end is removed, and so are the half-written files of killed processes. A search and a contest begin
    without jobs; `search` holds the settings of a search, which may go on with more trials than it had, and `contest`
    the hash of a contest's protocol.
    Raises LoraExpError when the folder holds a sweep of other jobs, or another search or contest.
    """
    path, planned = folder / SWEEP, [list(overrides) for overrides in jobs]
    remove_half_written(folder)
    if path.exists():
        about = read_about(folder)
        if about.get("contest") != contest and None not in (about.get("contest"), contest):
            raise LoraExpError(
                f"hydra.sweep.dir={folder}: holds a contest with another protocol, which is another contest; choose "
                "another folder"
            )
        is_same = about.get("contest") == contest and _is_same_search(about.get("search"), search)
        if about["jobs"][: len(planned)] != planned or not is_same:
            raise LoraExpError(f"hydra.sweep.dir={folder}: holds another sweep, of other jobs; choose another folder")
        if search is None:
            return note(folder, ended=None)
        trials = max(search["trials"], about["search"]["trials"])
        return note(folder, ended=None, search={**search, "trials": trials})
    about = {
        "name": name,
        "command": shlex.join(["lora-exp", *(sys.argv[1:] if contest is None else _of_contest(sys.argv[1:]))]),
        "arguments": sys.argv[1:],
        "directory": str(Path.cwd()),
        "place": _place(folder),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ticket": uuid.uuid4().hex,
        "parent_run": None,
        "jobs": planned,
        "presets": list(presets),
        **({} if search is None else {"search": dict(search)}),
        **({} if contest is None else {"contest": contest}),
    }
    about |= {"signature": signature(about)}
    write_json(path, about)
    return about


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A block in which no other process works on the sweep in `folder`. Raises LoraExpError when one does.

    So it does when there is a symbolic link in the folder: what is written there would change a file elsewhere.
    Takes a record lock, which ends with this process, whatever ends it. Forked processes don't inherit it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise LoraExpError(f"{path}: is a symbolic link, which is not followed; remove it, or put a copy there")
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            who = " ".join(file.read(100).split()) or "another process"
            raise LoraExpError(f"{folder}: {who} works on this sweep; wait until it ends, or end it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _of_contest(arguments: Sequence[str]) -> list[str]:
    """The arguments of a contest as a user types them, instead of as the application gets them."""
    return ["contest", *(one for one in arguments if one not in ("-m", "--multirun", "hydra/sweeper=contest"))]


def _is_same_search(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether both have the same settings but for the number of trials, or neither is a search."""
    if one is None or other is None:
        return one is other
    return {**one, "trials": 0} == {**other, "trials": 0}


def start_folder(folder: Path, about: Mapping[str, Any]) -> Path:
    """The working folder that a sweep was started in, where it is now: it may have been moved with the sweep in it.

    `folder` is that of the sweep, `about` what its `sweep.json` says.
    """
    was, place = Path(str(about["directory"])), about.get("place")
    if place is None and was.is_dir():  # an older record, or a folder that was not below the working folder
        return was
    parts = Path(place or Path(*folder.parts[-3:])).parts  # by default runs/DATE/TIME
    if folder == was.joinpath(*parts) or folder.parts[-len(parts) :] != parts:
        return was
    return Path(*folder.parts[: -len(parts)])


def _place(folder: Path) -> str | None:
    """Where a sweep's folder is below the working folder, if it is."""
    whole = folder.absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else None


def read_about(folder: Path) -> dict[str, Any]:
    """Read `sweep.json`. Raises LoraExpError when there is none or it can't be read."""
    path = folder / SWEEP
    try:
        about = parsed(path.read_text(encoding="utf-8"))
        about["jobs"] = [[str(override) for override in job] for job in about["jobs"]]
        about["presets"] = [str(argument) for argument in about.get("presets", [])]
    except FileNotFoundError as error:
        raise LoraExpError(f"{folder}: holds no {SWEEP}, so it is not the folder of a sweep") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoraExpError(f"{path}: is not the record of a sweep ({type(error).__name__}: {error})") from error
    return dict(about)


def note(folder: Path, **facts: Any) -> dict[str, Any]:
    """Put facts into `sweep.json`; what it says then. Processes that do so at the same time wait for each other."""
    with locked(folder):
        about = read_about(folder) | facts
        write_json(folder / SWEEP, about)
        return about


def end_sweep(folder: Path, status: str, report: Path | None) -> None:
    """Note how a sweep ended (FINISHED, FAILED or KILLED), when (ms since 1970), and where its report is."""
    note(folder, ended={"status": status, "report": report and str(report), "time": time.time_ns() // 10**6})


def add_job(folder: Path, overrides: Sequence[str]) -> None:
    """Add a job, whose folder is there already, to `sweep.json`."""
    note(folder, jobs=[*read_about(folder)["jobs"], list(overrides)])


def run_command(overrides: str) -> str:
    """Return the command that runs a job with these (shell-quoted) overrides alone, without the settings of a report.

    A preset may be a sweep, hence `hydra.mode=RUN`. The overrides of an imported adapter begin with `import`.
    """
    own = [override for override in shlex.split(overrides) if not override.startswith("report.")]
    if own[:1] != ["import"] and any(override.startswith("experiment=") for override in own):
        own.append("hydra.mode=RUN")
    return shlex.join(["lora-exp", *own])


def check_report_place(out: Path) -> None:
    """Raise LoraExpError when `out` holds something that is not a report, or can't be written to."""
    with writable_folder("report.folder", out.parent):
        if out.exists() and not (out / "report.md").is_file() and (not out.is_dir() or any(out.iterdir())):
            raise LoraExpError(f"{out}: exists and is not a report; choose another folder or remove it")
        with tempfile.TemporaryFile(dir=out.parent):
            pass


def write_failure(folder: Path, name: str, overrides: Sequence[str], why: Failure | Stopped) -> None:
    """Write `failure.json` for a job that failed or that halving stopped."""
    error, more = (why.error, {}) if isinstance(why, Failure) else (why.reason, {"stopped": _to_json(why)})
    write_json(folder / FAILURE, {"name": name, "error": error, "overrides": list(overrides), **more})


def read_failure(folder: Path) -> FailedJob:
    """Read `failure.json`; one that can't be read becomes a failure that says so."""
    try:
        values = parsed((folder / FAILURE).read_text(encoding="utf-8"))
        stopped = _from_json(values["stopped"]) if "stopped" in values else None
        conform(stopped, Stopped | None, "stopped")
        overrides = [str(override) for override in values.get("overrides") or []]
        error = " ".join(str(values["error"]).split())
        return FailedJob(str(values.get("name", folder.name)), overrides, error, stopped)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as damage:
        return FailedJob(folder.name, [], f"{FAILURE} can't be read: {in_words(damage)}")


def _to_json(stopped: Stopped) -> dict[str, Any]:
    """Its fields; NaN becomes null."""
    values = dataclasses.asdict(stopped)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _from_json(values: Mapping[str, Any]) -> Stopped:
    """Raises KeyError or TypeError for other values than those that `_to_json` makes."""
    numbers = {name: math.nan if values[name] is None else float(values[name]) for name in ("error", "limit")}
    return Stopped(**{**values, **numbers})


def remove_half_written(folder: Path) -> None:
    """Remove what `write_whole` left in a folder, or below it, when its process, on this machine, was killed."""
    for path in folder.rglob("*.tmp"):
        _, marker, process = path.stem.rpartition(f".{platform.node()}-")
        if marker and process.isdigit() and not _is_alive(int(process)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    with contextlib.suppress(PermissionError):  # it is alive, and somebody else's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError, with the name of the file."""
    temporary = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write names none
            error.filename = str(path)
        raise
