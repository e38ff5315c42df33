"""Folders that a process leases for as long as it lives.

The process holds a lock (`flock`) on its folder, and the kernel releases the locks of a process that is killed. So a
folder without a lock was left by a dead process; process numbers, which are used again, don't matter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# Some network file systems hide the locks of other machines, so a folder of another machine counts as held for a day.
SECONDS_FOR_OTHER_MACHINES = 86_400.0


@contextlib.contextmanager
def leased_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for this process alone; removed at the end of the block, unless moved elsewhere.

    Raises OSError when it can't be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{platform.node()}-{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        with locked(parent):  # so that no process sees the folder before it is locked
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder))
        yield folder


def held_and_abandoned(parent: Path) -> tuple[list[Path], list[Path]]:
    """The folders in `parent` that running processes lease, and whatever else lies there.

    Both are empty when `parent` doesn't exist. Raises OSError when it can't be read.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    if parent.is_dir():
        with locked(parent):
            for path in sorted(parent.iterdir()):
                found[0 if _is_held(path) else 1].append(path)
    return found


def remove_abandoned(parent: Path) -> None:
    """Remove what dead processes left in `parent`."""
    for path in held_and_abandoned(parent)[1]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `path`. Without `wait`, raises BlockingIOError when another process holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    try:
        with locked(path, wait=False):
            own = path.name.rpartition("-")[0] == platform.node()
            return not own and time.time() - path.stat().st_mtime < SECONDS_FOR_OTHER_MACHINES
    except (BlockingIOError, FileNotFoundError):  # not found: its process ended just now
        return True
