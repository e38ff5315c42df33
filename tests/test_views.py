"""python -m pytest tests/test_views.py

The tables that MLflow's UI is asked to show: of sweeps, and of runs with the settings in which they differ.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Param, RunTag

from lora_exp.config.settings import TrackingSettings
from lora_exp.tracking.recorder import Recorder, Ticket
from lora_exp.tracking.views import MOST_SETTINGS, RUNS, SWEEPS, USUAL, differing

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

PAGE = 100  # rows that MLflow's UI asks for


@pytest.fixture
def recorder(database: TrackingSettings, request: pytest.FixtureRequest) -> Recorder:
    """A recorder on an experiment of the test's own."""
    return Recorder.open(replace(database, experiment=request.node.name))


def saved(recorder: Recorder, key: str) -> tuple[str, dict[str, Any]]:
    """Name and state of a view, as MLflow's UI reads them from a tag of the experiment."""
    tags = recorder.client.get_experiment(recorder.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    return view["name"], json.loads(view["state"])


def add_run(recorder: Recorder, **params: str) -> str:
    run = recorder.client.create_run(recorder.experiment_id, tags={"kind": "run"})
    recorder.client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()])
    return str(run.info.run_id)


def test_the_views_list_sweeps_and_runs_apart_with_the_settings_that_differ(recorder: Recorder) -> None:
    for rank, steps in (("1", "10"), ("2", "20")):
        add_run(recorder, target="3", rank=rank, steps=steps, data_size="28")
    pages = recorder.save_views()
    name, state = saved(recorder, SWEEPS.key)
    assert name == "lora-exp: sweeps"
    assert state["searchFilter"] == "tags.kind = 'sweep'" and state["orderByAsc"] is False
    assert state["selectedColumns"][:3] == ["params.`varied`", "tags.`recommended`", "metrics.`recommended_gain`"]
    assert "metrics.`jobs_finished`" in state["selectedColumns"]
    assert [column for column in state["columnOrder"] if column in state["selectedColumns"]] == state["selectedColumns"]
    name, state = saved(recorder, RUNS.key)
    assert state["searchFilter"] == "tags.kind = 'run'"
    settings = [column for column in state["selectedColumns"] if column.startswith("params.")]
    assert settings == ["params.`rank`", "params.`steps`"]
    assert "metrics.`forgetting`" in state["selectedColumns"]
    # An address that gives a filter or an order makes MLflow ignore the view.
    for page, view in ((pages["sweep"], SWEEPS), (pages["run"], RUNS)):
        start = f"#/experiments/{recorder.experiment_id}/runs?workflowType=machine_learning"
        assert page == f"{start}&viewStateShareKey={view.key}"


def test_filter_and_order_of_the_views_are_such_that_mlflow_takes(recorder: Recorder) -> None:
    parents = [
        recorder.start_sweep(name, "c", {"jobs": "2"}, Ticket(name, time, False)) for time, name in ((1, "a"), (2, "b"))
    ]
    runs = [add_run(recorder) for _ in range(3)]
    recorder.save_views()
    for view, expected in ((SWEEPS, parents), (RUNS, runs)):
        state = saved(recorder, view.key)[1]
        order = [f"{state['orderByKey']} DESC"]
        found = recorder.client.search_runs([recorder.experiment_id], state["searchFilter"], order_by=order)
        assert [run.info.run_id for run in found] == expected[::-1]


def test_after_a_sweep_of_more_jobs_than_a_page_has_rows_every_sweep_is_on_the_first_page(recorder: Recorder) -> None:
    parents = {recorder.start_sweep(str(time), "c", {}, Ticket(str(time), time, False)) for time in range(1, 4)}
    store = recorder.client._tracking_client.store
    for number in range(PAGE + 20):  # newer than all sweeps
        store.create_run(recorder.experiment_id, "u", 10 + number, [RunTag("kind", "run")], str(number))
    state = saved(recorder, SWEEPS.key)[1] if recorder.save_views() else {}
    first_page = recorder.client.search_runs([recorder.experiment_id], state["searchFilter"], max_results=PAGE)
    assert {run.info.run_id for run in first_page} == parents


def test_a_store_without_runs_gets_the_usual_columns(recorder: Recorder) -> None:
    recorder.save_views()
    assert saved(recorder, RUNS.key)[1]["selectedColumns"][-len(USUAL) :] == [f"params.`{name}`" for name in USUAL]


def test_settings_stand_in_the_order_of_tables_and_there_are_not_too_many() -> None:
    one = {"seed": "0", "rank": "1", "dropout": "0", "target": "3", "data_size": "28"}
    assert differing([one, one | {"dropout": "0.1", "seed": "1", "target": "4"}]) == ["target", "seed", "dropout"]
    assert differing([one, {"rank": "1"}]) == list(USUAL)  # what a run lacks is no difference
    many = [{f"key_{number}": text for number in range(20)} for text in "ab"]
    assert len(differing(many)) == MOST_SETTINGS
