"""What a run of a contest scored, and what it was run for.

Errors are rates from 0 to 1; `measure` is one of `config.contest.JUDGED`, and less of it is better.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_exp.contest.protocol import Protocol
from lora_exp.contest.space import Point
from lora_exp.measures.class_errors import error_of
from lora_exp.storage.result import RunResult


@dataclass(frozen=True)
class Entry:
    """A job of a contest: its phase, the name of its arm, its point, its target by position, and its seeds."""

    phase: str
    arm: str
    point: Point
    target: int
    base: int
    order: int

    def is_of(self, result: RunResult, protocol: Protocol) -> bool:
        """Whether a result is that of this job."""
        spec, arm = result.spec, protocol.arm(self.arm)
        return (
            (spec.base.seed, spec.finetune.seed, spec.finetune.learning_rate)
            == (self.base, self.order, self.point.rate)
            and spec.adapter.method == arm.method
            and result.target_text == protocol.classes[self.target]
        )

    def overrides(self, protocol: Protocol) -> list[str]:
        """The overrides of the job."""
        seeds = [f"base.seed={self.base}", f"finetune.seed={self.order}"]
        arm, target = protocol.arm(self.arm).overrides, protocol.targets[self.target]
        return [*protocol.fixed, *arm, *self.point.overrides, *([target] if target else []), *seeds]


@dataclass(frozen=True)
class Score:
    """The measure of a run on the validation images and on the test images, and what else stands beside it.

    `base` is the measure of the untouched base on the test images, and `threshold` that of the base with a threshold
    moved to the recall of the run; None where none has it.
    """

    validation: float
    test: float
    base: float
    threshold: float | None
    forgetting: float
    balanced_accuracy: float
    parameters: int
    steps: int
    seconds: float


def score_of(result: RunResult, measure: str) -> Score | None:
    """The score of a run; None where it diverged. The run must have been judged on validation images."""
    outcome = result.outcome
    if result.diverged or outcome.gains is None:
        return None
    held_before, held = outcome.validation_before, outcome.validation_after
    assert held is not None and held_before is not None
    before, target = outcome.before.error_rates, result.target
    shift, threshold = outcome.gains.shift, None
    if shift is not None and measure == "balanced_error":
        threshold = 1 - shift.balanced_accuracy
    elif shift is not None:
        threshold = 1 - shift.recall + outcome.other_error_before + shift.forgetting
    return Score(
        validation=error_of(measure, target, held_before.error_rates, held.error_rates),
        test=error_of(measure, target, before, outcome.after.error_rates),
        base=error_of(measure, target, before, before),
        threshold=threshold,
        forgetting=outcome.forgetting,
        balanced_accuracy=outcome.gains.after.balanced_accuracy,
        parameters=outcome.parameters_adapter,
        steps=outcome.steps,
        seconds=result.times.get("fine_tuning", 0.0) + result.times.get("evaluation", 0.0),
    )
