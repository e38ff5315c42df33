"""python benchmarks/report.py SWEEP [N]: how long a report takes to build, how large its page is, how fast it opens.

SWEEP is the folder of a real sweep. Times are medians of N (default 5), in seconds: the whole `lora-exp report` in this
process once it is warm, and in Chromium from the request until every chart in sight is drawn; and, with maps in sight,
from the choice of a value in the first filter until all that is in sight is drawn again.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from lora_exp.commands.report import report


def main() -> None:
    sweep, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report"
        builds = []
        for _ in range(count + 1):
            started = time.perf_counter()
            report([sweep], out, [])
            builds.append(time.perf_counter() - started)
        opens, filters = _opened(out / "report.html", count)
        runs = len((out / "summary.csv").read_text().splitlines()) - 1
        size = (out / "report.html").stat().st_size / 1e6
    print(f"{runs} runs, n={count}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    print(f"build  first {builds[0]:.2f} s, then median {statistics.median(builds[1:]):.2f} s")
    print(f"page   {size:.1f} MB; opens in median {statistics.median(opens):.2f} s (largest {max(opens):.2f} s)")
    if filters:
        print(f"filter median {statistics.median(filters):.2f} s (largest {max(filters):.2f} s)")


def _opened(page: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds until the page is drawn, and until it is drawn again after a filter."""
    times: list[float] = []
    filters: list[float] = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for _ in range(count):
            opened = browser.new_page()
            started = time.perf_counter()
            opened.goto(page.as_uri())
            opened.locator("body[data-drawn=true]").wait_for(state="attached")
            times.append(time.perf_counter() - started)
            filters += _filtered(opened)
            opened.close()
        browser.close()
    return times, filters


def _filtered(page: Page) -> list[float]:
    """Milliseconds are taken in the page, without the way to it. None where there is nothing to filter."""
    if page.locator("#choices > .filter").count() == 0:
        return []
    page.locator("#maps").evaluate("element => element.scrollIntoView()")
    page.locator("#map-forgetting[data-drawn=true]").wait_for()
    page.locator("body[data-drawn=true]").wait_for(state="attached")
    seconds: float = page.evaluate(
        """() => new Promise((done) => {
            const started = performance.now();
            const drawn = () => document.body.dataset.drawn === "true";
            document.querySelector("#choices input[type=checkbox]").click();
            const look = () => (drawn() ? done((performance.now() - started) / 1000) : requestAnimationFrame(look));
            look();
        })"""
    )
    return [seconds]


if __name__ == "__main__":
    main()
