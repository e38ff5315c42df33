"""Steps through MLflow's pages that tests and docs/screenshots.py share."""

from __future__ import annotations

import subprocess
import time
import urllib.request

from playwright.sync_api import Locator, Page

NAME = "[col-id='attributes.`Run Name`']"


def served(process: subprocess.Popen[str]) -> str:
    """The address that a process of `lora-exp ui` prints, once its server answers."""
    assert process.stdout is not None
    address = process.stdout.readline().split()[1]
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{address.partition('#')[0]}health", timeout=2).close()
            return address
        except OSError:
            time.sleep(0.1)
    raise AssertionError(process.communicate())


def open_runs(page: Page, address: str) -> None:
    """The table of runs at the address that `lora-exp ui` prints, alone: MLflow opens an assistant beside it."""
    page.goto(address)
    page.locator(".ag-row").first.wait_for()
    page.get_by_placeholder("Ask a question").wait_for()
    for button in page.get_by_role("button", name="Close").all()[::-1]:
        button.click()
    page.get_by_placeholder("Ask a question").wait_for(state="hidden")


def expand(page: Page, sweep: str, jobs: int) -> list[Locator]:
    """The rows of a sweep's runs, which it shows once it is expanded."""
    page.get_by_role("row").filter(has_text=sweep).locator(f"{NAME} button").click()
    rows = page.get_by_role("row").filter(has_text="target-")
    rows.nth(jobs - 1).wait_for()
    return rows.all()


def compare(page: Page, rows: list[Locator]) -> None:
    """Select these runs and compare them; the plot is there when this returns."""
    for row in rows:
        row.get_by_role("checkbox", name="Press Space").check()
    page.get_by_role("button", name="Compare").click()
    page.locator(".parcoords .axis-title").first.wait_for()


def add_metrics(page: Page, *names: str) -> None:
    """Put more metrics on the plot of the compare page."""
    page.get_by_text("Metrics:").locator("xpath=following::*[@role='combobox'][1]").click()
    for name in names:
        page.get_by_title(name, exact=True).click()
    page.keyboard.press("Escape")
    page.locator(".parcoords .axis-title", has_text=names[-1]).wait_for()


def axes(page: Page) -> list[str]:
    """The names of the axes of the parallel-coordinates plot, from left to right."""
    return page.locator(".parcoords .axis-title").all_text_contents()
