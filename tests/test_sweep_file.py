"""python -m pytest tests/test_sweep_file.py

What a sweep and its jobs write is there whole or not at all, whatever goes wrong at whichever step.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lora_exp.errors import LoraExpError
from lora_exp.storage import sweep_file
from lora_exp.storage.leases import locked
from lora_exp.storage.sweep_file import (
    FAILURE,
    SWEEP,
    Failure,
    Stopped,
    begin_sweep,
    note,
    read_about,
    read_failure,
    write_failure,
    write_json,
    write_whole,
)


class Stop(Exception):
    """What goes wrong."""


def failing_at(line: int, write: Any) -> bool:
    """Run `write` with an error before its `line`-th line of sweep_file.py; whether it came to that."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != sweep_file.__file__:
            return None
        if event == "line" and frame.f_code.co_name in ("write_whole", "write_json"):
            seen += 1
            if seen == line:
                raise Stop
        return trace

    sys.settrace(trace)
    try:
        write()
    except Stop:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_error_before_any_line_of_a_write_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    line, outcomes = 1, set()
    while True:
        write_json(path, {"version": "old"})
        if not failing_at(line, lambda: write_json(path, {"version": "new"})):
            break
        outcomes.add(json.loads(path.read_text())["version"])
        line += 1
    assert line > 4
    assert outcomes == {"old"}
    assert json.loads(path.read_text()) == {"version": "new"}
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".tmp")] == ["sweep.json"]


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_a_write_that_fails_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_sweep_goes_on_in_its_folder_and_another_one_is_refused_there(tmp_path: Path) -> None:
    first = begin_sweep(tmp_path, "mine", [["a=1"], ["a=2"]])
    note(tmp_path, parent_run="abc")
    again = begin_sweep(tmp_path, "mine", [["a=1"], ["a=2"]])
    assert again == first | {"parent_run": "abc", "ended": None}
    for others in ([["a=1"], ["a=3"]], [["a=1"], ["a=2"], ["a=3"]], [["a=2"], ["a=1"]]):
        with pytest.raises(LoraExpError, match=r"hydra\.sweep\.dir=.*holds another sweep"):
            begin_sweep(tmp_path, "mine", others)
    assert read_about(tmp_path)["jobs"] == [["a=1"], ["a=2"]]


def test_facts_of_two_processes_are_both_in_the_record(tmp_path: Path) -> None:
    about, done = begin_sweep(tmp_path, "mine", [["a=1"]]), threading.Event()

    def other() -> None:
        note(tmp_path, parent_asked=True)
        done.set()

    with locked(tmp_path):  # as the first of them does from its reading to its writing
        threading.Thread(target=other).start()
        assert not done.wait(0.1)
        write_json(tmp_path / SWEEP, about | {"parent_run": "abc"})
    assert done.wait(60)
    assert read_about(tmp_path) == about | {"parent_run": "abc", "parent_asked": True}


def test_a_search_goes_on_with_more_trials_and_another_one_is_refused_there(tmp_path: Path) -> None:
    how = {"sampler": "tpe", "objectives": ["both_errors"], "trials": 4}
    assert begin_sweep(tmp_path, "mine", [], how)["search"] == how
    note(tmp_path, jobs=[["a=1"]])
    assert begin_sweep(tmp_path, "mine", [], how | {"trials": 9})["search"]["trials"] == 9
    assert begin_sweep(tmp_path, "mine", [], how)["search"]["trials"] == 9
    for other in (how | {"sampler": "grid"}, None):
        with pytest.raises(LoraExpError, match=r"hydra\.sweep\.dir=.*holds another sweep"):
            begin_sweep(tmp_path, "mine", [], other)
    assert read_about(tmp_path)["jobs"] == [["a=1"]]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"jobs": 3}', "{}", '"text"'])
def test_a_record_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / SWEEP).write_text(content)
    with pytest.raises(LoraExpError) as caught:
        read_about(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / SWEEP) in str(caught.value)


def test_why_a_job_was_stopped_comes_back_from_its_file(tmp_path: Path) -> None:
    for error in (0.25, math.nan):
        stopped = Stopped(10, 100, "both_errors", error, 0.125, 9)
        write_failure(tmp_path, "job", ["adapter.rank=1"], stopped)
        json.loads((tmp_path / FAILURE).read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))
        back = read_failure(tmp_path)
        assert (back.name, back.overrides, back.error) == ("job", ["adapter.rank=1"], stopped.reason)
        assert repr(back.stopped) == repr(stopped)


def test_a_failure_comes_back_from_its_file_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    write_failure(tmp_path, "job", [], Failure("no memory"))
    assert read_failure(tmp_path).error == "no memory" and read_failure(tmp_path).stopped is None
    for text in ("", "[]", "{}", '{"error": "x", "stopped": {}}', '{"error": "x", "overrides": 3}'):
        (tmp_path / FAILURE).write_text(text)
        assert read_failure(tmp_path).error.startswith(f"{FAILURE} can't be read: ")


def test_half_written_files_of_a_killed_process_are_removed_when_the_sweep_goes_on(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "3").mkdir()
    left, written, elsewhere = (
        tmp_path / "3" / f"adapter.safetensors.{of}.tmp"
        for of in (f"{platform.node()}-{ended.pid}", f"{platform.node()}-{os.getpid()}", f"another-{ended.pid}")
    )
    for path in (left, written, elsewhere):
        path.write_bytes(b"half")
    begin_sweep(tmp_path, "sweep", [["adapter.rank=1"]])
    assert [path.exists() for path in (left, written, elsewhere)] == [False, True, True]
