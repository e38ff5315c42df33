"""python -m pytest tests/test_terminal.py: what a sweep tells a terminal, and what it tells a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_results as made
import pytest
from places import QUICK, prepared
from rich.cells import cell_len

from lora_exp.model.data import ImageData
from lora_exp.report.next_steps import next_text
from lora_exp.report.recommended import headline
from lora_exp.report.terminal import before_text, recommended_text, sweep_text
from lora_exp.storage.recommendation import recommendations, representative
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import Stopped
from lora_exp.storage.sweep_folder import Sweep, read_sweep

LOG = re.compile(r"\d\d:\d\d:\d\d (starting; |training base |pack \d of \d: |class \d lora rank )")
Made = tuple[RunResult, dict[str, Any]]
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


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("kind", ["one", "classes", "bases", "many keys", "long names", "names of all kinds"])
def test_no_line_of_a_table_is_wider_than_the_terminal(tmp_path: Path, kind: str, width: int) -> None:
    runs = {
        "one": [made.made_run(FEW)],
        "classes": [made.made_run(FEW, (digit,), rank) for digit in range(10) for rank in (1, 2)],
        "bases": [made.made_run(FEW, rank=rank, base_seed=seed, seed=seed) for rank in (1, 2) for seed in range(4)],
        "many keys": [
            varied_run(
                made.made_run(FEW, (digit,), rank, alpha, seed), replay=0.1 * seed, learning_rate=1e-3 / (seed + 1)
            )
            for digit in (3, 4)
            for rank, alpha in ((1, 1.0), (16, 32.0), (64, 128.5))
            for seed in (0, 1)
        ],
        "long names": [
            varied_run(made.made_run(FEW, rank=rank), layers=(f"features.{'inner.' * rank * 9}projection",))
            for rank in (1, 2)
        ],
        "names of all kinds": [made.made_run(FEW, (digit,)) for digit in (1, 2, 3)],
    }[kind]
    frame = read_sweep(made.write_sweep(tmp_path / "sweep", runs)).frame
    if kind == "names of all kinds":
        frame["target"] = ["[bold]x[/bold]", ":smile:", "高さ" * 40]
        assert all(name in sweep_text(frame, False, width) for name in ("[bold]x[/bold]", ":smile:"))
    text = sweep_text(frame, False, width) + recommended_text(frame, True, width)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert max(map(cell_len, lines)) <= width
    rows = [line.split() for line in sweep_text(frame, False, width).splitlines() if re.match(r" *\d+\*? ", line)]
    assert len(rows) == len(runs)
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) >= 4  # nothing is folded
    for row, (run, _) in zip(rows, runs, strict=True):
        assert f"{100 * run.outcome.forgetting:+.2f}" in row  # the price, beside the gain
    if kind in ("classes", "bases"):
        assert ("over-" in text) == (width > 80), "what a wide terminal shows more"


def varied_run(run: Made, **keys: Any) -> Made:
    """The same run with other settings, each in the group that has it."""
    spec = run[0].spec
    parts = {
        name: replace(part, **{key: value for key, value in keys.items() if hasattr(part, key)})
        for name, part in (("adapter", spec.adapter), ("finetune", spec.finetune))
    }
    return replace(run[0], spec=replace(spec, **parts)), run[1]


def test_the_recommendation_is_the_last_thing_before_where_everything_is(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    place = prepared(tmp_path, data_root)
    out, _ = place.run("-m", *QUICK, "adapter.rank=1,2", "finetune.digit=3,4", "finetune.steps=2", "tracking=off")
    lines = out.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("report   "))
    assert lines[at - 1] == headline(recommendations(read_sweep(place.sweep()).frame))
    assert [line[:8].rstrip() for line in lines[at : at + 3]] == ["report", "runs", "next"]
    table = [line.split()[:3] for line in lines[:at] if line.startswith((" both ", " class 3 ", " class 4 "))]
    assert [row[0] for row in table] == ["both", "class", "class"]


def swept_again(sweep: Sweep, bases: int = 5) -> list[str]:
    """The arguments of the proposed sweep."""
    [line] = [line for line in next_text(sweep).splitlines() if f"seed=range(0,{bases})" in line]
    suggested = shlex.split(line, comments=True)
    assert suggested[:2] == ["lora-exp", "-m"]
    return suggested[2:]


def test_the_suggested_sweep_repeats_the_recommended_setting_and_varies_the_base_instead_of_seeds(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    place = prepared(tmp_path, data_root)
    asked = ["finetune.learning_rate=1e-3,1e30", "adapter.rank=2,2", "finetune.seed=0,1", "finetune.steps=5"]
    place.run("-m", *QUICK, *asked, "tracking=off", "++report.name=mine", "hydra.sweep.dir=swept", code=1)
    suggested = swept_again(read_sweep(tmp_path / "swept"))
    given = {part for part in suggested if not part.startswith(QUICK)}
    assert given == {
        *("finetune.learning_rate=0.001", "adapter.rank=2", "finetune.steps=5", "tracking=off"),
        *("base.seed=range(0,5)", "finetune.seed=${base.seed}"),
    }
    assert "5 jobs: 1 in the store already" in place.run("-m", *suggested, "sweep.plan=true")[0]


def validated(run: Made, wrong: int) -> Made:
    """The same run with as many wrong validation images of each class."""
    outcome = replace(run[0].outcome, validation_before=made.class_errors(2), validation_after=made.class_errors(wrong))
    return replace(run[0], outcome=outcome), run[1]


def test_next_repeats_the_choice_of_a_search_on_validation_images(tmp_path: Path) -> None:
    runs = [validated(made.made_run(FEW, rank=rank), wrong) for rank, wrong in ((1, 3), (2, 1), (4, 2))]
    folder = made.write_sweep(tmp_path / "sweep", runs)
    about = json.loads((folder / "sweep.json").read_text())
    search = {"objectives": ["both_errors"], "sampler": "tpe", "space": {"adapter.rank": "choice(1,2,4)"}}
    (folder / "sweep.json").write_text(json.dumps(about | {"search": search}))
    sweep = read_sweep(folder)
    assert representative(sweep.frame) == 0, "the test images would say another"
    told = next_text(sweep)
    assert f"lora-exp reproduce {folder / '1'}\n" in told and "# repeat the search's choice from scratch\n" in told
    assert "# more bases decide whether the recommended setting gains\n" in told
    assert "adapter.rank=1" in swept_again(sweep)


def test_a_sweep_over_bases_proposes_as_many_more_as_decide_and_all_its_classes(tmp_path: Path) -> None:
    runs = [made.made_run(FEW, (digit,), base_seed=seed, seed=seed) for digit in (3, 4) for seed in (0, 1)]
    sweep = read_sweep(made.write_sweep(tmp_path / "sweep", runs))
    for gains, further in (([0.01, 0.05], 4), ([-0.01, 0.011], None)):
        open_question = replace(sweep, frame=sweep.frame.assign(elsewhere_gained=gains * 2))
        assert recommendations(open_question.frame)[0].further == further
        suggested = swept_again(open_question, 6 if further else 20)
        assert suggested[:2] == ["adapter.rank=4", "finetune.digit=3,4"]
    decided = replace(sweep, frame=sweep.frame.assign(elsewhere_gained=[0.01, 0.0101] * 2))
    assert "range(" not in next_text(decided)
    assert next_text(read_sweep(made.write_sweep(tmp_path / "none", ["boom"]))).count("\n") == 1


def test_after_halving_the_recommended_setting_is_repeated_without_it(tmp_path: Path) -> None:
    run = made.made_run(FEW)
    sweep = read_sweep(made.write_sweep(tmp_path / "sweep", [run]))
    frame = sweep.frame.assign(overrides=[f"halving.eta=2 {sweep.frame['overrides'].iloc[0]}"])
    told = next_text(replace(sweep, frame=frame, stopped={1: Stopped(5, 10, "target_error", 0.5, 0.4, 2)}))
    assert "halving.eta=null" in told and "halving.eta=2" not in told


def test_a_purpose_stands_above_a_command_that_fills_the_line(tmp_path: Path) -> None:
    sweep = read_sweep(made.write_sweep(tmp_path / "sweep", [made.made_run(FEW)]))
    lines = next_text(sweep, 400).splitlines()
    assert len(lines) == 3 and all("  # " in line for line in lines)
    lines = next_text(sweep).splitlines()
    at = next(at for at, line in enumerate(lines) if "range(0,5)" in line)
    assert lines[at - 1] == "         # more bases decide whether it gains" and "#" not in lines[at]


def test_the_errors_of_the_base_are_those_of_each_task(tmp_path: Path) -> None:
    runs = [made.made_run(FEW, (digit,)) for digit in (3, 4)]
    frame = read_sweep(made.write_sweep(tmp_path / "sweep", runs)).frame
    assert re.match(r"base: error \(%\) on 3 [\d.]+, 4 [\d.]+; on the other", before_text(frame))
    frame = frame.assign(data=["mnist", "digits"])
    assert re.match(r"base: error \(%\) on mnist class 3 [\d.]+, digits class 4 [\d.]+; on", before_text(frame))


@pytest.mark.parametrize("preset", [False, True])
def test_the_suggested_sweep_over_seeds_is_one_that_runs(
    tmp_path: Path, data_root: Path, mnist: ImageData, preset: bool
) -> None:
    place = prepared(tmp_path, data_root)
    asked = ["experiment=rank_by_digit"] if preset else ["-m", "adapter.rank=1,2", "finetune.digit=3"]
    command = [*asked, *QUICK, "finetune.steps=2", "tracking=off", "hydra.sweep.dir=swept", "report.name=mine"]
    place.run(*command)
    suggested = swept_again(read_sweep(tmp_path / "swept"))
    assert not {"hydra.sweep.dir=swept", "report.name=mine"} & set(suggested)
    plan, _ = place.run("-m", *suggested, "sweep.plan=true")
    jobs = 10 if preset else 1
    assert f"{5 * jobs} jobs: {jobs} in the store already" in plan
