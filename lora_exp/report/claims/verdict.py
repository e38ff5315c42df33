"""A claim, what was found of it, and the verdict that says so in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lora_exp.report.claims.evidence import Line, Runs
from lora_exp.report.statistics import Answer, Interval, written


@dataclass(frozen=True)
class Panel:
    """Lines to draw beside a verdict: what it was found from."""

    title: str
    x: str
    unit: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Side:
    """What was compared, with its gain and its cost: error on the target (%) and forgetting (points)."""

    label: str
    target_error: Interval
    forgetting: Interval

    def text(self) -> str:
        """Both means."""
        return f"{self.label} {self.target_error.mean:.2f} % and {written(self.forgetting.mean, 'points')} points"


@dataclass(frozen=True)
class Finding:
    """What a claim's function found; `outcome` is that of all answers together where the function gives none."""

    answers: tuple[Answer, ...]
    sides: tuple[Runs, ...]
    panels: tuple[Panel, ...]
    outcome: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim in words, where it is made, what is measured to judge it, and the function that does."""

    words: str
    source: str
    measured: str
    judge: Callable[[Runs], Finding]


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim. Undecided for want of data, `note` says why and there are no answers."""

    name: str
    claim: Claim
    outcome: str
    answers: tuple[Answer, ...] = ()
    sides: tuple[Side, ...] = ()
    panels: tuple[Panel, ...] = ()
    note: str = ""

    @property
    def seeds(self) -> int:
        """How many seeds the means are of."""
        return len(self.answers[0].question.differences) if self.answers else 0

    @property
    def sentence(self) -> str:
        """One line: the outcome, the claim, and the numbers behind it."""
        parts = [f"Claim {self.name}: {self.outcome}. {self.claim.words} ({self.claim.source})."]
        if self.answers:
            levels = sorted({answer.interval.confidence for answer in self.answers})
            told = ", ".join(f"{100 * level:.3g} %" for level in levels) + (" (Holm)" if len(self.answers) > 1 else "")
            parts.append(f"Means of {self.seeds} seeds with intervals of {told}:")
            parts.append("; ".join(answer.text() for answer in self.answers) + ".")
            parts.append("Error on the target and forgetting: " + "; ".join(side.text() for side in self.sides) + ".")
        return " ".join([*parts, self.note] if self.note else parts)
