"""pytest tests/test_data_decoding.py"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lora_exp
from lora_exp.data import decoding, folder
from lora_exp.data.decoding import Encoded
from lora_exp.data.decoding import test_side as is_test
from lora_exp.data.raw import Wanted
from lora_exp.errors import LoraExpError

PROGRAM = """
import sys
from pathlib import Path
from lora_exp.data import decoding, folder
from lora_exp.data.raw import Wanted
decoding.WORTH_A_POOL = 0
decoding._cores = lambda: 2
if __name__ == '__main__':
    print(len(folder.read(Path(sys.argv[1]), Wanted()).train.labels))
"""


def draw(root: Path, count: int) -> Path:
    """Pictures of three classes, without a split."""
    for at in range(count):
        (root / str(at % 3)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(at).integers(0, 256, (6, 5, 3), np.uint8)
        Image.fromarray(pixels).save(root / str(at % 3) / f"{at:05}.png")
    return root


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sets are worth two processes."""
    monkeypatch.setattr(decoding, "WORTH_A_POOL", 0)
    monkeypatch.setattr(decoding, "_cores", lambda: 2)


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """A program of its own that reads `tmp_path/set` with two processes."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "set")],
        env=os.environ | {"PYTHONPATH": str(Path(lora_exp.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("two_processes")
def test_two_processes_read_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, 400)
    several = folder.read(tmp_path, Wanted())
    monkeypatch.setattr(decoding, "_cores", lambda: 1)
    alone = folder.read(tmp_path, Wanted())
    for one, other in ((several.train, alone.train), (several.test, alone.test)):
        assert (one.images == other.images).all() and (one.labels == other.labels).all()


@pytest.mark.usefixtures("two_processes")
def test_what_is_wrong_in_another_process_is_said_here(tmp_path: Path) -> None:
    draw(tmp_path, 300)
    (tmp_path / "1" / "bad.png").write_text("text")
    with pytest.raises(LoraExpError, match=r"bad\.png: is no image"):
        folder.read(tmp_path, Wanted())
    assert folder.read(tmp_path, Wanted(skip_bad=True)).skipped == 1
    Image.new("RGB", (9, 9)).save(tmp_path / "1" / "bad.png")
    with pytest.raises(LoraExpError, match=r"data\.size: the pictures differ in size"):
        folder.read(tmp_path, Wanted())
    for file in tmp_path.rglob("*.png"):
        Image.open(file).convert("L").resize((6, 5)).save(file)
    Image.new("RGB", (6, 5), (1, 2, 3)).save(tmp_path / "2" / "colour.png")
    assert folder.read(tmp_path, Wanted()).train.images.shape[1] == 3


@pytest.mark.usefixtures("two_processes")
def test_an_error_ends_the_processes_though_it_is_kept(tmp_path: Path) -> None:
    draw(tmp_path, 300)
    (tmp_path / "0" / "bad.png").write_text("text")
    with pytest.raises(LoraExpError) as kept:
        folder.read(tmp_path, Wanted())
    assert kept.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


def test_a_program_is_read_in_by_its_processes_without_a_word(tmp_path: Path) -> None:
    draw(tmp_path / "set", 200)
    program = start(tmp_path)
    said, errors = program.communicate()
    assert (program.returncode, errors) == (0, "")
    assert 120 < int(said) < 200


def test_an_interruption_ends_the_processes_too(tmp_path: Path) -> None:
    draw(tmp_path / "set", 60)
    for link in range(40_000):
        os.link(tmp_path / "set" / "0" / f"{link % 20 * 3:05}.png", tmp_path / "set" / "1" / f"more {link}.png")
    program = start(tmp_path)
    deadline = time.monotonic() + 60
    children: list[str] = []
    while len(children) < 3 and time.monotonic() < deadline:  # both, and multiprocessing's own
        time.sleep(0.1)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert len(children) >= 3
    program.send_signal(signal.SIGINT)
    started = time.monotonic()
    program.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert program.returncode == -signal.SIGINT
    time.sleep(0.5)
    alive = [child for child in children if Path(f"/proc/{child}/cmdline").exists()]
    assert [child for child in alive if Path(f"/proc/{child}/cmdline").read_bytes()] == []


def end_this_process(chunk: Sequence[Encoded]) -> None:
    """Stands for what decodes, in a process that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_one_line() -> None:
    chunks = [[Encoded("0.png", "0.png", 0, b"")]] * 5
    with pytest.raises(LoraExpError, match="a process that decodes pictures was killed; is there enough memory"):
        list(decoding._on_cores(end_this_process, chunks, 2))


def test_the_side_of_a_picture_is_drawn_by_its_content_and_name() -> None:
    sides = [is_test(b"content", f"{at}.png", 0.25) for at in range(4000)]
    assert 900 < sum(sides) < 1100
    assert sides == [is_test(b"content", f"{at}.png", 0.25) for at in range(4000)]
    assert [at for at in range(4000) if is_test(b"content", f"{at}.png", 0.1) and not sides[at]] == []
    assert sides != [is_test(b"other", f"{at}.png", 0.25) for at in range(4000)]
