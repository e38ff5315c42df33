"""python -m pytest tests/test_site.py

The documents build into a site whose links all lead somewhere, and which loads nothing from elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_is_a_page_that_the_menu_names(site: Path) -> None:
    start = (site / "index.html").read_text()
    documents = list((ROOT / "docs").glob("*.md"))
    assert len(documents) >= 16
    for document in documents:
        assert (site / f"{document.stem}.html").is_file()
        assert f'href="{document.stem}.html"' in start
    assert not list(site.glob("*.py"))


def test_documents_link_to_files_outside_their_folder(site: Path) -> None:
    for name in ("CONTRIBUTING", "CHANGELOG", "multirun_reports/example/report"):
        assert (site / f"{name}.html").is_file()
    example = (site / "multirun_reports" / "example" / "report.html").read_text()
    [figure, *_] = re.findall(r'<img alt="Heat maps[^"]*" src="([^"]+)"', example)
    assert (site / "multirun_reports" / "example" / figure).is_file()
    assert 'href="docs/' not in (site / "CONTRIBUTING.html").read_text()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="([^"]*)"', page.read_text())
        assert loaded
        assert [place for place in loaded if re.match(r"(https?:)?//", place)] == []
