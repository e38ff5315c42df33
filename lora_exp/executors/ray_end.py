"""`python -m lora_exp.executors.ray_end SESSION`: clear away a Ray of this machine when its sweep ends or is killed.

Ray's own processes end with the one that started them, but for two agents, and its folder of a session stays.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import psutil


def cleared_at_the_end(session: str) -> subprocess.Popen[bytes]:
    """Start a process that waits until this one ends, or closes its standard input, and then clears `session` away."""
    return subprocess.Popen(
        [sys.executable, "-m", "lora_exp.executors.ray_end", session],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C, and the end of the terminal, are not for it
    )


def clear(session: Path) -> None:
    """End the processes that belong to the session, and remove its folder."""
    for process in psutil.process_iter():
        # All that Ray starts names the session's folder among its arguments.
        with contextlib.suppress(psutil.Error):
            if process.pid != psutil.Process().pid and any(str(session) in one for one in process.cmdline()):
                process.kill()
    shutil.rmtree(session, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clear(Path(sys.argv[1]))
