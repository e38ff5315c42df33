"""What a contest proposes at its end: to repeat a judged run, and to judge on more bases where that may decide."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from lora_exp.contest.comparison import OPEN
from lora_exp.contest.verdict import Verdict

MOST = 100  # bases of a kind to propose
REPLACED = ("contest.judging=", "contest.selection=", "base.seed=", "hydra.sweep.dir", "report.name")


def next_steps(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Commands, each with its purpose."""
    yield "lora-exp ui", "compare the runs in MLflow"
    if verdict.why_not:
        yield shlex.join(["lora-exp", "resume", verdict.folder]), "go on with this contest"
        return
    least = min(verdict.standings, key=lambda one: (one.lost, one.measure.mean))
    run = shlex.join(["lora-exp", "reproduce", f"{verdict.folder}/{least.job}"])
    yield run, f"repeat the first judged run of {least.arm.name} from scratch"
    protocol = verdict.protocol
    still = [one for standing in verdict.standings for one in standing.comparisons if one.outcome == OPEN]
    judging = min(len(protocol.judging) + max((one.further or 0 for one in still), default=0), MOST)
    # More bases of judging do not make the luck of tuning smaller.
    is_luck = any(one.further is None and one.luck for one in still)
    selection = min(2 * len(protocol.selection), MOST) if is_luck else len(protocol.selection)
    if judging > len(protocol.judging) or is_luck:
        own = [part for part in shlex.split(verdict.command) if not part.startswith(REPLACED)]
        # Bases that were looked at already would raise the chance of a wrong call.
        counts = [
            f"base.seed={max(protocol.judging) + 1}",
            f"contest.selection={selection}",
            f"contest.judging={judging}",
        ]
        yield shlex.join([*own, *counts]), "another contest, with more and new bases"
