"""The section of a report that tells of its claim."""

from __future__ import annotations

from lora_exp.report.claims.verdict import Side, Verdict
from lora_exp.report.document import Block, Grid, Paragraph, Picture, Section, Strong, paragraphs
from lora_exp.report.statistics import Answer, written

CLAIM_FIGURE = "claim.png"
COMPARED = ["compared", "measure", "mean", "interval", "confidence (%)", "claimed: below", "seeds", "outcome"]
SIDES = ["mean and 95 % interval", "error on the target (%)", "forgetting (points)"]
HOW = (
    "Student's t intervals, of differences within a seed; of several comparisons, with the confidence that "
    "Holm's procedure asks for. Margins were stated before the runs."
)


def claim_section(verdict: Verdict) -> Section:
    """The claim, how it was judged, the numbers with their costs, and the figure; or why it was not judged."""
    claim = verdict.claim
    blocks: list[Block] = [
        Paragraph((Strong(verdict.outcome), f": {claim.words} ({claim.source}).")),
        Paragraph((f"Measured: {claim.measured}",)),
    ]
    if verdict.answers:
        blocks.append(Grid((COMPARED, [_answer_cells(answer) for answer in verdict.answers]), words=2))
        blocks.append(Paragraph((HOW,)))
        blocks.append(Grid((SIDES, [_side_cells(side) for side in verdict.sides]), words=1))
    blocks += paragraphs([verdict.note] if verdict.note else [])
    if verdict.answers:
        alt = f"{verdict.name}, {verdict.outcome}: what was measured, and each difference with interval and margin"
        blocks.append(Picture(CLAIM_FIGURE, alt, "Bars and bands are 95 % intervals; each dot is a seed."))
    return Section("Claim", tuple(blocks))


def _answer_cells(answer: Answer) -> list[str]:
    question, interval = answer.question, answer.interval
    mean, low, high, margin = (
        written(value, question.unit) for value in (interval.mean, interval.low, interval.high, question.margin)
    )
    confidence, seeds = f"{100 * interval.confidence:.3g}", str(len(question.differences))
    measure = f"{question.measure} ({question.unit})"
    return [question.what, measure, mean, f"{low} to {high}", confidence, margin, seeds, answer.outcome]


def _side_cells(side: Side) -> list[str]:
    cells = []
    for interval, unit, signed in ((side.target_error, "%", False), (side.forgetting, "points", True)):
        mean, low, high = (written(value, unit, signed) for value in (interval.mean, interval.low, interval.high))
        cells.append(f"{mean} ({low} to {high})")
    return [side.label, *cells]
