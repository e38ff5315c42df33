"""Errors with a one-line message for the user, and the exit code of the command line."""

from __future__ import annotations


class LoraExpError(ValueError):
    """A request that can't be carried out; the message is one line: key and value, what is allowed, what to do."""

    exit_code = 2


class JobsFailed(LoraExpError):
    """Jobs that failed or diverged; the message is one line."""

    exit_code = 1


def reason(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
