"""What a process that this one starts may keep of it, and how it ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

INTERRUPTIONS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # Ctrl-C, `kill`, the end of the terminal
PR_SET_PDEATHSIG = 1  # of Linux's prctl


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Take interruptions at the end of the block.

    Python ignores what a signal's handler raises while it runs the functions that were registered for a fork, so an
    interruption at that moment would be lost. To block the signals in this thread would not help: another takes them.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread alone
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda which, _: came.append(which)) for number in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for which in came:
            signal.raise_signal(which)


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """In a child: end without a word, by that signal, when `parent`, its process, ends, whatever ends that.

    Ctrl-C, and the end of the terminal, are the parent's matter.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.platform == "linux":  # elsewhere it ends when it next reads or writes
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def let_go(kept: set[int]) -> None:
    """In a fork: put the null device in the place of every descriptor of the parent but those.

    A pipe that a fork holds open too never ends, and a lock is held until the last process that has its descriptor
    ends. Closed numbers would be used anew, while objects that the fork has of its parent still refer to them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, *map(int, os.listdir("/dev/fd"))} - {*kept, null}:  # noqa: PTH208 - the numbers are names
        os.dup2(null, descriptor, inheritable=False)
