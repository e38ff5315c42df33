"""python -m pytest tests/test_commands_shown.py

Every command in a block of the README or of a document is taken as it stands: its overrides compose to a run, or its
sub-command takes its arguments. test_docs.py runs some of them.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lora_exp.commands import COMMANDS
from lora_exp.commands.arguments import is_override
from lora_exp.config.compose import compose_config, read

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import reference  # noqa: E402

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def shown() -> list[str]:
    """Every line of a block of shell that starts with lora-exp, with the lines that go on with it."""
    blocks = [block for page in PAGES for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({" ".join(line.split()) for line in lines if line.startswith("lora-exp ")})


def first_job(override: str) -> str:
    """An override as the first job of a sweep has it."""
    [parsed] = OverridesParser.create().parse_overrides([override])
    if not parsed.is_sweep_override():
        return override
    if parsed.is_choice_sweep() or parsed.is_range_sweep():
        return f"{parsed.key_or_group}={next(parsed.sweep_string_iterator())}"
    return f"{parsed.key_or_group}={parsed.value().start}"  # an interval of a search


def test_there_are_many_commands() -> None:
    assert len(shown()) > 50


@pytest.mark.parametrize("command", shown())
def test_a_command_that_is_shown_is_taken(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(b"some weights")
    (tmp_path / "presets" / "experiment").mkdir(parents=True)
    (tmp_path / "presets" / "experiment" / "mine.yaml").write_text("# @package _global_\nadapter: {rank: 2}\n")
    arguments = [word for word in shlex.split(command, comments=True)[1:] if word != "..."]
    if arguments[0] in COMMANDS:
        [parser] = reference.parsers(arguments[0])
        parser.parse_args([word for word in arguments[1:] if not is_override(word)])
        return
    overrides = [word for word in arguments if word not in ("-m", "--plan", "--help")]
    assert all(map(is_override, overrides))
    read(compose_config([word if word.startswith("--") else first_job(word) for word in overrides]))
