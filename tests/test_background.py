"""python -m pytest tests/test_background.py

A process beside the launching one: order, errors, its own death and that of the launching process.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lora_exp.errors import LoraExpError
from lora_exp.sweeps.background import GRACE, STARTS, Background

LAUNCHING = """
import sys
from lora_exp.sweeps.background import Background

background = Background("lora_exp.sweeps.records:Reports", "matplotlib")
background.start()
print(background._process, flush=True)
sys.stdin.read()
"""


class Target:
    """What the process calls; it notes requests in a file, and dies at some of them."""

    def load(self) -> None:
        """Has nothing to import."""

    def begin(self, folder: str) -> None:
        self.folder = Path(folder)

    def note(self, text: str) -> str:
        with (self.folder / "notes.txt").open("a") as file:
            file.write(f"{text}\n")
        logging.getLogger("lora_exp.test").warning("noted %s", text)
        return f"noted {text}"

    def die(self, once: bool) -> None:
        marker = self.folder / "died"
        if not (once and marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def wait_for(self, name: str) -> None:
        while not (self.folder / name).exists():
            time.sleep(0.01)

    def refuse(self) -> None:
        raise LoraExpError("digit=12: must be from 0 to 9", 2)

    def fill_the_disk(self) -> None:
        raise OSError(28, "No space left on device", "/full")

    def slip(self) -> None:
        raise KeyError("a mistake")

    close = begin


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    """A fork, since its library is loaded, that has begun in `tmp_path`."""
    one = Background(f"{__name__}:Target", "pytest")
    one.ask_first("begin", folder=str(tmp_path))
    yield one
    one.stop()


def notes(folder: Path) -> list[str]:
    return (folder / "notes.txt").read_text().split()


def test_requests_are_carried_out_in_their_order_and_the_last_answer_comes_back(
    background: Background, tmp_path: Path
) -> None:
    for number in range(200):
        background.ask("note", text=str(number))
    assert background.finish() == "noted 199"
    assert notes(tmp_path) == [str(number) for number in range(200)]


def test_its_log_is_the_launching_processs(background: Background, caplog: pytest.LogCaptureFixture) -> None:
    background.ask("note", text="this")
    background.finish()
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("lora_exp.test", "WARNING", "noted this")
    ]


@pytest.mark.parametrize(
    ("request_", "error", "code"), [("refuse", "digit=12", 2), ("fill_the_disk", "/full: No space left on device", 1)]
)
def test_an_error_is_raised_by_finish_and_what_was_asked_later_is_done(
    background: Background, tmp_path: Path, request_: str, error: str, code: int
) -> None:
    background.ask(request_)
    background.ask("note", text="later")
    with pytest.raises(LoraExpError, match=error) as raised:
        background.finish()
    assert raised.value.exit_code == code
    assert notes(tmp_path) == ["later"]
    assert background.finish() is None


def test_a_mistake_in_the_program_is_no_error_of_the_user(background: Background) -> None:
    background.ask("slip")
    with pytest.raises(RuntimeError, match="a mistake"):
        background.finish()


def test_a_killed_process_is_started_again_and_carries_out_what_was_left(
    background: Background, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    background.ask("note", text="before")
    background.ask("die", once=True)
    background.ask("note", text="after")
    assert background.finish() == "noted after"
    assert notes(tmp_path) == ["before", "after"]
    assert [r.getMessage() for r in caplog.records if "started again" in r.getMessage()]


def test_a_request_that_always_kills_it_is_given_up(background: Background) -> None:
    background.ask("die", once=False)
    with pytest.raises(LoraExpError, match=f"ended {STARTS} times") as raised:
        background.finish()
    assert raised.value.exit_code == 1


def test_an_urgent_request_drops_those_before_it_that_are_not_carried_out_soon(
    background: Background, tmp_path: Path
) -> None:
    background.ask("note", text="first")
    background.finish()
    background.ask("wait_for", name="go on")
    background.ask("note", text="kept")
    background.ask("wait_for", name="later")
    for _ in range(50):
        background.ask("note", text="dropped")
    background.ask("close", folder=str(tmp_path))
    (tmp_path / "go on").touch()
    while notes(tmp_path) != ["first", "kept"]:
        time.sleep(0.01)
    time.sleep(GRACE)
    (tmp_path / "later").touch()
    background.finish()
    assert notes(tmp_path) == ["first", "kept"]


def test_it_ends_when_the_launching_process_is_killed() -> None:
    launching = subprocess.Popen([sys.executable, "-c", LAUNCHING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert launching.stdout is not None
    process = psutil.Process(int(launching.stdout.readline()))
    launching.kill()
    launching.communicate()
    assert psutil.wait_procs([process], timeout=60)[1] == []


def test_a_fork_holds_open_nothing_that_its_parent_has_open(background: Background, tmp_path: Path) -> None:
    background.stop()
    reading, writing = os.pipe()
    background.ask_first("begin", folder=str(tmp_path))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == ""  # the fork does not keep the pipe from ending
    background.ask("note", text="alive")
    assert background.finish() == "noted alive"
