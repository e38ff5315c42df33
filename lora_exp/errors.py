"""What a user is told when something can't be done: one line, and the exit code of the command line."""

from __future__ import annotations


class LoraExpError(ValueError):
    """Something can't be done as asked; the message is one line: key and value, what is allowed, what to do."""

    exit_code = 2


class JobsFailed(LoraExpError):
    """Jobs ended without a sound result; the message is one line."""

    exit_code = 1


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
