"""Errors with a one-line message for the user, and the exit code of the command line."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# No space on the disk, none in the quota, or a file larger than this process may write.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "what is finished is kept; make room (lora-exp store prune) and run the same command again to go on"


class LoraExpError(ValueError):
    """A request that can't be carried out; the message is one line: key and value, what is allowed, what to do."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class JobsFailed(LoraExpError):
    """Jobs that failed or diverged; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


def explained(error: LoraExpError | OSError) -> LoraExpError:
    """Return the error of one line for an OSError; its exit code is 1 where only the disk is full."""
    if isinstance(error, LoraExpError):
        return error
    line = f"{error.filename or 'a file'}: {error.strerror or error}"
    if error.errno not in DISK_FULL:
        return LoraExpError(line)
    hint = "" if error.strerror and ";" in error.strerror else f"; {MAKE_ROOM}"
    return LoraExpError(f"{line}{hint}", 1)


def reason(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


def in_words(error: BaseException) -> str:
    """What an exception says about a file's content, in one line without Python's notation."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return " ".join(str(error).split()) or type(error).__name__


def closest(given: str, names: Iterable[str]) -> list[str]:
    """The one name that is most like a mistyped one; none where none is like it."""
    return difflib.get_close_matches(given, list(names), 1)


def did_you_mean(names: Sequence[str]) -> str:
    """The end of a message on a mistyped name, with the names that may have been meant; empty where there are none."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def installing(extra: str) -> str:
    """How the libraries of one of the package's extras are installed; the package itself is in no index."""
    return f"in the checkout of lora-exp: pip install -e '.[{extra}]'"


@contextlib.contextmanager
def writable_folder(key: str, folder: Path) -> Iterator[None]:
    """Make the folder that a setting names. An OSError then or in the block becomes a LoraExpError with its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise LoraExpError(f"{key}={folder}: must be a folder that can be written to ({error.strerror})") from error
