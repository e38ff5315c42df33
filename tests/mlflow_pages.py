"""Steps through MLflow's pages that tests and docs/screenshots.py share."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from playwright.sync_api import Locator, Page


@dataclass(frozen=True)
class Addresses:
    """What `lora-exp ui` prints: the table of sweeps, and that of runs."""

    sweeps: str
    runs: str

    @property
    def server(self) -> str:
        return self.runs.partition("/#")[0]


def served(process: subprocess.Popen[str]) -> Addresses:
    """The addresses that a process of `lora-exp ui` prints; its server answers then."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    printed = dict(line.split() for line in lines[1:] if line)
    assert {"sweeps", "runs"} <= printed.keys(), (lines, process.communicate())
    return Addresses(printed["sweeps"], printed["runs"])


def open_table(page: Page, address: str) -> None:
    """The table at one of these addresses, alone: MLflow opens an assistant beside it."""
    page.goto(address)
    page.locator(".ag-row").first.wait_for()
    page.get_by_placeholder("Ask a question").wait_for()
    for button in page.get_by_role("button", name="Close").all()[::-1]:
        button.click()
    page.get_by_placeholder("Ask a question").wait_for(state="hidden")


def columns(page: Page) -> list[str]:
    """The parameters, metrics and tags in the heading of a table, from left to right."""
    found = [(cell.bounding_box(), cell.get_attribute("col-id")) for cell in page.get_by_role("columnheader").all()]
    placed = sorted((box["x"], name) for box, name in found if box and name and name.endswith("`"))
    return [name.split("`")[1] for _, name in placed if not name.startswith("attributes.")]


def heading(page: Page, name: str) -> Locator:
    """The heading of a parameter, metric or tag."""
    return page.locator(f"[role=columnheader][col-id$='.`{name}`']")


def rows_of(page: Page, text: str, count: int) -> list[Locator]:
    """The rows that hold a text, once there are so many."""
    rows = page.get_by_role("row").filter(has_text=text)
    rows.nth(count - 1).wait_for()
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
