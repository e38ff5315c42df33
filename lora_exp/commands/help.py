"""`lora-exp` alone and `lora-exp help`: what it does, on one screen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lora_exp import __version__
from lora_exp.commands import COMMANDS

ABOUT = f"lora-exp {__version__}: LoRA experiments on small image classifiers"
EXAMPLES = {
    "All defaults": "lora-exp experiment=reference",
    "One run": "lora-exp adapter.rank=4 finetune.digit=9",
    "A sweep": "lora-exp -m adapter.rank=1,2,4 'finetune.digit=range(0,10)'",
    "Only its plan": "lora-exp -m --plan adapter.rank=1,2,4",
    "A preset": "lora-exp experiment=rank_by_digit",
}


def main(arguments: Sequence[str]) -> int:
    """Print what lora-exp does: examples, and all sub-commands with a line each."""
    argparse.ArgumentParser(prog="lora-exp help", description=main.__doc__).parse_args(arguments)
    examples = [f"  {name:<14}{command}" for name, command in EXAMPLES.items()]
    print("\n".join([ABOUT, *examples, command_lines(), "All groups, keys and flags: lora-exp --help"]))
    return 0


def command_lines() -> str:
    """All sub-commands, a line each."""
    rows = [f"  {name:<14}{command.line}" for name, command in COMMANDS.items()]
    return "\n".join(["Commands (lora-exp COMMAND --help says more):", *rows])
