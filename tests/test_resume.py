"""python -m pytest tests/test_resume.py

Nothing finished is lost or made twice: sweeps that are killed, interrupted or partly fail, and go on. Real processes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from places import JOBS, QUICK, Place, same

from lora_exp.model.data import ImageData
from lora_exp.storage.result import RESULT
from lora_exp.storage.sweep_folder import read_sweep


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    return Place(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    place = Place(folder)
    place.run("-m", *QUICK, "finetune.steps=400", *JOBS, "tracking=off")
    return place.sweep()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_sweep_killed_at_any_moment_ends_as_one_that_was_not(place: Place, uninterrupted: Path, kills: int) -> None:
    moments = random.Random(0)
    arguments = ["-m", *QUICK, "finetune.steps=400", *JOBS]
    at_start = kills // 10  # the others while it works, whatever the machine is busy with besides
    for kill in range(kills):
        process = place.start(*arguments)
        begun = time.time()
        while kill >= at_start and process.poll() is None and place.last_change() < begun:
            time.sleep(0.05)
        time.sleep(moments.uniform(0.0, 2.5))
        process.kill()
        process.communicate()
        if place.last_change():  # a kill at the start may come before there is a sweep, or after
            arguments = ["resume", str(place.sweep())]
    out, _ = place.run("resume", str(place.sweep()))
    assert "Mean of 40 finished runs" in out
    same(place.sweep(), uninterrupted)
    assert place.made_once() == 40
    assert place.statuses() == {"FINISHED": 41}
    assert place.partial_files() == []


@pytest.mark.parametrize(
    "signals", [["SIGINT"], ["SIGHUP", "SIGTERM", "SIGINT"]], ids=["ctrl-c", "terminal-closed-and-more"]
)
def test_an_interruption_ends_within_five_seconds_and_says_how_to_go_on(place: Place, signals: list[str]) -> None:
    # Three batch sizes, hence a pack that waits while others train.
    jobs = ("finetune.steps=2000", "adapter.rank=1,2", "finetune.digit=1,2,3", "finetune.batch_size=10,20,30")
    process = place.start("-m", *QUICK, *jobs)
    while not list(place.folder.glob(f"runs/*/*/*/{RESULT}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    started = time.monotonic()
    for name in signals:
        process.send_signal(signal.Signals[name])
        time.sleep(0.2)
    _, err = process.communicate(timeout=30)
    # Other tests run beside this one: five seconds of a machine that has nothing else to do.
    assert time.monotonic() - started < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert process.returncode == 130
    assert f"lora-exp resume {place.sweep()}" in err
    assert "Traceback" not in err
    before = place.statuses()
    # The parent was killed, and perhaps the record of one job, whose result is whole all the same.
    assert before["KILLED"] in (1, 2) and "RUNNING" not in before
    finished = list(place.sweep().glob(f"*/{RESULT}"))
    assert all(json.loads(path.read_text())["outcome"] for path in finished)
    assert len(finished) - (sum(before.values()) - 1) in (0, 1)
    assert place.partial_files() == []


FAULTS = {
    3: ("raise", "RuntimeError: out of luck"),
    4: ("exit", "SystemExit: 3"),
    5: ("hard_exit", "exit code 7"),
    6: ("SIGSEGV", "segmentation fault"),
    7: ("SIGKILL", "because memory ran out"),
}


def test_jobs_that_fail_in_any_way_take_no_other_with_them_and_are_tried_again(place: Place) -> None:
    jobs = ("finetune.steps=5", "adapter.rank=1,2", "finetune.digit=range(2,8)")
    faults = " ".join(f"{digit}={fault}" for digit, (fault, _) in FAULTS.items())
    out, err = place.run("-m", *QUICK, *jobs, code=1, FAULTS=faults)
    table = read_sweep(place.sweep()).frame
    assert table["status"].value_counts().to_dict() == {"finished": 7, "failed": 5}
    failed = table[table["status"] == "failed"]
    for digit, (_, cause) in FAULTS.items():
        [error] = failed["error"][failed["overrides"].str.endswith(f"adapter.rank=2 finetune.digit={digit}")]
        assert cause in error and cause in out
    assert "5 of 12 jobs failed" in err.splitlines()[-1]
    assert place.statuses() == {"FINISHED": 8, "FAILED": 5}
    place.run("resume", str(place.sweep()))
    assert (read_sweep(place.sweep()).frame["status"] == "finished").all()
    assert place.statuses() == {"FINISHED": 13}
    assert set(place.results_made().values()) == {1}


def test_resuming_something_else_is_one_line(place: Place) -> None:
    err = place.run("resume", str(place.folder), code=2)[1]
    assert err.strip() == f"lora-exp: {place.folder}: holds no sweep.json, so it is not the folder of a sweep"


def test_a_sweep_of_somebody_else_is_resumed_only_with_trust_and_links_in_its_folder_never(place: Place) -> None:
    place.run("-m", *QUICK, "finetune.steps=2", "adapter.rank=1,2", "tracking=off")
    sweep, victim = place.sweep(), place.folder / "victim"
    about = json.loads((sweep / "sweep.json").read_text())
    about["arguments"].append("store.limit=0\x1b[2J")
    (sweep / "sweep.json").write_text(json.dumps(about))
    _, err = place.run("resume", str(sweep), code=2)
    assert f"{sweep}: you did not begin this sweep here; to trust it, add --trust. It would run: lora-exp -m " in err
    assert "'store.limit=0\\x1b[2J'" in err and "\x1b" not in err
    for other in ({"signature": "é"}, {"arguments": 5}, {"directory": None}, {"place": 3}):
        (sweep / "sweep.json").write_text(json.dumps(about | other))
        assert place.run("resume", str(sweep), code=2)[1].startswith("lora-exp: ")
    about["arguments"].pop()
    (sweep / "sweep.json").write_text(json.dumps(about | {"signature": None}))
    assert "you did not begin" in place.run("resume", str(sweep), code=2)[1]
    assert "Mean of 2 finished runs" in place.run("resume", "--trust", str(sweep))[0]
    victim.write_text("mine")
    (sweep / "0" / "lora_exp.log").unlink()
    (sweep / "0" / "lora_exp.log").symlink_to(victim)
    _, err = place.run("resume", "--trust", str(sweep), code=2)
    assert "0/lora_exp.log: is a symbolic link, which is not followed" in err and victim.read_text() == "mine"
