"""python -m pytest tests/test_wheel.py

The wheel holds all that the package needs: built from this checkout, installed into an empty environment, run in an
empty folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from lora_exp.config.compose import config_folder

ROOT = Path(__file__).parent.parent
SWEEP = ("-m", "model=tiny", "data.limit=500", "base.batch_size=50", "adapter.rank=1,2", "finetune.steps=5")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone, which finds its dependencies where the tests find theirs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names has its own .pth files ignored, and an editable install is one.
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return python


def run(python: Path, folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [python.parent / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_config_file_and_nothing_of_the_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configs = {name.removeprefix("lora_exp/config/conf/") for name in names if name.endswith(".yaml")}
    assert configs == {str(path.relative_to(config_folder())) for path in config_folder().rglob("*.yaml")}
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"lora_exp", "hydra_plugins"}


def test_an_installed_wheel_runs_a_sweep_with_its_report_and_exports_a_run(python: Path, tmp_path: Path) -> None:
    imported = run(python, tmp_path, "python", "-c", "import lora_exp; print(lora_exp.__file__)")
    assert Path(imported.strip()).is_relative_to(python.parents[1])
    told = run(python, tmp_path, "lora-exp", *SWEEP)
    [report] = tmp_path.glob("multirun_reports/*/report.html")
    assert f"report   {report}" in told and "<script" in report.read_text()
    runs = sorted(path.parent for path in tmp_path.glob("runs/*/*/*/result.json"))
    assert [path.name for path in runs] == ["0", "1"]
    assert (tmp_path / "mlflow.db").is_file()
    exported = run(python, tmp_path, "lora-exp", "export", str(runs[1]))
    assert str(runs[1] / "peft") in exported and (runs[1] / "peft" / "adapter_config.json").is_file()
