"""python -m pytest tests/test_mlflow_ui.py

What users see of a real sweep in MLflow's own pages, in a real browser: tables, comparison, links, report, data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_pages import Addresses, add_metrics, axes, columns, compare, heading, open_table, rows_of, served
from places import QUICK, Place, free_port
from playwright.sync_api import Browser, Page, expect

from lora_exp.model.data import ImageData

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
JOBS = ("adapter.rank=1,2", "adapter.alpha=1,8", "finetune.digit=3,4")
SCRIPTED = (
    "<html><body><p>no script</p><script>document.body.innerHTML = '<p>drawn</p>'</script><!--{}--></body></html>"
)


class Shown:
    """A sweep, and where its UI is."""

    def __init__(self, place: Place, addresses: Addresses) -> None:
        self.place, self.addresses, self.server = place, addresses, addresses.server
        first = min(place.folder.glob("runs/*/*/sweep.json"))
        about = json.loads(first.read_text())
        self.name, self.parent = about["name"], about["parent_run"]

    def page_of(self, run: str, artifact: str = "") -> str:
        return f"{self.addresses.runs.partition('/runs')[0]}/runs/{run}{artifact}?workflowType=machine_learning"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Iterator[Shown]:
    """Two sweeps, served by `lora-exp ui`: eight jobs, with a page of 5 MB beside the report, and then 110 jobs, of
    which MLflow's table shows 100 at a time."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("shown")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    place = Place(folder)
    place.run("-m", *QUICK, *JOBS)
    (folder / "drawn.html").write_text(SCRIPTED.format("x" * 5_000_000))
    parent = json.loads((place.sweep() / "sweep.json").read_text())["parent_run"]
    MlflowClient(f"sqlite:///{folder}/mlflow.db").log_artifact(parent, str(folder / "drawn.html"), "report")
    place.run("-m", *QUICK, "finetune.steps=1", "finetune.digit=range(0,10)", "finetune.seed=range(0,11)")
    process = place.start("ui", "--port", str(free_port()), new_session=True)
    yield Shown(place, served(process))
    process.terminate()
    process.communicate()


@pytest.fixture
def page(shown: Shown, browser: Browser) -> Iterator[Page]:
    """A page of a browser that has seen nothing before; all that it and its like ask for is on this machine."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(30_000)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    yield context.new_page()
    context.close()
    elsewhere = [url for url in asked if not url.startswith((f"{shown.server}/", "blob:", "data:"))]
    assert asked
    assert elsewhere == []


def test_every_sweep_is_on_the_first_page_with_what_varied_and_what_it_recommends(shown: Shown, page: Page) -> None:
    open_table(page, shown.addresses.sweeps)
    page.set_viewport_size({"width": 2400, "height": 900})  # MLflow draws the columns that are in sight
    expect(heading(page, "mean_forgetting")).to_be_visible()
    assert columns(page)[:4] == ["varied", "recommended", "recommended_gain", "jobs"]
    expect(page.get_by_text("2 matching runs")).to_be_visible()
    newest, first = page.locator(".ag-center-cols-container [role=row]").all()
    expect(newest).to_contain_text("class, seed")
    expect(newest).to_contain_text("110")
    expect(first).to_contain_text("class, rank, alpha")
    expect(page.get_by_text("lora-exp: sweeps")).to_be_visible()  # among the saved views


def test_the_runs_are_listed_alone_newest_first_with_the_columns_in_which_they_differ(shown: Shown, page: Page) -> None:
    open_table(page, shown.addresses.runs)
    page.set_viewport_size({"width": 2400, "height": 900})
    expect(heading(page, "seed")).to_be_visible()
    assert columns(page)[:3] == ["balanced_accuracy_gained", "beyond_shift", "target_error"]
    assert columns(page)[-5:] == ["target", "rank", "alpha", "steps", "seed"]
    expect(page.get_by_text("100 matching runs")).to_be_visible()  # so many at a time
    rows_of(page, "class 3, seed 7", 1)
    expect(page.get_by_role("row").filter(has_text=shown.name)).to_have_count(0)
    expect(page.get_by_text("lora-exp: runs")).to_be_visible()


def test_the_runs_of_a_sweep_are_compared_by_rank_alpha_target_and_errors(shown: Shown, page: Page) -> None:
    page.goto(shown.page_of(shown.parent))
    with page.expect_popup() as opened:
        page.get_by_role("link", name="All runs of this sweep").click()
    runs = opened.value
    compare(runs, rows_of(runs, "rank", 8))
    assert axes(runs) == ["alpha", "rank", "target", "target_error"]
    add_metrics(runs, "other_error", "forgetting")
    assert axes(runs) == ["alpha", "rank", "target", "target_error", "other_error", "forgetting"]


def test_a_sweep_links_to_its_runs_and_they_link_back(shown: Shown, page: Page) -> None:
    page.goto(shown.page_of(shown.parent))
    expect(page.get_by_text("8 jobs: 8 finished.")).to_be_visible()
    expect(page.get_by_text("For both classes:")).to_be_visible()
    page.get_by_text("Show more").first.click()
    link = page.get_by_role("cell").get_by_role("link", name=re.compile("^class ")).first  # of a front
    name = link.inner_text()
    with page.expect_popup() as opened:
        link.click()
    run = opened.value
    expect(run.get_by_role("heading", name=name)).to_be_visible()
    expect(run.get_by_text(re.compile(r"mnist \([0-9a-f]{12}-train-3000\)"))).to_be_visible()
    run.get_by_text("Show more").first.click()
    with run.expect_popup() as opened:
        run.get_by_role("link", name="The sweep").click()
    expect(opened.value.get_by_role("heading", name=shown.name)).to_be_visible()


def test_a_sweep_links_to_the_list_of_its_runs_alone(shown: Shown, page: Page) -> None:
    page.goto(shown.page_of(shown.parent))
    with page.expect_popup() as opened:
        page.get_by_role("link", name="All runs of this sweep").click()
    rows = opened.value.get_by_role("row").filter(has_text="class ")
    expect(rows).to_have_count(8)
    expect(opened.value.get_by_text("8 matching runs")).to_be_visible()


def test_the_report_is_shown_and_its_scripts_run(shown: Shown, page: Page) -> None:
    page.goto(shown.page_of(shown.parent))
    with page.expect_popup() as opened:
        page.get_by_role("link", name="its report").click()
    report = opened.value
    expect(report.get_by_text("report/report.html", exact=True)).to_be_visible()
    # MLflow 3.17 shows whichever artifact arrives last, under the name of the one that was chosen last. So the next is
    # chosen only when the report has arrived.
    shown_file = report.frame_locator("iframe")
    expect(shown_file.get_by_text("jobs: 8 finished")).to_be_visible()
    report.get_by_text("drawn.html").click()
    expect(shown_file.get_by_text("drawn")).to_be_visible()


def test_a_filter_typed_into_the_table_finds_runs_by_setting_and_error(shown: Shown, page: Page) -> None:
    open_table(page, shown.addresses.runs)
    box = page.get_by_test_id("search-box")
    box.fill("params.target = '3' and metrics.`adapter/rank` >= 2 and metrics.target_error < 0.5")
    box.press("Enter")
    expect(page.get_by_text("2 matching runs")).to_be_visible()
