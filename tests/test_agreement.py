"""python -m pytest tests/test_agreement.py

One sweep, told in Markdown, HTML, CSV, parquet, on a terminal and in MLflow: the same numbers everywhere.
"""

from __future__ import annotations

import html
import json
import re
import warnings
from csv import DictReader
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from places import QUICK, Place, prepared

from lora_exp.model.data import ImageData
from lora_exp.report.gained import TITLES
from lora_exp.report.tables import MEASURES, percent, points
from lora_exp.report.terminal import HEADINGS
from lora_exp.report.verdict import verdict
from lora_exp.storage.sweep_folder import read_sweep


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Place:
    place = prepared(tmp_path_factory.mktemp("agreement"), data_root)
    axes = ("adapter.rank=1,2", "finetune.digit=3,8", "finetune.seed=0,1,2")
    (place.folder / "terminal.txt").write_text(place.run("-m", *QUICK, *axes)[0])
    return place


@pytest.fixture(scope="module")
def frame(place: Place) -> pd.DataFrame:
    return read_sweep(place.sweep()).frame


def written(frame: pd.DataFrame) -> dict[int, list[str]]:
    """What every table must say of a job, after its settings."""
    return {
        row["job"]: [write(row[name]) for name, (_, write) in MEASURES.items()]
        for row in frame.to_dict("records")
    }  # fmt: skip


def rows_of(cells: list[list[str]]) -> dict[int, list[str]]:
    return {int(row[0].strip(" *")): [cell.strip() for cell in row[-len(MEASURES) :]] for row in cells}


def page(place: Place, name: str) -> str:
    [path] = place.folder.glob(f"multirun_reports/*/{name}")
    return path.read_text()


def test_markdown_html_and_terminal_write_the_same_cells(place: Place, frame: pd.DataFrame) -> None:
    section = page(place, "report.md").split("## Finished runs")[1].split("\n## ")[0]
    markdown = [line.strip("|").split("|") for line in section.splitlines() if re.match(r"\| +\d", line)]
    table = page(place, "report.html").split('id="runs-table"')[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(?:<button.*?>)?(.*?)(?:</button>)?</td>", row) for row in table.split("<tr>")[2:]]
    lines = (place.folder / "terminal.txt").read_text().splitlines()
    terminal = [line.split() for line in lines if re.match(r" *\d+\*? ", line)]
    expected = written(frame)
    assert len(expected) == 12
    assert rows_of(markdown) == expected
    assert rows_of([row[:-1] for row in rows]) == expected  # the last cell has another button
    shown = list(HEADINGS)[:6]  # as many as fit 80 columns
    places = [list(MEASURES).index(name) for name in shown]
    in_order = {job: [cells[at] for at in places] for job, cells in expected.items()}
    assert {int(row[0].strip("*")): row[-len(shown) :] for row in terminal} == in_order
    assert [list(map(int, row[1:4])) for row in terminal] == frame[["target", "rank", "seed"]].astype(
        int
    ).values.tolist()


def test_the_verdict_is_the_same_line_everywhere(place: Place, frame: pd.DataFrame) -> None:
    line = verdict(frame)
    assert "Mean of 12 finished runs" in line
    assert line in (place.folder / "terminal.txt").read_text().splitlines()
    assert line in page(place, "report.md")
    assert line in html.unescape(page(place, "report.html"))


def test_what_was_gained_is_the_same_in_markdown_and_html_and_is_the_mean_of_the_table(
    place: Place, frame: pd.DataFrame
) -> None:
    section = page(place, "report.md").split("## What was gained")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    markdown = [lines[0], *lines[2:]]
    text = page(place, "report.html").split("<h2>What was gained</h2>")[1].split("</details>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    assert rows == markdown
    cells = {title: own for title, *own in markdown[1:]}
    for title, name in (("balanced accuracy", "balanced_accuracy"), ("F1 of the target", "f1")):
        before, after = frame[f"{name}_before"].mean(), frame[name].mean()
        assert cells[title][:3] == [percent(before), percent(after), points(after - before)]
    shown = cells["error on the other classes (change: forgetting)"]
    assert shown[2] == points(frame["forgetting"].mean())
    assert shown[4] == points(frame["shift_forgetting"].mean())
    assert cells["recall of the target"][3] == percent(frame["shift_recall"].mean())


def test_the_page_and_the_tracker_hold_the_measures_of_every_run(place: Place, frame: pd.DataFrame) -> None:
    pages, tracked = page_data(page(place, "report.html")), tracked_runs(place.folder)
    for row in frame.to_dict("records"):
        metrics = tracked[row["spec_key"]]
        assert metrics["metrics.balanced_accuracy_gained"] == row["balanced_accuracy_gained"]
        assert pages[row["job"]]["numbers"]["balanced_accuracy_gained"] == row["balanced_accuracy_gained"]
        shown = dict(zip(TITLES, pages[row["job"]]["gains"]["measures"], strict=True))
        for title, name in (("F1 of the target", "f1"), ("worst class error", "worst_class_error")):
            both = [metrics[f"metrics.gains/{name}_before"], metrics[f"metrics.gains/{name}"]]
            assert both == [row[f"{name}_before"], row[name]]
            assert shown[title][:2] == list(map(percent, both))
        assert shown["accuracy"][4] == percent(metrics["metrics.gains/shift_accuracy"])


def test_tables_and_tracker_hold_the_same_bits(place: Place, frame: pd.DataFrame) -> None:
    [report] = place.folder.glob("multirun_reports/*")
    parquet = pd.read_parquet(report / "summary.parquet")
    with (report / "summary.csv").open() as file:
        csv = list(DictReader(file))
    tracked = tracked_runs(place.folder)
    page_rows = page_data(page(place, "report.html"))
    for at, row in enumerate(frame.to_dict("records")):
        for name in MEASURES:
            assert (
                parquet[name][at] == float(csv[at][name]) == row[name] == tracked[row["spec_key"]][f"metrics.{name}"]
            ), name
        for name in ("target_error", "other_error", "forgetting", "balanced_accuracy_gained"):
            assert page_rows[row["job"]]["numbers"][name] == row[name]
        assert page_rows[row["job"]]["after"]["errors"] == [row[f"errors_{digit}"] for digit in range(10)]
        for name in ("rank", "target", "seed"):
            assert tracked[row["spec_key"]][f"params.{name}"] == str(row[name])


def page_data(text: str) -> dict[int, dict[str, Any]]:
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return {run["job"]: run for run in data["runs"]}


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_the_parent_says_what_the_report_says(place: Place, frame: pd.DataFrame) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.folder}/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name == "lora_exp"]
    [parent] = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    for name in ("target_error", "other_error", "forgetting", "balanced_accuracy_gained"):
        assert parent.data.metrics[f"mean_{name}"] == frame[name].mean()


def tracked_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs by the key of their spec, as MLflow's own table has them."""
    from mlflow import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        [experiment] = [one for one in client.search_experiments() if one.name == "lora_exp"]
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    found = {}
    for run in runs:
        facts = {f"metrics.{name}": value for name, value in run.data.metrics.items()}
        found[run.data.tags["spec_key"]] = facts | {f"params.{name}": v for name, v in run.data.params.items()}
    return found
