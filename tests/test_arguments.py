"""python -m pytest tests/test_arguments.py

The sub-commands' arguments: one rule for overrides, and parsers that load no large library.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from lora_exp.commands import COMMANDS
from lora_exp.commands.arguments import add_overrides, is_override, parse
from lora_exp.errors import LoraExpError


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("store.folder=elsewhere", True),
        ("tracking=off", True),
        ("model=tiny", True),
        ("data.root=", True),
        ("++adapter.rank_pattern.linear2=5", True),
        ("hydra.run.dir=runs/a=b", True),
        ("hydra/launcher=basic", True),
        ("experiment=digit_9", True),
        ("store", False),
        ("stor.folder=elsewhere", False),
        ("data/r=8", False),
        ("runs/adapter.rank=1", False),
        ("./model=tiny", False),
        ("--name=model", False),
        ("", False),
    ],
)
def test_an_override_is_a_config_group_with_a_value(argument: str, expected: bool) -> None:
    assert is_override(argument) is expected


def test_overrides_may_stand_anywhere_among_the_arguments() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="+")
    parser.add_argument("--out")
    add_overrides(parser, "store.folder=elsewhere")
    options = parse(parser, ["tracking=off", "--out", "there", "store.folder=a", "one", "two", "report.name=b"])
    assert (options.run, options.out) == (["one", "two"], "there")
    assert options.overrides == ["tracking=off", "store.folder=a", "report.name=b"]


def test_an_argument_that_no_parser_knows_is_one_line() -> None:
    parser = argparse.ArgumentParser()
    add_overrides(parser, "store.folder=elsewhere")
    with pytest.raises(LoraExpError, match=r"^stor=a: must be an override GROUP\.KEY=VALUE, with GROUP one of model, "):
        parse(parser, ["tracking=off", "stor=a"])
    with pytest.raises(LoraExpError, match=r"; did you mean store\.folder=a\?$"):
        parse(parser, ["stor.folder=a"])


def test_the_help_of_every_command_loads_no_large_library() -> None:
    code = """
import sys
from lora_exp.commands import COMMANDS
for command in COMMANDS.values():
    try:
        command.run(["--help"])
    except SystemExit as end:
        assert end.code == 0
loaded = {"torch", "mlflow", "pandas", "numpy", "scipy", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: lora-exp ") == len(COMMANDS) == 15
