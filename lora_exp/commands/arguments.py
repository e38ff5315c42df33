"""Arguments of the sub-commands: one rule separates overrides of settings from other arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lora_exp.config.compose import PRESETS
from lora_exp.config.names import OVERRIDE_GROUPS, meant
from lora_exp.errors import LoraExpError, did_you_mean


def is_override(argument: str) -> bool:
    """Whether an argument is GROUP.KEY=VALUE or GROUP=OPTION with a config group, `+` and `~` before it allowed.

    `--config-dir=FOLDER`, which names presets of one's own, goes with the overrides.
    """
    if argument.startswith(PRESETS):
        return True
    key, equals, _ = argument.lstrip("+~").partition("=")
    return bool(equals) and (key.partition(".")[0] in OVERRIDE_GROUPS or key.startswith("hydra/"))


def add_run(parser: argparse.ArgumentParser) -> None:
    """Let a command take the folder of a run, as `run`."""
    parser.add_argument("run", type=Path, help="folder of a run, or of one job of a sweep")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Let a command take overrides. They may be anywhere among its arguments."""
    about = f"overrides of settings, such as {example}"
    # With a default argparse does not count them among what is required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=about)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command that has `add_overrides`; `overrides` of the result holds the overrides.

    Raises LoraExpError for an argument that is neither an override nor known to the command.
    """
    overrides = [argument for argument in arguments if is_override(argument)]
    options = parser.parse_args([argument for argument in arguments if not is_override(argument)])
    if options.overrides:
        form = f"an override GROUP.KEY=VALUE, with GROUP one of {', '.join(OVERRIDE_GROUPS)}"
        raise LoraExpError(f"{options.overrides[0]}: must be {form}{did_you_mean(meant(options.overrides[0]))}")
    options.overrides = overrides
    return options
