"""Folders that belong to a process for as long as it lives.

Such a folder is locked by its process (`flock`), and the kernel lets go of the locks of a process that is killed:
so what a dead process left is told from what a living one is busy with, without trusting process numbers.
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

# The lock of a process on another machine can't be seen on every network file system: its folder gets a day.
PATIENCE_WITH_OTHERS = 86_400.0


@contextlib.contextmanager
def living_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that is this process's own; removed at the end of the block, unless moved elsewhere.

    Raises OSError when it can't be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{platform.node()}-{uuid.uuid4().hex}"
    with contextlib.ExitStack() as held:
        with _locked(parent):  # so that nobody sees it before it is locked
            folder.mkdir()
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            held.enter_context(_locked(folder))
        yield folder


def alive_and_abandoned(parent: Path) -> tuple[list[Path], list[Path]]:
    """What lies in `parent`: folders of living processes, and whatever dead ones left.

    Raises OSError when `parent` can't be read; one that isn't there has nothing in it.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    if parent.is_dir():
        with _locked(parent):
            for path in sorted(parent.iterdir()):
                found[0 if _is_alive(path) else 1].append(path)
    return found


def remove_abandoned(parent: Path) -> None:
    """Remove what dead processes left in `parent`."""
    for path in alive_and_abandoned(parent)[1]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError when the lock is held elsewhere, unless told to wait."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _is_alive(path: Path) -> bool:
    try:
        with _locked(path, wait=False):
            own = path.name.rpartition("-")[0] == platform.node()
            return not own and time.time() - path.stat().st_mtime < PATIENCE_WITH_OTHERS
    except FileNotFoundError:  # finished just now
        return True
    except BlockingIOError:
        return True
