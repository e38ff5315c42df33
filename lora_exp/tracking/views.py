"""Pages of MLflow's UI: their addresses, and two tables, of sweeps and of runs, with the columns that matter.

MLflow's own table shows no number at first, and there a sweep of many jobs hides the other sweeps. Columns, filter and
order of a table are kept in a tag of the experiment, which the UI offers as a saved view. An address that names a view
must give none of these itself, else MLflow ignores the view.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_exp.storage.varied import SETTINGS

# Part of every address. Without it the UI opens its view for language models, which hides most of a run.
WORKFLOW = "workflowType=machine_learning"
NEWEST = 1000  # runs whose parameters are compared, MLflow's limit is 50,000
MOST_SETTINGS = 8  # columns
USUAL = ("target", "method", "rank", "alpha")  # parameters that are shown where none differ
RUN_NAME, CREATED, DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"  # MLflow's names of columns
# Widths of columns in pixels: those that hold text, and those of others, whose headings MLflow cuts.
TEXT_WIDTHS = {"varied": 190, "recommended": 190}
LEAST_WIDTH, MOST_WIDTH = 70, 150


@dataclass(frozen=True)
class View:
    """A saved table: its name in addresses and in the UI, what it lists, in which order (descending), and columns.

    Columns are named as in filters: `metrics.forgetting`. `name_width` is that of the names of runs, in pixels.
    """

    key: str
    name: str
    kind: str
    order: str
    name_width: int
    columns: tuple[str, ...]

    def state(self) -> str:
        """The JSON that MLflow's UI reads: which columns, their order and widths, the filter, and the order of rows."""
        columns = {f"{group}.`{name}`": name for group, _, name in (one.partition(".") for one in self.columns)}
        widths = {
            column: TEXT_WIDTHS.get(name, min(max(8 * len(name) + 30, LEAST_WIDTH), MOST_WIDTH))
            for column, name in columns.items()
        }
        state = {
            "selectedColumns": list(columns),
            "columnOrder": [RUN_NAME, CREATED, *columns, DURATION],
            "columnWidths": widths | {RUN_NAME: self.name_width},
            "searchFilter": f"tags.kind = '{self.kind}'",
            "orderByKey": self.order,
            "orderByAsc": False,
        }
        return json.dumps(state)


SWEEPS = View(
    "lora_exp_sweeps",
    "lora-exp: sweeps",
    "sweep",
    "attributes.start_time",
    220,
    (
        *("params.varied", "tags.recommended", "metrics.recommended_gain", "params.jobs", "metrics.jobs_finished"),
        *("metrics.highest_beyond_shift", "metrics.highest_balanced_accuracy_gained", "metrics.mean_target_error"),
        "metrics.mean_forgetting",
    ),
)
# In the order of `start_time`, by that name, MLflow folds runs below their sweeps.
RUNS = View(
    "lora_exp_runs",
    "lora-exp: runs",
    "run",
    "attributes.`Created`",
    300,
    (
        *("metrics.balanced_accuracy_gained", "metrics.beyond_shift", "metrics.target_error", "metrics.other_error"),
        *("metrics.forgetting", "metrics.parameters_adapter"),
    ),
)


def run_page(experiment: str, run: str, artifact: str = "") -> str:
    """The address of a run, or of one of its artifacts, below MLflow's, as descriptions link to it."""
    path = f"{run}/artifacts/{artifact}" if artifact else run
    return f"#/experiments/{experiment}/runs/{path}?{WORKFLOW}"


def children_page(experiment: str, parent: str) -> str:
    """The address of the list of a sweep's runs. It is sorted, because MLflow folds an unsorted list by parent."""
    query = {"searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'"}
    query |= {"orderByKey": "metrics.`target_error`", "orderByAsc": "true"}
    encoded = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    return f"#/experiments/{experiment}/runs?{WORKFLOW}&{encoded}"


def save_views(client: Any, experiment: str, now: int) -> dict[str, str]:
    """Save SWEEPS and RUNS in an experiment; return their addresses below MLflow's, by kind.

    RUNS gets the parameters in which the newest runs differ, as last columns: a run's name says what varies too.
    `client` is an `mlflow.MlflowClient`, `now` the time in milliseconds since 1970.
    """
    newest = ["attributes.start_time DESC"]
    runs = client.search_runs([experiment], f"tags.kind = '{RUNS.kind}'", order_by=newest, max_results=NEWEST)
    settings = [f"params.{name}" for name in differing(run.data.params for run in runs)]
    found = {}
    for view in (SWEEPS, replace(RUNS, columns=(*RUNS.columns, *settings))):
        saved = {"name": view.name, "createdAt": now, "updatedAt": now, "state": view.state()}
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{view.key}", json.dumps(saved))
        found[view.kind] = f"#/experiments/{experiment}/runs?{WORKFLOW}&viewStateShareKey={view.key}"
    return found


def differing(runs: Iterable[Mapping[str, str]]) -> list[str]:
    """The parameters in which runs differ, at most MOST_SETTINGS, in the order of tables; USUAL where none do."""
    values: dict[str, set[str]] = {}
    for parameters in runs:
        for name, value in parameters.items():
            values.setdefault(name, set()).add(value)
    varied = [name for name, own in values.items() if len(own) > 1]
    varied.sort(key=lambda name: SETTINGS.index(name) if name in SETTINGS else len(SETTINGS))
    return varied[:MOST_SETTINGS] or list(USUAL)
