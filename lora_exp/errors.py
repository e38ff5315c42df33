"""Errors with a one-line message for the user, and the exit code of the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class LoraExpError(ValueError):
    """A request that can't be carried out; the message is one line: key and value, what is allowed, what to do."""

    exit_code = 2


class JobsFailed(LoraExpError):
    """Jobs that failed or diverged; the message is one line."""

    exit_code = 1


def reason(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


@contextlib.contextmanager
def writable_folder(key: str, folder: Path) -> Iterator[None]:
    """Make the folder that a setting names. An OSError then or in the block becomes a LoraExpError with its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise LoraExpError(f"{key}={folder}: must be a folder that can be written to ({error.strerror})") from error
