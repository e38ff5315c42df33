"""`lora-exp contest`: compare adapters, each tuned with the same effort, by a protocol that is stated before."""

from __future__ import annotations

from collections.abc import Sequence

ABOUT = """\
usage: lora-exp contest [--plan] adapter=lora,dora,... [KEY=VALUE ...]

Compare adapters fairly. Each tries as many learning rates, on the validation images of
some bases; the best is then judged on the test images of other bases, beside doing
nothing, a moved threshold, and LoRA. docs/contest.md explains the verdict.

  lora-exp contest adapter=lora,dora,pissa,shift finetune.target=3
  lora-exp contest --plan adapter=lora,dora finetune.digit=2,4,6 contest.judging=20
  lora-exp contest adapter=lora,dora contest.equal=parameters model=vit_tiny
  lora-exp contest adapter.rank=1,4,16 contest.equal=none

What varies among the arms are keys of adapter. finetune.target or finetune.digit name the
classes, over which the arms are averaged. Every other override is that of all jobs.
Keys of contest: lora-exp --cfg job, or docs/reference.md.
"""


def main(arguments: Sequence[str]) -> int | list[str]:
    """Return the arguments of the sweep that is the contest; without any, or with --help, print how it is used."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(ABOUT, end="")
        return 0
    return ["-m", "hydra/sweeper=contest", *arguments]
