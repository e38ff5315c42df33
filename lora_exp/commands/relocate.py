"""`lora-exp relocate`: put right what MLflow's database says of artifacts, after the working folder was moved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_settings
from lora_exp.tracking.connection import put_right


def main(arguments: Sequence[str]) -> int:
    """Tell MLflow's database where its artifacts are, after they were moved or copied with it."""
    parser = argparse.ArgumentParser(prog="lora-exp relocate", description=main.__doc__)
    add_overrides(parser, "tracking.uri=sqlite:///other.db tracking.artifacts=elsewhere")
    settings = compose_settings(parse(parser, arguments).overrides).tracking
    changed = put_right(settings)
    print(f"{changed} records name {settings.artifacts} now" if changed else "all records are right already")
    return 0
