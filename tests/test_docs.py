"""python -m pytest tests/test_docs.py

What the documents show is done as they say, and works.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import QUICK, Place, prepared

from lora_exp.model.data import ImageData
from lora_exp.storage.sweep_folder import read_sweep

ROOT = Path(__file__).parent.parent
# How many runs each filter of docs/mlflow.md finds in the sweep of `recorded`, and the run that is chosen.
FILTERED = [*(rf"{count} (tags|params|metrics|datasets)\." for count in (1, 2, 2, "[0-4]", 4, 2, 4, 2)), "class "]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the blocks of docs/methods.md put where their first lines say."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("lora_exp", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.S)
    assert len(blocks) == 5
    for place, text in blocks:
        with (copy / place).open("a") as file:
            file.write("\n\n" + text)
    return copy


def test_methods_added_as_the_document_says_train(
    extended: Path, tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    folder = prepared(tmp_path, data_root).folder
    parameters = {"half_lora": 784 + 64 + 64 + 10, "ia3": 64 + 10}
    command = [sys.executable, "-m", "lora_exp", "-m", f"adapter={','.join(parameters)}", "model=tiny"]
    command += ["data.limit=3000", "finetune.digit=4", "tracking=off", "hydra.sweep.dir=swept"]
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for job, method in enumerate(parameters):
        outcome = json.loads((folder / "swept" / str(job) / "result.json").read_text())["outcome"]
        assert outcome["parameters_adapter"] == parameters[method]
        assert outcome["target_error"] < outcome["target_error_before"]
        assert outcome["adapter_off_equals_base"] is True


def test_the_pandas_of_the_reports_document_works(tmp_path: Path, data_root: Path, mnist: ImageData) -> None:
    place = prepared(tmp_path, data_root)
    place.run("-m", *QUICK, "adapter.rank=1,2", "finetune.digit=3,4", "finetune.seed=0,1", "hydra.sweep.dir=SWEEP")
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reports.md").read_text(), re.S)
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^3 +\d", done.stdout, re.MULTILINE) and "rises most" in done.stdout
    assert (tmp_path / "by_rank.png").stat().st_size > 5000


def test_the_python_of_its_document_works_from_the_first_run_to_a_module(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    place = prepared(tmp_path, data_root)
    folder = place.folder
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) == 7
    (folder / "script.py").write_text("".join(blocks))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^recall of the target +0\.\d+ +0\.\d+ ", done.stdout, re.MULTILINE)
    assert "replay 0.8" in done.stdout and re.search(r"^\d+ test images mended$", done.stdout, re.MULTILINE)
    assert "8 ['finished', 'finished'" in done.stdout and (folder / "heat_maps.png").stat().st_size > 5000
    assert place.statuses() == {"FINISHED": 1 + 9 + 3}, "a run, and two sweeps of 8 and 2 jobs, are in MLflow"


def test_the_walk_from_pictures_to_a_rank_works_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    [code], [command] = (re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("python", "bash"))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    place = Place(tmp_path)
    out = place.run(*shlex.split(command)[1:])[0]
    assert "number 8" in out and ": a run of the " in out
    assert place.run("register", f"{place.sweep()}/0", "--name", "mine")[0].count("397 of 397 test images") == 1


def test_the_walk_from_a_state_dict_to_a_rank_works_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    [code, _], [command] = (re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("python", "bash"))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    place = Place(tmp_path)
    out = place.run(*shlex.split(command)[1:])[0]
    assert "error on class 8 " in out and ": a run of the " in out
    [folder] = (tmp_path / "runs").glob("*/*")
    assert read_sweep(folder).frame["status"].eq("finished").all()


def test_the_python_of_the_readme_works(tmp_path: Path, data_root: Path, mnist: ImageData) -> None:
    folder = prepared(tmp_path, data_root).folder
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^3 +8 +4 +-?0\.\d+$", done.stdout, re.MULTILINE), done.stdout


def test_the_first_sweep_works_as_it_stands_and_shows_what_the_text_says(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    text = (ROOT / "docs" / "first_sweep.md").read_text()
    place = prepared(tmp_path, data_root)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    commands = [shlex.split(block.replace("\\\n", " "))[1:] for block in blocks]
    planned, swept, repeated, reproduced, exported = (place.run(*command)[0] for command in commands)
    assert "12 jobs: 0 in the store already, 12 to run" in planned
    assert "use rank 4, replay 0.8" in " ".join(swept.split()) and "Use replay 0.8" in " ".join(repeated.split())
    assert f"report   {tmp_path}/multirun_reports/first/report.html" in swept and "base.seed" in swept
    assert "multirun_reports/bases" in repeated
    assert len(list(tmp_path.glob("cache/store/results/*/*/entry.json"))) == 12 + 4  # two were there
    assert "have the same bits" in reproduced and (tmp_path / exported.strip()).is_dir()
    frame = read_sweep(tmp_path / "runs" / "first").frame
    means = frame.groupby("replay")[["forgetting", "target_error", "balanced_accuracy_gained"]].mean()
    assert means.loc[0.0, "forgetting"] > 0.5 and means.loc[0.0, "target_error"] < 0.01
    assert (means["balanced_accuracy_gained"] > 0).tolist() == [False, False, True]
    [last] = frame[frame["job"] == 11].to_dict("records")
    assert (last["target"], last["rank"], last["replay"]) == ("8", 4, 0.8)
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^8 +1 +-0\.\d+ ", done.stdout, re.MULTILINE), done.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Place:
    """A sweep in MLflow, and one of its runs in the model registry, as docs/mlflow.md assumes."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    place = Place(folder)
    place.run("-m", *QUICK, "adapter.rank=1,2", "finetune.digit=3,4")
    place.run("register", f"{place.sweep()}/0", "--name", "digits")
    return place


@pytest.mark.parametrize(("block", "shown"), [("filters", FILTERED), ("load", [r"\['\d' '\d'\]"])])
def test_what_the_document_on_mlflow_shows_works_as_it_stands(recorded: Place, block: str, shown: list[str]) -> None:
    [code] = re.findall(rf"```python\n# {block}\n(.*?)```", (ROOT / "docs" / "mlflow.md").read_text(), re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=recorded.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(shown)
    assert all(re.match(start, line) for start, line in zip(shown, lines, strict=True)), done.stdout
