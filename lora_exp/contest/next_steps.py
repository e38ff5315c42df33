"""What a contest proposes at its end: to repeat a judged run, and to judge on more bases where that may decide."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from lora_exp.contest.verdict import Verdict

MOST = 100  # judging bases to propose
JUDGING = "contest.judging="
REPLACED = (JUDGING, "base.seed=", "hydra.sweep.dir", "report.name")


def next_steps(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Commands, each with its purpose."""
    yield "lora-exp ui", "compare the runs in MLflow"
    if verdict.why_not:
        yield shlex.join(["lora-exp", "resume", verdict.folder]), "go on with this contest"
        return
    least = min(verdict.standings, key=lambda one: (one.lost, one.measure.mean))
    run = shlex.join(["lora-exp", "reproduce", f"{verdict.folder}/{least.job}"])
    yield run, f"repeat the first judged run of {least.arm.name} from scratch"
    further = [one.further for standing in verdict.standings for one in standing.comparisons if one.further]
    done = len(verdict.protocol.judging)
    if further and (count := min(done + max(further), MOST)) > done:
        own = [part for part in shlex.split(verdict.command) if not part.startswith(REPLACED)]
        # Bases that were looked at already would raise the chance of a wrong call.
        fresh = f"base.seed={max(verdict.protocol.judging) + 1}"
        yield shlex.join([*own, fresh, f"{JUDGING}{count}"]), "another contest, with more and new bases"
