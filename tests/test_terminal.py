"""python -m pytest tests/test_terminal.py: what a sweep tells a terminal, and what it tells a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import made_results as made
import pytest
from places import QUICK, prepared

from lora_exp.model.data import ImageData
from lora_exp.report.terminal import next_text
from lora_exp.storage.sweep_folder import read_sweep

LOG = re.compile(r"\d\d:\d\d:\d\d (starting; |training base |pack \d of \d: |class \d lora rank )")
FEW = made.pictures_and_labels()[1][:500]
PRINT = "import sys; from lora_exp.storage.sweep_folder import read_sweep; "
PRINT += "from lora_exp.report.terminal import sweep_text; "
PRINT += "print(sweep_text(read_sweep(sys.argv[1]).frame, sys.stdout.isatty()), end='')"


def test_a_terminal_gets_colours_and_a_pipe_gets_the_same_text_without(tmp_path: Path) -> None:
    runs = [made.made_run(FEW, rank=1), "no memory", made.made_run(FEW, rank=2)]
    folder = made.write_sweep(tmp_path / "sweep", runs)
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-c", PRINT, str(folder)]
    shown = subprocess.Popen(command, stdout=theirs, env=environment | {"TERM": "xterm-256color"})
    os.close(theirs)
    told = b""
    try:
        while part := os.read(ours, 65536):
            told += part
    except OSError:  # the other end is closed
        pass
    assert shown.wait() == 0
    piped = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    text = told.decode().replace("\r\n", "\n")
    assert "\x1b[32m" in text and "\x1b[31m" in text and "\x1b[1m" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == piped
    assert "\x1b" not in piped and "job 1" in piped and "no memory" in piped


def on_screen(told: bytes) -> list[str]:
    """The lines that a terminal shows of this output: a carriage return goes back, and what follows overwrites."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*[mK]", "", told.decode()).replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.parametrize("verbose", [False, True])
def test_log_lines_stand_above_the_progress_bar_one_for_each_pack(
    tmp_path: Path, data_root: Path, mnist: ImageData, verbose: bool
) -> None:
    place = prepared(tmp_path, data_root)
    swept = ("adapter.rank=1,2", "finetune.digit=range(0,5)", "finetune.steps=5,6", "tracking=off", "device.threads=1")
    command = [
        sys.executable,
        "-m",
        "lora_exp",
        "-m",
        *QUICK,
        *swept,
        *(["hydra.verbose=[lora_exp]"] if verbose else []),
    ]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, cwd=place.folder, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    told, first = b"", 0.0
    try:
        while part := os.read(ours, 65536):
            first = first or time.perf_counter() - started
            told += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    lines = on_screen(told)
    assert LOG.match(lines[0]) and "starting" in lines[0] and first < 5  # idle: 0.1 s, and torch alone takes 2 s
    packs = [line for line in lines if " pack " in line]
    assert re.fullmatch(r"\d\d:\d\d:\d\d pack 1 of 1: 20 jobs, 5 to 6 steps, [\d.]+ s", packs[0]) and len(packs) == 1
    jobs = [line for line in lines if "target error" in line and "lora rank" in line]
    assert len(jobs) == (20 if verbose else 0)
    torn = [line for line in lines if ("%|" in line and LOG.search(line)) or (LOG.search(line) and not LOG.match(line))]
    assert not torn
    [bar] = [at for at, line in enumerate(lines) if line.startswith("20/20 jobs: 100%|")]
    assert max(len(line) for line in lines[: bar + 1] if line not in jobs) <= 80 or verbose
    logs = [(place.sweep() / str(job) / "lora_exp.log").read_text() for job in range(20)]
    assert all("target error" in log and log.count("\n") == 1 for log in logs if not verbose)


@pytest.mark.parametrize("preset", [False, True])
def test_the_suggested_sweep_over_seeds_is_one_that_runs(
    tmp_path: Path, data_root: Path, mnist: ImageData, capsys: pytest.CaptureFixture[str], preset: bool
) -> None:
    place = prepared(tmp_path, data_root)
    asked = ["experiment=rank_by_digit"] if preset else ["-m", "adapter.rank=1,2", "finetune.digit=3"]
    command = [*asked, *QUICK, "finetune.steps=2", "tracking=off", "hydra.sweep.dir=swept", "report.name=mine"]
    place.run(*command)
    print(next_text(read_sweep(tmp_path / "swept")), end="")
    [line] = [line for line in capsys.readouterr().out.splitlines() if "finetune.seed=" in line]
    suggested = shlex.split(line, comments=True)
    assert suggested[0] == "lora-exp" and not {"hydra.sweep.dir=swept", "report.name=mine"} & set(suggested)
    plan, _ = place.run(*suggested[1:], "sweep.plan=true")
    jobs = 40 if preset else 2
    assert f"{5 * jobs} jobs: {jobs} in the store already" in plan
