"""python -m pytest tests/test_presets.py: presets of one's own, and how presets are named on the command line."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
from places import Place, prepared

from lora_exp.model.data import ImageData
from lora_exp.storage.result import RESULT

MINE = """# @package _global_
defaults:
  - override /model: narrow
  - override /tracking: 'off'
data: {limit: 2000}
base: {batch_size: 50}
finetune: {digit: 7, steps: 5}
"""


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    place = prepared(tmp_path, data_root)
    for name, text in {"experiment/mine": MINE, "model/narrow": "defaults: [tiny, _self_]\nhidden: [12]\n"}.items():
        file = tmp_path / "presets" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return place


def test_a_preset_of_ones_own_runs_sweeps_and_is_reproduced_by_the_command_that_the_report_shows(place: Place) -> None:
    [out, _] = place.run("--config-dir", "presets", "-m", "experiment=mine", "adapter.rank=1,2")
    assert "2 of 2 are worse" in out or "Mean of 2 finished runs" in out
    provenance = json.loads((place.sweep() / "1" / RESULT).read_text())["provenance"]
    assert provenance["overrides"] == ["--config-dir=presets", "experiment=mine", "adapter.rank=2"]
    command = "lora-exp --config-dir=presets experiment=mine adapter.rank=2 hydra.mode=RUN"
    [report] = place.folder.glob("multirun_reports/*/report.md")
    assert command in report.read_text()
    assert "reproduced: all" in place.run("reproduce", f"{place.sweep()}:1")[0]
    made = place.results_made()
    place.run(*shlex.split(command)[1:])
    assert place.results_made() == made, "the command is of another run"
    assert "adapter.rank=1" in place.run("resume", str(place.sweep()))[0]


HOSTILE = {
    "a callback": "hydra: {callbacks: {x: {_target_: evil.Handler}}}",
    "another log": "defaults: [{override /hydra/job_logging: evil}]",
    "a search path": "hydra: {searchpath: ['pkg://evil']}",
    "an unknown key": "adapter: {_target_: evil.Handler}",
}


@pytest.mark.parametrize("preset", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("flag", [[], ["-m"], ["--help"], ["--cfg", "job"]], ids=["run", "sweep", "help", "config"])
def test_a_preset_of_ones_own_may_do_no_more_than_one_of_the_package(
    place: Place, preset: str, flag: list[str]
) -> None:
    (place.folder / "evil.py").write_text("raise SystemExit('code of a config ran')\n")
    logs = place.folder / "presets" / "hydra" / "job_logging" / "evil.yaml"
    logs.parent.mkdir(parents=True)
    logs.write_text("version: 1\nhandlers: {x: {class: evil.Handler}}\nroot: {handlers: [x]}\n")
    (place.folder / "presets" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{preset}\n")
    err = place.run(*flag, "--config-dir=presets", "experiment=mine", "model=tiny", code=2)[1]
    assert err.startswith("lora-exp: ") and err.count("\n") == 1 and "code of a config ran" not in err
    assert not (place.folder / "runs").exists()


def test_a_preset_of_ones_own_can_not_read_the_environment(place: Place) -> None:
    text = "# @package _global_\ndata: {root: '${oc.env:HOME}'}\n"
    (place.folder / "presets" / "experiment" / "mine.yaml").write_text(text)
    assert place.run("--cfg", "job", "--config-dir=presets", "experiment=mine")[0].count("${oc.env:HOME}") == 1
    err = place.run("--config-dir=presets", "experiment=mine", code=2)[1]
    assert err.startswith("lora-exp: ") and err.count("\n") == 1 and os.environ["HOME"] not in err


def test_a_launcher_of_the_same_name_in_ones_own_folder_is_refused(place: Place) -> None:
    own = place.folder / "presets" / "hydra" / "launcher" / "packed.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: evil.Handler\n")
    err = place.run("--config-dir=presets", "-m", "experiment=mine", "adapter.rank=1,2", code=2)[1]
    # Before it Hydra warns that the file hides a launcher.
    assert "hydra.launcher._target_=evil.Handler: can't be chosen" in err.splitlines()[-1] and "Traceback" not in err


def test_a_folder_of_presets_that_is_not_there_is_one_line(place: Place) -> None:
    says = "must be a folder of presets, such as nowhere/experiment/mine.yaml"
    for command in (["--config-dir=nowhere"], ["doctor", "--config-dir=nowhere"]):
        assert place.run(*command, code=2)[1] == f"lora-exp: --config-dir=nowhere: {says}\n"


def test_null_is_no_preset_and_a_plus_too_much_is_said(place: Place) -> None:
    quick = ("model=tiny", "data.limit=2000", "tracking=off")
    planned = place.run("-m", "--plan", *quick, "experiment=digit_9,null")[0]
    assert "2 jobs" in planned
    assert "1 jobs" in place.run("-m", "--plan", *quick, "experiment=null")[0]
    says = "+experiment=digit_9: experiment has an option already; write experiment=digit_9"
    assert place.run(*quick, "+experiment=digit_9", code=2)[1] == f"lora-exp: {says}\n"
