"""Which jobs a contest consists of: they follow from its protocol and from the scores of the jobs before.

So an interrupted contest goes on with the same jobs, and a reader of its folder finds out which job was run for what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from lora_exp.contest.protocol import JUDGING, SELECTION, Arm, Protocol
from lora_exp.contest.scores import Entry, Score
from lora_exp.contest.space import Point, end_of, first_points, further_points

Points = dict[str, list[Point]]


def rounds(protocol: Protocol, scores: Mapping[Entry, Score]) -> Iterator[list[Entry]]:
    """Yield the jobs of each round: selection, its widenings, and at last judging.

    Before it asks for the next round, the caller puts the scores of the last one into `scores`; a job without a score
    there has diverged, or was stopped by halving.
    """
    tried = {arm.name: first_points(arm) for arm in protocol.arms}
    yield selection(protocol, tried)
    for _ in range(protocol.widenings):
        best = {name: best_point(protocol, protocol.arm(name), own, scores) for name, own in tried.items()}
        if not any(end_of(best[name], own) for name, own in tried.items()):
            break
        further = {name: further_points(best[name], own) for name, own in tried.items()}
        yield selection(protocol, further)
        tried = {name: [*own, *further[name]] for name, own in tried.items()}
    yield judging(
        protocol, {name: best_point(protocol, protocol.arm(name), own, scores) for name, own in tried.items()}
    )


def selection(protocol: Protocol, points: Points) -> list[Entry]:
    """The jobs that try these points of each arm, arm by arm."""
    return [
        entry for arm in protocol.arms for point in points[arm.name] for entry in cells(protocol, SELECTION, arm, point)
    ]


def judging(protocol: Protocol, best: Mapping[str, Point]) -> list[Entry]:
    """The jobs that judge each arm at its best point."""
    return [entry for arm in protocol.arms for entry in cells(protocol, JUDGING, arm, best[arm.name])]


def cells(protocol: Protocol, phase: str, arm: Arm, point: Point) -> list[Entry]:
    """The jobs of an arm at a point in a phase: every base, order of images and target."""
    return [
        Entry(phase, arm.name, point, target, base, order)
        for base in (protocol.selection if phase == SELECTION else protocol.judging)
        for order in protocol.orders(base)
        for target in range(len(protocol.targets))
    ]


def best_point(protocol: Protocol, arm: Arm, tried: Sequence[Point], scores: Mapping[Entry, Score]) -> Point:
    """The point with most runs that ended, then the least measure on validation images, then the lowest rate."""

    def order(point: Point) -> tuple[int, float, float]:
        found = [scores[entry].validation for entry in cells(protocol, SELECTION, arm, point) if entry in scores]
        return -len(found), math.fsum(found) / len(found) if found else math.inf, point.rate

    return min(tried, key=order)
