"""python -m pytest tests/test_interruptions.py: Ctrl-C, `kill` and the end of the terminal, however they come."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# The command line with other work to do; `lora_exp` is loaded, and nothing of Hydra.
START = """
import os, signal, sys, threading, time
from lora_exp import __main__ as command_line

class Careless:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)  # Python ignores what is raised here
        time.sleep(0.1)

def work(arguments):
"""
END = """
command_line._do = work
command_line.main()
"""
SWALLOWED = {
    "in a finalizer": "Careless(); print('went on'); time.sleep(60)",
    "by a library": (
        "try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\n    except BaseException: pass\n"
        "    print('went on'); time.sleep(60)"
    ),
}


@pytest.mark.parametrize("work", SWALLOWED.values(), ids=SWALLOWED.keys())
def test_an_interruption_that_is_swallowed_comes_again(work: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{START}    {work}{END}"], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (130, "went on\n")
    assert done.stderr.splitlines()[-1].startswith("lora-exp: interrupted; finished jobs are kept")


def test_an_orderly_end_is_not_interrupted_again() -> None:
    work = (
        "try: os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "    finally: time.sleep(3.5); print('in order', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", f"{START}    {work}{END}"], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (130, "in order\n")


def test_when_an_orderly_end_takes_too_long_the_next_signal_ends_it_at_once() -> None:
    work = (
        "command_line.SECONDS_TO_END = 1.0\n"
        "    try: print('begun', flush=True); time.sleep(60)\n"
        "    finally: print('ending', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{START}    {work}{END}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)  # too early, so it waits for the end
    time.sleep(1.5)  # more than SECONDS_TO_END
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 130
    process.stdout.close()
