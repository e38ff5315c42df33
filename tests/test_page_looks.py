"""python -m pytest tests/test_page_looks.py

Pages at the ends of what they must show: no rule of accessibility is broken, nothing is wider than the screen, and no
error is raised.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from extremes import SWEEPS, written
from playwright.sync_api import Browser, Page

SCREEN = {"width": 1024, "height": 800}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Those but for the thousand runs, which take longer to make."""
    folder = tmp_path_factory.mktemp("extremes")
    return {name: written(name, folder) for name in SWEEPS if name != "thousand"}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened, troubles = browser.new_page(viewport=SCREEN), list[str]()
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda message: troubles.append(message.text))
    yield opened
    opened.close()
    assert troubles == []


def drawn(page: Page, report: Path) -> None:
    """Open a report and scroll through it, so that every chart is drawn."""
    page.goto((report / "report.html").as_uri())
    for chart in page.locator(".chart").all():
        chart.evaluate("element => element.scrollIntoView()")
        page.locator("body[data-drawn=true]").wait_for(state="attached")
    unfold(page, True)


def unfold(page: Page, is_open: bool) -> None:
    page.evaluate(f"document.querySelectorAll('details').forEach((one) => {{ one.open = {str(is_open).lower()}; }})")


NAMES = [name for name in SWEEPS if name != "thousand"]


@pytest.mark.parametrize("name", NAMES)
def test_no_rule_of_accessibility_is_broken_in_light_and_dark(reports: dict[str, Path], page: Page, name: str) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        drawn(page, reports[name])
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_any_screen(reports: dict[str, Path], page: Page, name: str) -> None:
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 800})
        drawn(page, reports[name])
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_one_tab_stop(reports: dict[str, Path], page: Page, name: str) -> None:
    drawn(page, reports[name])
    unfold(page, False)
    stops = page.evaluate(
        """[...document.querySelectorAll(".scroll")].filter((one) => one.checkVisibility()).map((one) =>
            [one, ...one.querySelectorAll("*")].filter((inner) => inner.tabIndex >= 0).length)"""
    )
    assert set(stops) <= {1} and (stops or name == "none")


def test_print_has_no_buttons_and_no_chart_is_cut(reports: dict[str, Path], page: Page) -> None:
    drawn(page, reports["methods"])
    unfold(page, False)
    page.emulate_media(media="print")
    assert page.locator("button:visible:not(.sort):not(.show)").count() == 0  # those are words of a table
    assert page.locator("#filters").is_hidden()
    rule = "(one) => getComputedStyle(one).breakInside !== 'avoid'"
    assert page.evaluate(f"[...document.querySelectorAll('.frame, figure')].filter({rule}).length") == 0
    assert page.locator(".chart .main-svg").count() > 10
