"""python docs/pages.py FOLDER [NAME ...]: pictures of reports at the ends of what they must show, to be looked at.

Each sweep of `tests/extremes.py`, or those named, on screens of 1440, 1024 and 390 pixels, light and dark. Needs the
libraries of the tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from extremes import SWEEPS, written

WIDTHS = (1440, 1024, 390)
SCREEN = 900  # pixels that are scrolled at a time, so that every chart is drawn


def picture(browser: Browser, report: Path, width: int, scheme: str, out: Path) -> None:
    """Take a picture of the whole page."""
    page = browser.new_page(viewport={"width": width, "height": SCREEN}, color_scheme=scheme)
    page.goto((report / "report.html").as_uri())
    for top in range(0, page.evaluate("document.documentElement.scrollHeight"), SCREEN):
        page.evaluate(f"scrollTo(0, {top})")
        page.wait_for_timeout(100)
        page.locator("body[data-drawn=true]").wait_for(state="attached")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=out, full_page=True)
    page.close()


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name in sys.argv[2:] or SWEEPS:
            report = written(name, Path(folder))
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    picture(browser, report, width, scheme, out / f"{name}_{width}_{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
