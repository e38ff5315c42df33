"""Which jobs a contest consists of: they follow from its protocol and from the scores of the jobs before.

So an interrupted contest goes on with the same jobs, and a reader of its folder finds out which job was run for what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from lora_exp.contest.protocol import JUDGING, SELECTION, Protocol
from lora_exp.contest.scores import Entry, Score
from lora_exp.contest.space import Point, end_of, first_points, further_points

Points = dict[str, list[Point]]
FIRST_BASES = 2  # on which halving compares points: the fewest that show how much these differ by chance


def rounds(protocol: Protocol, scores: Mapping[Entry, Score]) -> Iterator[list[Entry]]:
    """Yield the jobs of each round: selection, its widenings, and at last judging.

    Before it asks for the next round, the caller puts the scores of the last one into `scores`; a job without a score
    there has diverged. With halving, selection begins on the first bases, and the better half of each arm's points goes
    on to the others (Jamieson & Talwalkar 2016, AISTATS, Algorithm 1, with bases for resources and two rungs). Points
    of a widening are few, and run on all.
    """
    tried = {arm.name: first_points(arm) for arm in protocol.arms}
    first = protocol.selection[:FIRST_BASES] if protocol.halving else protocol.selection
    yield selection(protocol, tried, first)
    if rest := protocol.selection[len(first) :]:
        yield selection(
            protocol, {name: _better_half(protocol, name, own, scores) for name, own in tried.items()}, rest
        )
    for _ in range(protocol.widenings):
        best = {name: best_point(protocol, name, own, scores) for name, own in tried.items()}
        if not any(end_of(best[name], own) for name, own in tried.items()):
            break
        further = {name: further_points(best[name], own) for name, own in tried.items()}
        yield selection(protocol, further, protocol.selection)
        tried = {name: [*own, *further[name]] for name, own in tried.items()}
    yield judging(protocol, {name: best_point(protocol, name, own, scores) for name, own in tried.items()})


def selection(protocol: Protocol, points: Points, bases: Sequence[int]) -> list[Entry]:
    """The jobs that try these points of each arm on these bases, arm by arm."""
    return [
        entry
        for name, own in points.items()
        for point in own
        for entry in cells(protocol, SELECTION, name, point, bases)
    ]


def judging(protocol: Protocol, best: Mapping[str, Point]) -> list[Entry]:
    """The jobs that judge each arm at its best point."""
    return [entry for name, own in best.items() for entry in cells(protocol, JUDGING, name, own, protocol.judging)]


def cells(protocol: Protocol, phase: str, arm: str, point: Point, bases: Sequence[int]) -> list[Entry]:
    """The jobs of an arm at a point on these bases: every order of images and target."""
    return [
        Entry(phase, arm, point, target, base, order)
        for base in bases
        for order in protocol.orders(base)
        for target in range(len(protocol.targets))
    ]


def best_point(protocol: Protocol, arm: str, tried: Sequence[Point], scores: Mapping[Entry, Score]) -> Point:
    """The point with most runs that ended, then the least measure on validation images, then the lowest rate.

    So a point that halving dropped is not chosen, and neither is one of which runs diverged while others ended.
    """
    return min(tried, key=lambda point: _order(protocol, arm, point, scores))


def _better_half(protocol: Protocol, arm: str, tried: Sequence[Point], scores: Mapping[Entry, Score]) -> list[Point]:
    """The better half of an arm's points, the middle one included, in the order of `tried`."""
    ranked = sorted(tried, key=lambda point: _order(protocol, arm, point, scores))
    kept = set(ranked[: -(-len(ranked) // 2)])
    return [point for point in tried if point in kept]


def _order(protocol: Protocol, arm: str, point: Point, scores: Mapping[Entry, Score]) -> tuple[int, float, float]:
    own = cells(protocol, SELECTION, arm, point, protocol.selection)
    found = [scores[entry].validation for entry in own if entry in scores]
    return -len(found), math.fsum(found) / len(found) if found else math.inf, point.rate
