"""python docs/screenshots.py SWEEP REPORT [CONTEST]: take the pictures of docs/ from a sweep and reports, in Chromium.

SWEEP is a folder like runs/DATE/TIME, REPORT one like multirun_reports/example, CONTEST the report of a contest. Needs
the libraries of the tests. The UI is served on 127.0.0.1 meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from mlflow_pages import Addresses, add_metrics, compare, open_table, rows_of, served  # noqa: E402
from places import free_port  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE = {"width": 1400, "height": 720}


def mlflow_pictures(browser: Browser, sweep: Path) -> None:
    """Take `mlflow_sweeps.png`, `mlflow_runs.png` (the tables) and `mlflow_compare.png` (the runs of the sweep)."""
    about = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    with ui(Path(about["directory"])) as addresses:
        for name, address in (("mlflow_sweeps", addresses.sweeps), ("mlflow_runs", addresses.runs)):
            page = browser.new_page(viewport=SIZE)
            open_table(page, address)
            page.screenshot(path=PICTURES / f"{name}.png")
        page.goto(f"{addresses.runs.partition('/runs')[0]}/runs/{about['parent_run']}?workflowType=machine_learning")
        with page.expect_popup() as opened:
            page.get_by_role("link", name="All runs of this sweep").click()
        runs = opened.value
        compare(runs, rows_of(runs, "class ", len(about["jobs"])))
        add_metrics(runs, "other_error", "forgetting")
        runs.screenshot(path=PICTURES / "mlflow_compare.png")


def report_pictures(browser: Browser, report: Path) -> None:
    """Take the first screen and the maps (`report_charts.png`), gain against price, and one run."""
    page = browser.new_page(viewport={"width": 1200, "height": 1080})
    page.goto((report / "report.html").as_uri())
    for name, place, height in (("charts", "header", 1420), ("price", "#price", 1080), ("run", "#one", 1080)):
        page.set_viewport_size({"width": 1200, "height": height})
        page.locator(place).evaluate("element => element.scrollIntoView()")
        page.wait_for_timeout(500)  # until the page has seen what is in sight
        page.locator("body[data-drawn=true]").wait_for(state="attached")
        page.screenshot(path=PICTURES / f"report_{name}.png")
    page.close()


def contest_picture(browser: Browser, report: Path) -> None:
    """Take the forest plot of a contest."""
    page = browser.new_page(viewport={"width": 1000, "height": 800}, device_scale_factor=1.5)
    page.goto((report / "contest.html").as_uri())
    page.locator("figure").first.screenshot(path=PICTURES / "contest_forest.png")
    page.close()


@contextmanager
def ui(folder: Path) -> Iterator[Addresses]:
    """Run `lora-exp ui` in a folder, and yield the addresses that it prints."""
    command = [sys.executable, "-m", "lora_exp", "ui", "--port", str(free_port())]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, **streams, text=True)
    try:
        yield served(process)
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        mlflow_pictures(browser, Path(sys.argv[1]).absolute())
        report_pictures(browser, Path(sys.argv[2]).absolute())
        for report in sys.argv[3:]:
            contest_picture(browser, Path(report).absolute())
        browser.close()


if __name__ == "__main__":
    main()
