"""`lora-exp contest`: compare adapters, each tuned with the same effort, by a protocol that is stated before."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lora_exp.commands.arguments import add_overrides, parse

EXAMPLES = """\
What varies among the arms are keys of adapter. finetune.digit or finetune.target name the
classes, over which results are averaged. Every other override is that of all jobs.

  lora-exp contest adapter=lora,dora,pissa,shift finetune.replay=0.8
  lora-exp contest --plan adapter=lora,dora finetune.digit=2,4,6 contest.judging=20
  lora-exp contest adapter=lora,dora contest.equal=parameters model=vit_tiny
  lora-exp contest adapter.rank=1,4,16 contest.equal=none
"""


def main(arguments: Sequence[str]) -> list[str]:
    """Compare adapters, each tuned with the same effort, with doing nothing, a moved threshold and LoRA.

    Returns the arguments of the sweep that is the contest. Raises LoraExpError for what is no override.
    """
    parser = argparse.ArgumentParser(
        prog="lora-exp contest",
        description=(main.__doc__ or "").partition("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plan", action="store_true", help="print jobs, time and memory, and run nothing")
    add_overrides(parser, "contest.judging=20; at least adapter=lora,dora")
    options = parse(parser, arguments)
    if not options.overrides:
        parser.error("give the adapters to compare, such as adapter=lora,dora")
    return ["-m", "hydra/sweeper=contest", *options.overrides, *(["--plan"] if options.plan else [])]
