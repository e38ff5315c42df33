"""python -m pytest tests/test_reference_page.py

docs/reference.md says what the code has: `make docs` writes it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lora_exp.commands import COMMANDS
from lora_exp.config.compose import config_folder
from lora_exp.config.names import GROUPS

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))
import reference  # noqa: E402

FILES = sorted(path for path in config_folder().rglob("*.yaml") if path.parent != config_folder())


@pytest.fixture(scope="module")
def page() -> str:
    return reference.page()


def test_the_page_is_what_the_code_says_today(page: str) -> None:
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == page, "stale; make docs writes it again"


def test_the_page_has_every_command_with_each_of_its_arguments(page: str) -> None:
    for name in COMMANDS:
        assert f"### `lora-exp {name}`\n" in page
    assert "| `--older-than DAYS` | remove what was not used for DAYS |" in page
    assert "| `--format peft` |" in page and "| `RUN`, one or several |" in page


def test_the_page_has_every_key_with_what_it_allows_its_default_and_its_meaning(page: str) -> None:
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in page.splitlines() if re.match(r"\| `\w+\.\w+` \|", line)]
    rows = [row for row in rows if not row[0].startswith("`hydra.")]
    assert {row[0].strip("`").partition(".")[0] for row in rows} == set(GROUPS)
    assert len(rows) > 70
    for row in rows:
        assert len(row) == 4 and all(row), row
    assert ["`adapter.rank`", "an integer of at least 1", "`1`"] in [row[:3] for row in rows]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config_folder())))
def test_the_page_has_every_option_and_its_file_says_what_it_is(path: Path, page: str) -> None:
    own = reference.Option.of(path)
    assert own.meaning
    assert re.search(rf"^\| `{path.stem}`( \(default\))? \| ", page, re.MULTILINE)


def test_equal_keys_of_a_file_and_the_main_config_are_told_apart() -> None:
    comments = reference._comments(
        "store:\n  folder: a # one\nreport:\n  folder: b # two\n  deep:\n    er: c\n  name: d # x\n"
    )
    assert comments == {"store.folder": "one", "report.folder": "two", "report.name": "x"}
    assert [reference.shown(value) for value in (None, True, 0, 0.001, [1, 2], ["*"])] == [
        *("null", "true", "0", "0.001", "[1,2]", "[*]")
    ]
