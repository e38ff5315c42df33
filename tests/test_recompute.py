"""python -m pytest tests/test_recompute.py

A script that knows nothing of lora_exp gets every measure of a sweep from the logits in its folders.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from places import QUICK, ROOT, Place
from safetensors.numpy import load_file, save_file

from lora_exp.measures.logits import Logits, compact
from lora_exp.measures.shift import matched_shift

SCRIPT = ROOT / "benchmarks" / "recompute.py"
sys.path.insert(0, str(SCRIPT.parent))

import recompute  # noqa: E402


@pytest.fixture(scope="module", params=["", "data.validation=1000"], ids=["cross-fitted", "validation"])
def sweep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks by a digit and by two digits, which share a constant."""
    place = Place(tmp_path_factory.mktemp("recompute"))
    more = [request.param] if request.param else []
    place.run("-m", *QUICK, *more, "adapter.rank=1,2", "finetune.digit=3,[3,8]", "tracking=off")
    return place.sweep()


def test_every_measure_of_a_sweep_comes_out_of_its_logits(sweep: Path) -> None:
    command = [sys.executable, "-I", str(SCRIPT), str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers, runs = (int(word) for word in done.stdout.split() if word.isdigit())
    assert runs == 4 and numbers > 4 * 40
    stored = json.loads((sweep / "0" / "result.json").read_text())["outcome"]
    assert stored["gains"]["shift"] is not None


def test_one_run_can_be_recomputed_alone(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recompute.main(sweep / "1") == 0
    assert " of 1 runs" in capsys.readouterr().out


def test_a_number_that_is_wrong_by_more_than_a_millionth_is_found(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sweep / "0", tmp_path / "0")
    file = tmp_path / "0" / "result.json"
    for part, name in (("before", "f1"), ("shift", "forgetting"), ("forgetting", "low"), ("choice", "gained")):
        result = json.loads((sweep / "0" / "result.json").read_text())
        result["outcome"]["gains"][part][name] += 2e-6
        file.write_text(json.dumps(result))
        assert recompute.main(tmp_path) == 1
        output = capsys.readouterr().out
        assert f"0.gains.{part}.{name}" in output and "2e-06" in output


def test_logits_of_other_images_are_found(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / "0", tmp_path / "0")
    tensors = load_file(sweep / "0" / "predictions.safetensors")
    tensors["logits"] = tensors["logits"][::-1].copy()
    save_file(tensors, tmp_path / "0" / "predictions.safetensors")
    assert recompute.main(tmp_path) == 1


def test_a_folder_without_measures_is_no_success(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recompute.main(tmp_path) == 1
    shutil.copytree(sweep / "0", tmp_path / "0")
    result = json.loads((sweep / "0" / "result.json").read_text())
    result["outcome"]["gains"] = None
    (tmp_path / "0" / "result.json").write_text(json.dumps(result))
    assert recompute.main(tmp_path) == 1
    assert "nothing to compare" in capsys.readouterr().out


def test_the_script_imports_nothing_of_the_package() -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [part.name for part in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "safetensors", "sklearn", "statsmodels"}


@pytest.mark.parametrize("step", [0.001, 0.01, 0.25])
@pytest.mark.parametrize("target", [(2,), (0, 3)])
def test_both_choose_the_same_constant_where_images_share_a_margin(step: float, target: tuple[int, ...]) -> None:
    """Logits on a grid have equal margins, so that two constants can be equally near to the recall."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 5, 900).astype(np.uint8)
        before = random.normal(0, 1, (900, 5)) + 1.8 * np.eye(5)[labels]
        after = before + random.normal(0, 0.3, before.shape) + 0.5 * np.isin(np.arange(5), target)
        both = [compact((np.round(own / step) * step).astype(np.float32)) for own in (before, after)]
        found = matched_shift(Logits(labels, *both), None, target)
        stored = None if found is None else asdict(found)
        again = recompute.shifted([labels, *both], None, list(target))
        assert max(recompute.differences(again, stored, "shift"))[0] < recompute.ALLOWED
