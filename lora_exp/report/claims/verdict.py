"""A claim of a paper, what a sweep found about it, and the verdict: one sentence, and a section of the report."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from lora_exp.report.claims.evidence import Line, Runs
from lora_exp.report.document import Block, Grid, Picture, Section, Strong
from lora_exp.report.statistics import Answer, Interval, in_unit, power

CLAIM_FIGURE = "claim.png"
ANSWER_HEADINGS = ["compared", "measure", "mean", "95 % interval", "Holm's interval", "claimed: below", "n", "outcome"]
SIDE_HEADINGS = ["mean and 95 % interval", "error on the target (%)", "forgetting (points)"]
HOW = (
    "Student's t intervals of the differences within a base; n counts bases. A part passes by its 95 % interval, "
    "and fails by the one that Holm's procedure corrects for the number of comparisons. Margins were stated before the "
    "runs."
)


@dataclass(frozen=True)
class Panel:
    """A chart of the data behind a verdict."""

    title: str
    x: str
    unit: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Side:
    """One side of a comparison, with its gain and its cost: error on the target (%) and forgetting (points)."""

    label: str
    target_error: Interval
    forgetting: Interval

    def text(self) -> str:
        """Return the label with both means."""
        return f"{self.label} {self.target_error.mean:.2f} % and {in_unit(self.forgetting.mean, 'points')} points"


@dataclass(frozen=True)
class Finding:
    """What a claim's function returns; where `outcome` is None, all answers together decide it."""

    answers: tuple[Answer, ...]
    sides: tuple[Runs, ...]
    panels: tuple[Panel, ...]
    outcome: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim in words, its source, the measurement that decides it, and the function that makes it.

    `effect` is the difference beyond the margin that a sweep should be able to decide.
    """

    words: str
    source: str
    measured: str
    effect: float
    judge: Callable[[Runs], Finding]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim on a sweep. Where data are missing, there are no answers and `note` says why."""

    name: str
    claim: Claim
    outcome: str
    answers: tuple[Answer, ...] = ()
    sides: tuple[Side, ...] = ()
    panels: tuple[Panel, ...] = ()
    note: str = ""

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.answers[0].question.differences) if self.answers else 0

    @property
    def power(self) -> str:
        """Say with which chance so many bases decide a difference of the claim's size, at the spread that was seen."""
        questions = [answer.question for answer in self.answers]
        least = min(
            power(self.claim.effect, statistics.stdev(question.differences), self.seeds) for question in questions
        )
        size = in_unit(self.claim.effect, questions[0].unit, signed=False)
        unit = questions[0].unit
        return f"A true difference of {size} {unit} beyond the margin is decided with a chance of {least:.0%}."

    @property
    def sentence(self) -> str:
        """One line: the outcome, the claim, and the numbers behind it."""
        parts = [f"Claim {self.name}: {self.outcome}. {self.claim.words} ({self.claim.source})."]
        if self.answers:
            parts.append(f"Means of {self.seeds} bases with 95 % intervals:")
            parts.append("; ".join(answer.text() for answer in self.answers) + ".")
            parts.append("Error on the target and forgetting: " + "; ".join(side.text() for side in self.sides) + ".")
            parts.append(self.power)
        return " ".join([*parts, self.note] if self.note else parts)


def claim_section(verdict: Verdict) -> Section:
    """Write the section on a claim: measurement, numbers with their costs, and figure; or why it was not judged."""
    claim = verdict.claim
    said: list[Block] = [(Strong(verdict.outcome), f": {claim.words} ({claim.source})."), f"Measured: {claim.measured}"]
    note = [verdict.note] if verdict.note else []
    if not verdict.answers:
        return Section("Claim", [*said, *note])
    answers = Grid((ANSWER_HEADINGS, [_answer_cells(answer) for answer in verdict.answers]), words=2)
    sides = Grid((SIDE_HEADINGS, [_side_cells(side) for side in verdict.sides]), words=1)
    alt = f"{verdict.name}, {verdict.outcome}: the measurements, and each difference with interval and margin"
    picture = Picture(CLAIM_FIGURE, alt, "Bars and bands are 95 % intervals; each dot is a seed.")
    return Section("Claim", [*said, answers, HOW, verdict.power, sides, *note, picture])


def _answer_cells(answer: Answer) -> list[str]:
    question, interval = answer.question, answer.interval
    corrected = answer.corrected
    level = f"{corrected.cells(question.unit)[1]} ({100 * corrected.confidence:.3g} %)"
    numbers = [*interval.cells(question.unit), level]
    margin, seeds = in_unit(question.margin, question.unit), str(len(question.differences))
    return [question.what, f"{question.measure} ({question.unit})", *numbers, margin, seeds, answer.outcome]


def _side_cells(side: Side) -> list[str]:
    pairs = side.target_error.cells("%", signed=False), side.forgetting.cells("points")
    return [side.label, *(f"{mean} ({limits})" for mean, limits in pairs)]
