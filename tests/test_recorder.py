"""python -m pytest tests/test_recorder.py

Runs in a real MLflow store: what users filter, compare and open there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import made_run, pictures_and_labels, small_result, write_sweep

from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import TrackingSettings
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.errors import LoraExpError
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.storage.recommendation import recommendations, representative
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import FailedJob, Stopped
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.tracking.facts import CURVE_POINTS
from lora_exp.tracking.recorder import Recorder, Ticket
from lora_exp.tracking.summary import metrics_of_sweep

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

NAN = float("nan")
OVERRIDES = ["adapter.rank=4", "adapter.layers=[linear1, linear2]"]


def made(
    rank: int = 4,
    losses: tuple[float, ...] = (2.0, 1.0, 0.5),
    diverged_at: int | None = None,
    overrides: list[str] = OVERRIDES,
) -> RunResult:
    """A result whose digit d was wrong (10 + d) times of 1,000 before, and 2 d times after."""

    def errors(wrong: list[int]) -> ClassErrors:
        return ClassErrors(1 - sum(wrong) / 10_000, 0.1, [1000] * 10, wrong, [w / 1000 for w in wrong], [[0] * 10] * 10)

    after = {"target_error": 0.018, "other_error": 0.008, "forgetting": -0.006}
    result = small_result(
        before=errors([10 + d for d in range(10)]),
        after=errors([2 * d for d in range(10)]),
        target_error_before=0.019,
        other_error_before=0.014,
        **(dict.fromkeys(after, NAN) if diverged_at else after),
        parameters_adapter=6794 * rank,
        steps=len(losses),
        loss_curve=list(losses),
        diverged_at=diverged_at,
    )
    spec = RunSpec(
        ModelSpec((1000, 2000)), DataSpec("mnist"), BaseSpec(), AdapterSpec(rank=rank), FinetuneSpec(target=(9,))
    )
    times = {"fine_tuning": 1.5, "evaluation": 0.5}
    more = {"commit": "1234abc", "data_sha256": "ef" * 32, "overrides": overrides, "config": "a: ü\n"}
    return replace(result, spec=spec, times=times, provenance=result.provenance | more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    """A fresh sqlite store, made once, where an earlier process was killed while making it."""
    folder = tmp_path_factory.mktemp("Läufe und mehr")
    (folder / "mlflow.db.new").mkdir()
    (folder / "mlflow.db.new" / "mlflow.db").write_bytes(b"half a datab")
    settings = TrackingSettings("sqlite", f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts"))
    Recorder.open(settings)
    assert not (folder / "mlflow.db.new").exists()
    return settings


@pytest.fixture
def recorder(store: TrackingSettings, request: pytest.FixtureRequest) -> Recorder:
    """A recorder on an experiment of the test's own."""
    return Recorder.open(replace(store, experiment=request.node.name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, with the files that a run leaves."""
    (tmp_path / "figures").mkdir()
    for name in ("result.json", "adapter.safetensors", "predictions.safetensors", "figures/loss.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def found(recorder: Recorder, query: str = "") -> list[str]:
    """Names of the runs that match, sorted."""
    return sorted(run.info.run_name for run in recorder.client.search_runs([recorder.experiment_id], query))


def artifacts(recorder: Recorder, run_id: str, path: str | None = None) -> list[str]:
    return sorted(file.path for file in recorder.client.list_artifacts(run_id, path))


def test_a_run_has_readable_name_flat_parameters_and_errors_by_digit(recorder: Recorder, folder: Path) -> None:
    parent = recorder.start_sweep("ranks", "lora-exp -m adapter.rank=4", {"jobs": "1"}, Ticket.new())
    run = recorder.client.get_run(recorder.record_run(made(), folder, parent, Ticket.new()))
    assert run.info.run_name == "target-9_lora_rank-4_alpha-1_seed-0"
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 2000
    expected = {"rank": "4", "alpha": "1", "target": "9", "seed": "0", "learning_rate": "0.001"}
    expected |= {"model": "1000-2000", "data": "mnist", "base_seed": "0", "steps": "3", "layers": "*", "replay": "0"}
    assert expected.items() <= run.data.params.items()
    assert run.data.metrics["target_error"] == 0.018
    assert run.data.metrics["target_error_before"] == 0.019
    assert run.data.metrics["parameters_adapter"] == 4 * 6794
    adapter = {name: value for name, value in run.data.metrics.items() if name.startswith("adapter/")}
    assert adapter == {"adapter/rank": 4, "adapter/alpha": 1, "adapter/scaling": 0.25}
    assert run.data.metrics["seconds/fine_tuning"] == 1.5
    for digit in range(10):
        assert run.data.metrics[f"error_before/{digit}"] == (10 + digit) / 1000
        assert run.data.metrics[f"error_after/{digit}"] == 2 * digit / 1000
    curve = recorder.client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert run.data.tags["mlflow.parentRunId"] == parent
    link = f"[The sweep](#/experiments/{recorder.experiment_id}/runs/{parent}?workflowType=machine_learning)"
    assert run.data.tags["mlflow.note.content"].endswith(link)
    assert run.data.tags["overrides"] == "adapter.rank=4 'adapter.layers=[linear1, linear2]'"
    assert run.data.tags["spec_key"] == made().spec.key
    assert run.data.tags["base_sha256"] == "a" * 64
    assert run.data.tags["commit"] == "1234abc"
    assert run.data.tags["versions"] == "torch 2.14.1"
    assert (
        "| error on the other classes | &emsp;1.40 % | &emsp;0.80 % | &emsp;-0.60 |"
        in run.data.tags["mlflow.note.content"]
    )
    assert artifacts(recorder, run.info.run_id) == ["adapter.safetensors", "config.yaml", "figures", "result.json"]
    assert artifacts(recorder, run.info.run_id, "figures") == ["figures/loss.png"]
    place = Path(run.info.artifact_uri)
    assert (place / "config.yaml").read_text(encoding="utf-8") == "a: ü\n"
    assert (place / "adapter.safetensors").read_bytes() == b"adapter.safetensors"


def test_filters_find_sound_runs_and_never_a_diverged_one(recorder: Recorder, folder: Path) -> None:
    recorder.record_run(made(rank=4), folder, None, Ticket.new())
    recorder.record_run(made(rank=8), folder, None, Ticket.new())
    unsound = made(rank=2, losses=(2.0, NAN, float("inf")), diverged_at=2)
    diverged = recorder.record_run(unsound, folder, None, Ticket.new())
    four, eight, two = (f"target-9_lora_rank-{rank}_alpha-1_seed-0" for rank in (4, 8, 2))
    assert found(recorder, "params.rank = '4'") == [four]
    assert found(recorder, "metrics.target_error < 0.1") == [four, eight]
    assert found(recorder, "metrics.`adapter/rank` >= 4 and metrics.`adapter/scaling` < 0.2") == [eight]
    assert found(recorder, "metrics.`error_after/3` <= 0.006") == [four, eight]
    assert found(recorder, "metrics.accuracy >= 0") == [four, eight]
    assert found(recorder, "tags.status = 'diverged'") == [two]
    run = recorder.client.get_run(diverged)
    assert run.info.status == "FAILED"
    assert run.data.tags["diverged_at"] == "2"
    assert "step 2" in run.data.tags["error"]
    assert not [name for name in run.data.metrics if "error" in name or "accuracy" in name or name == "forgetting"]
    assert [point.value for point in recorder.client.get_metric_history(diverged, "loss")] == [2.0]


def test_a_long_loss_curve_is_thinned_and_says_so(recorder: Recorder, folder: Path) -> None:
    losses = tuple(float(step) for step in range(1, 12_001))
    run_id = recorder.record_run(made(losses=losses), folder, None, Ticket.new())
    curve = recorder.client.get_metric_history(run_id, "loss")
    steps = [point.step for point in curve]
    assert len(steps) == CURVE_POINTS
    assert steps[0] == 1
    assert steps[-1] == 12_000
    assert max(b - a for a, b in pairwise(steps)) <= 61
    assert all(point.value == point.step for point in curve)
    assert recorder.client.get_run(run_id).data.tags["loss_curve"] == "200 of 12000 steps; result.json has all"


def test_parameters_beyond_the_limit_are_cut_and_the_cut_is_stated(recorder: Recorder, folder: Path) -> None:
    spec = replace(made().spec, adapter=AdapterSpec(layers=tuple(f"größe{n}" for n in range(1000))))
    result = replace(made(overrides=["x" * 9000]), spec=spec)
    run = recorder.client.get_run(recorder.record_run(result, folder, None, Ticket.new()))
    assert len(run.data.params["layers"]) == 6000
    assert run.data.params["layers"].startswith("größe0,größe1,")
    assert run.data.tags["cut"] == "layers: the first 6000 characters; config.yaml has all of it"
    assert len(run.data.tags["overrides"]) == 8000


def test_a_run_tells_its_data_so_that_mlflow_reads_it_and_finds_the_run_by_it(recorder: Recorder, folder: Path) -> None:
    import mlflow.data
    from mlflow.data.schema import TensorDatasetSchema

    limited, everything = (
        replace(made(), provenance=made().provenance | {"images": {"train": train, "validation": validation}})
        for train, validation in ((3000, 500), (60_000, 0))
    )
    whole = recorder.record_run(everything, folder, None, Ticket.new())
    ticket = Ticket("again", 1, False)
    run_id = recorder.record_run(limited, folder, None, ticket)
    assert recorder.record_run(limited, folder, None, replace(ticket, is_retry=True)) == run_id
    inputs = recorder.client.get_run(run_id).inputs.dataset_inputs
    contexts = {i.tags[0].value: i.dataset for i in inputs}
    assert len(inputs) == 3 and {i.tags[0].key for i in inputs} == {"mlflow.data.context"}
    assert {context: (data.name, data.digest) for context, data in contexts.items()} == {
        "training": ("mnist", "efefefefefef-train-3000"),
        "validation": ("mnist", "efefefefefef-validation-500"),
        "evaluation": ("mnist", "efefefefefef-test-10000"),
    }
    data = contexts["evaluation"]
    assert json.loads(data.profile) == {
        "num_rows": 10_000,
        "num_elements": 7_840_000,
        "images_by_class": {str(digit): 1000 for digit in range(10)},
    }
    schema = TensorDatasetSchema.from_dict(json.loads(data.schema))
    assert [(spec.type, spec.shape) for spec in schema.features.inputs] == [(np.dtype("uint8"), (-1, 1, 28, 28))]
    assert [(spec.type, spec.shape) for spec in schema.targets.inputs] == [(np.dtype("uint8"), (-1,))]
    assert mlflow.data.get_source(data).to_dict() == {"tags": {"mlflow.source.name": "lora-exp data=mnist"}}
    of = {"training": "datasets.digest = 'efefefefefef-train-3000'", "whole": "datasets.digest LIKE '%-train-60000'"}
    runs = [recorder.client.search_runs([recorder.experiment_id], query) for query in of.values()]
    assert [[run.info.run_id for run in found] for found in runs] == [[run_id], [whole]]


def test_a_failed_job_is_a_failed_run_with_its_reason(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "lora_exp.log").write_text("what happened")
    parent = recorder.start_sweep("ranks", "lora-exp -m", {}, Ticket.new())
    failure = FailedJob("target-9", OVERRIDES, "out of memory")
    run = recorder.client.get_run(recorder.record_failure(failure, tmp_path, parent, Ticket.new()))
    assert (run.info.status, run.info.run_name) == ("FAILED", "target-9")
    assert run.data.tags["error"] == "out of memory"
    assert run.data.tags["status"] == "failed"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert artifacts(recorder, run.info.run_id) == ["lora_exp.log"]
    stopped = replace(failure, stopped=Stopped(10, 100, "both_errors", 0.2, 0.1, 9))
    run = recorder.client.get_run(recorder.record_failure(stopped, tmp_path, parent, Ticket.new()))
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "stopped")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_sweep_is_open_until_it_gets_its_summary(recorder: Recorder, tmp_path: Path, status: str) -> None:
    labels = pictures_and_labels()[1]
    sweep = read_sweep(write_sweep(tmp_path / "sweep", [made_run(labels, rank=1), made_run(labels, rank=4), "no luck"]))
    (tmp_path / "report.md").write_text("of the sweep")
    parent = recorder.start_sweep("n" * 500, "lora-exp -m adapter.rank=1,2", {"jobs": "3"}, Ticket.new())
    assert recorder.client.get_run(parent).info.status == "RUNNING"
    for _ in range(2):  # once more, as after an answer that was lost
        recorder.finish_sweep(parent, status, 1_800_000_000_000, sweep, {0: "a0", 1: "b1", 2: "c2"}, tmp_path)
    run = recorder.client.get_run(parent)
    assert (run.info.status, run.info.end_time) == (status, 1_800_000_000_000)
    assert run.data.params == {"jobs": "3"}
    assert run.data.metrics == metrics_of_sweep(sweep.frame, recommendations(sweep.frame))
    assert len(recorder.client.get_metric_history(parent, "mean_target_error")) == 1
    assert run.data.tags["command"] == "lora-exp -m adapter.rank=1,2"
    lowest = {0: "a0", 1: "b1"}[representative(sweep.frame) or 0]
    assert run.data.tags["chosen_run"] == lowest
    assert (
        f"](#/experiments/{recorder.experiment_id}/runs/{lowest}?workflowType=machine_learning) |"
        in run.data.tags["mlflow.note.content"]
    )
    assert (
        f"/runs/{parent}/artifacts/report/report.md?workflowType=machine_learning)"
        in run.data.tags["mlflow.note.content"]
    )
    assert len(run.info.run_name) == 250
    assert "report/report.md" in artifacts(recorder, parent, "report")


def test_a_sweep_that_was_killed_is_closed_without_a_summary(recorder: Recorder) -> None:
    parent = recorder.start_sweep("ranks", "lora-exp -m adapter.rank=1,2", {"jobs": "2"}, Ticket.new())
    recorder.finish_sweep(parent, "KILLED", 1_800_000_000_000, None, {}, None)
    run = recorder.client.get_run(parent)
    assert (run.info.status, run.data.metrics) == ("KILLED", {})
    assert run.data.tags["mlflow.note.content"] == "```\nlora-exp -m adapter.rank=1,2\n```"


@pytest.mark.parametrize(("interruption", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, LoraExpError)])
def test_an_interrupted_record_leaves_no_run_open(
    recorder: Recorder,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
    raised: type[BaseException],
) -> None:
    def interrupt(*_: Any) -> None:
        raise interruption("no space left")

    monkeypatch.setattr(Recorder, "_attach", interrupt)
    with pytest.raises(raised):
        recorder.record_run(made(), folder, None, Ticket.new())
    assert len(found(recorder, "attributes.status = 'KILLED'")) == 1
    assert found(recorder, "attributes.status = 'RUNNING'") == []
