"""python -m pytest tests/test_old_sweeps.py

A sweep that was finished before the code moved into packages is read by the code of today (`before_the_move/`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forkserver
import pytest
import torch
from safetensors.torch import load_file

from lora_exp import AdaptedClassifier, load_base
from lora_exp.config.settings import TrackingSettings
from lora_exp.model.data import ImageData
from lora_exp.storage.provenance import code_version
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, read
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.tracking.recorder import Recorder

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

OLD = Path(__file__).parent / "before_the_move"
STORE = f"store.folder={OLD / 'store'}"


@pytest.fixture
def folder(tmp_path: Path, data_root: Path, mnist: ImageData) -> Path:
    """A working folder with the sweep in `sweep/`, its store in `old store/`, and data."""
    shutil.copytree(OLD / "sweep", tmp_path / "sweep")
    shutil.copytree(OLD / "store", tmp_path / "old store")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    return tmp_path


def lora_exp(folder: Path, *arguments: str) -> str:
    done = forkserver.run(arguments, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_table_is_loaded_with_all_errors(folder: Path) -> None:
    table = read_sweep(folder / "sweep").frame
    assert list(table["status"]) == ["finished"] * 2 and list(table["rank"]) == [1, 2]
    assert list(table["target_error"]) == [1.0, 1.0] and table["other_error"].between(0.8, 0.9).all()
    assert (table["data"] == "mnist").all() and table["base_unchanged"].all()


def test_its_keys_are_not_those_of_today() -> None:
    assert read(OLD / "sweep" / "0").provenance["code"] != code_version("results")


def test_its_report_is_written_again(folder: Path) -> None:
    lora_exp(folder, "report", "sweep", "--out", "again")
    assert "100.00 %" in (folder / "again" / "report.md").read_text()
    assert len((folder / "again" / "summary.csv").read_text().splitlines()) == 3


def test_its_base_is_found_by_hash_without_reading_any_data() -> None:
    base = load_base(OLD / "sweep" / "1", [STORE, "data.root=/nowhere"])
    assert base.sha256() == read(OLD / "sweep" / "1").outcome.base_sha256_before


def test_its_adapter_on_that_base_classifies_as_it_did(mnist: ImageData) -> None:
    job = OLD / "sweep" / "0"
    adapted = AdaptedClassifier.load(load_base(job, [STORE]), job / ADAPTER)
    with torch.no_grad():
        confidence, predicted = adapted.logits(mnist.test.images[:]).softmax(dim=1).max(dim=1)
    said = load_file(job / PREDICTIONS)
    assert said["confidence"].dtype == torch.float16
    assert (predicted == said["predicted"]).double().mean() > 0.999
    torch.testing.assert_close(confidence, said["confidence"].float(), atol=1e-3, rtol=0)


def test_its_adapters_are_exported_and_merged(folder: Path) -> None:
    where = f"store.folder={folder / 'old store'}"
    lora_exp(folder, "export", "sweep/0", where)
    assert {"adapter_config.json", "base.safetensors"} <= {path.name for path in (folder / "sweep/0/peft").iterdir()}
    lora_exp(folder, "merge", "sweep/1", where, "--out", "merged.safetensors")
    assert load_file(folder / "merged.safetensors")["linear1.weight"].shape == (2, 784)


def test_it_is_brought_to_mlflow(folder: Path) -> None:
    assert "all of it is in MLflow" in lora_exp(folder, "sync", "--trust", "sweep")
    here = TrackingSettings("sqlite", f"sqlite:///{folder}/mlflow.db", str(folder / "mlartifacts"))
    recorder = Recorder.open(here)
    runs = recorder.client.search_runs([recorder.experiment_id])
    assert sorted(run.data.tags["kind"] for run in runs) == ["run", "run", "sweep"]


def test_its_store_is_whole_and_its_base_goes_by_its_last_use(folder: Path) -> None:
    assert "1 entries checked, 0 damaged" in lora_exp(folder, "store", "verify", "store.folder='old store'")
    [key] = [path.name for path in (folder / "old store" / "bases").glob("*/*")]
    assert Store(folder / "old store").needs("bases", key) == []
    assert "1 entries removed" in lora_exp(folder, "store", "prune", "--to-size", "0", "store.folder='old store'")


def test_a_sweep_of_today_in_its_folder_computes_again(folder: Path) -> None:
    arguments = json.loads((folder / "sweep" / "sweep.json").read_text())["arguments"]
    lora_exp(folder, *arguments, "hydra.sweep.dir=sweep")
    old, new = (read(where / "sweep" / "0") for where in (OLD, folder))
    assert new.provenance["code"] == code_version("results") and new.spec == old.spec
    assert (folder / "sweep" / "0" / RESULT).read_bytes() != (OLD / "sweep" / "0" / RESULT).read_bytes()
