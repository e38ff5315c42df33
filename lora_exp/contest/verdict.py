"""All that a contest found: how each arm was tuned, how it was judged, and how it compares."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lora_exp.contest.comparison import BASE, THRESHOLD, Comparison, decide
from lora_exp.contest.luck import luck
from lora_exp.contest.protocol import CONTEST, JUDGING, SELECTION, Arm, Protocol, read_protocol
from lora_exp.contest.rounds import best_point, rounds
from lora_exp.contest.scores import Entry, Score, score_of
from lora_exp.contest.space import FURTHER, Point, end_of, first_points
from lora_exp.errors import LoraExpError
from lora_exp.report.statistics import Interval, interval
from lora_exp.storage.sweep_folder import Sweep


@dataclass(frozen=True)
class Tried:
    """A point that an arm tried: its measure on validation images by base (in percent), and the runs without one."""

    point: Point
    by_base: dict[int, float]
    lost: int

    @property
    def interval(self) -> Interval:
        """The mean over bases and its 95 % interval, in percent; NaN where no run ended."""
        return interval(list(self.by_base.values()))


@dataclass(frozen=True)
class Standing:
    """An arm: its best point, whether that lies at an end of its rates, and how it was judged there.

    `measure`, `forgetting` and `balanced_accuracy` are means over the judging bases, in percent or points. `steps`
    counts those of all its jobs, `jobs` these, and `seconds` their share of the time of their packs, on one core each.
    `lost` counts the judging runs that did not end. `comparisons` are with the base, a moved threshold and the
    reference. `job` is the number of its first judging job.
    """

    arm: Arm
    best: Point
    end: str | None
    measure: Interval
    forgetting: Interval
    balanced_accuracy: Interval
    jobs: int
    steps: int
    seconds: float
    lost: int
    comparisons: tuple[Comparison, ...]
    job: int = 0

    def against(self, opponent: str) -> Comparison | None:
        """The comparison with that opponent; None with itself."""
        return next((one for one in self.comparisons if one.opponent == opponent), None)


@dataclass(frozen=True)
class Verdict:
    """What a contest found. Without judging there are no `standings`, and `why_not` says why.

    `tried` holds the points of each arm, by its name. `base` is the measure of the untouched bases, in percent.
    `command` repeats the contest, `folder` holds its runs, `versions` are of the libraries and the machine.
    """

    protocol: Protocol
    command: str
    folder: str
    versions: dict[str, str]
    base: Interval | None
    standings: tuple[Standing, ...]
    tried: dict[str, tuple[Tried, ...]]
    why_not: str = ""

    @property
    def widened(self) -> int:
        """How often the range of rates was widened."""
        first = self.protocol.arms[0]
        return max(0, len(self.tried[first.name]) - len(first_points(first))) // FURTHER

    @property
    def opponents(self) -> tuple[str, ...]:
        """What the arms are compared with; one arm alone has no other as reference."""
        return BASE, THRESHOLD, *([self.protocol.reference] if len(self.protocol.arms) > 1 else [])


def verdict_of(sweep: Sweep) -> Verdict:
    """What the contest in a sweep's folder has found so far.

    Raises LoraExpError when its protocol can't be read, or is not that of its jobs.
    """
    protocol = read_protocol(sweep.folder)
    if protocol.sha256 != sweep.contest:
        raise LoraExpError(f"{sweep.folder / CONTEST}: is not the protocol that this contest began with")
    ran = _Ran.of(protocol, sweep)
    first = next(iter(sweep.results.values()), None)
    facts = {} if first is None else first.provenance
    standings = [] if ran.why_not else _compared(protocol, [ran.standing(arm) for arm in protocol.arms], ran)
    return Verdict(
        protocol=protocol,
        command=sweep.command,
        folder=str(sweep.folder),
        versions={str(name): str(text) for name, text in facts.get("versions", {}).items()}
        | {name: str(facts[name]) for name in ("processor", "device", "kernels", "commit") if facts.get(name)},
        base=None if ran.why_not else interval(list(ran.untouched().values())),
        standings=tuple(standings),
        tried={arm.name: ran.tried(arm) for arm in protocol.arms},
        why_not=ran.why_not,
    )


@dataclass(frozen=True)
class _Ran:
    """The jobs of a contest so far, in order, with the scores of those that have one and the steps that each made."""

    protocol: Protocol
    entries: list[Entry]
    scores: dict[Entry, Score]
    steps: dict[Entry, int]
    why_not: str

    @staticmethod
    def of(protocol: Protocol, sweep: Sweep) -> _Ran:
        """Find out what each job of a sweep was run for."""
        entries: list[Entry] = []
        scores: dict[Entry, Score] = {}
        steps: dict[Entry, int] = {}
        why_not = "the contest has not begun"
        status = sweep.frame["status"].tolist()
        for batch in rounds(protocol, scores):
            numbers = range(len(entries), len(entries) + len(batch))
            if numbers.stop > len(status):
                break
            phase = batch[0].phase
            for number, entry in zip(numbers, batch, strict=True):
                given = shlex.split(sweep.frame["overrides"].iloc[number])
                if given[-len(entry.overrides(protocol)) :] != entry.overrides(protocol):
                    raise LoraExpError(f"{sweep.folder}: job {number} is not that of its {CONTEST}")
                result = sweep.results.get(number)
                if result is not None and not entry.is_of(result, protocol):
                    raise LoraExpError(
                        f"{sweep.folder / str(number)}: holds the result of another job than its {CONTEST} asks for"
                    )
                score = None if result is None else score_of(result, protocol.measure)
                if score is not None:
                    scores[entry] = score
                steps[entry] = 0 if result is None else result.outcome.steps
            entries += batch
            if lost := [number for number in numbers if status[number] not in ("finished", "diverged")]:
                have = "has" if len(lost) == 1 else "have"
                why_not = f"{len(lost)} of {len(batch)} jobs of {phase} {have} no result, the first is {lost[0]}"
                break
            why_not = "" if phase == JUDGING else "judging has not begun"
        return _Ran(protocol, entries, scores, steps, why_not)

    def of_phase(self, phase: str, arm: str | None = None) -> list[Entry]:
        """The jobs of a phase, of one arm or of all."""
        return [entry for entry in self.entries if entry.phase == phase and arm in (None, entry.arm)]

    def by_base(self, entries: Iterable[Entry], value: Callable[[Score], float | None]) -> dict[int, float]:
        """The mean over the jobs of each base, in percent; without bases of which a job lacks the value."""
        found: dict[int, list[float | None]] = {}
        for entry in entries:
            score = self.scores.get(entry)
            found.setdefault(entry.base, []).append(None if score is None else value(score))
        whole = {base: [one for one in own if one is not None] for base, own in found.items() if None not in own}
        return {base: 100 * math.fsum(own) / len(own) for base, own in whole.items()}

    def untouched(self) -> dict[int, float]:
        """The measure of the untouched base on each judging base, in percent: the same whichever arm ran there."""
        found: dict[int, dict[tuple[int, int], float]] = {}
        for entry in self.of_phase(JUDGING):
            if (score := self.scores.get(entry)) is not None:
                found.setdefault(entry.base, {})[entry.order, entry.target] = score.base
        return {base: 100 * math.fsum(own.values()) / len(own) for base, own in found.items()}

    def tried(self, arm: Arm) -> tuple[Tried, ...]:
        """The points that an arm tried, by rate, and what they scored."""
        asked = self.of_phase(SELECTION, arm.name)
        found = []
        for point in sorted({entry.point for entry in asked}, key=lambda point: point.rate):
            own = [entry for entry in asked if entry.point == point]
            lost = sum(entry not in self.scores for entry in own)
            found.append(Tried(point, self.by_base(own, lambda score: score.validation), lost))
        return tuple(found)

    def standing(self, arm: Arm) -> Standing:
        """How an arm was tuned and judged, without comparisons."""
        judged, every = self.of_phase(JUDGING, arm.name), [entry for entry in self.entries if entry.arm == arm.name]
        points = list(dict.fromkeys(entry.point for entry in every if entry.phase == SELECTION))
        best = best_point(self.protocol, arm.name, points, self.scores)
        return Standing(
            arm=arm,
            best=best,
            end=end_of(best, points),
            measure=interval(list(self.by_base(judged, lambda score: score.test).values())),
            forgetting=interval(list(self.by_base(judged, lambda score: score.forgetting).values())),
            balanced_accuracy=interval(list(self.by_base(judged, lambda score: score.balanced_accuracy).values())),
            jobs=len(every),
            steps=sum(self.steps[entry] for entry in every),
            seconds=math.fsum(self.scores[entry].seconds for entry in every if entry in self.scores),
            lost=sum(entry not in self.scores for entry in judged),
            comparisons=(),
            job=self.entries.index(judged[0]),
        )


def _compared(protocol: Protocol, standings: Sequence[Standing], ran: _Ran) -> list[Standing]:
    """Compare each arm with the base, with a moved threshold and with the reference, over the bases of both."""
    tuned = {one.arm.name: one.end is None for one in standings}
    # An arm that is better than the base at the rate that it picked is better, however it came to pick that.
    lucky = {arm.name: luck(_candidates(ran.tried(arm))) for arm in protocol.arms}
    lost = {one.arm.name: one.lost for one in standings}
    reference = ran.by_base(ran.of_phase(JUDGING, protocol.reference), lambda score: score.test)
    found: list[Comparison] = []
    for one in standings:
        judged = ran.of_phase(JUDGING, one.arm.name)
        own = ran.by_base(judged, lambda score: score.test)
        over = {BASE: ran.by_base(judged, lambda score: score.test - score.base)}
        over[THRESHOLD] = ran.by_base(
            judged, lambda score: None if score.threshold is None else score.test - score.threshold
        )
        if one.arm.name != protocol.reference:
            over[protocol.reference] = {base: own[base] - reference[base] for base in own if base in reference}
        found += [
            Comparison(
                one.arm.name,
                opponent,
                tuple(differences.values()),
                bases=tuple(differences),
                is_tuned=tuned[one.arm.name],
                opponent_tuned=tuned.get(opponent, True),
                lost=one.lost,
                opponent_lost=lost.get(opponent, 0),
                luck=math.hypot(lucky[one.arm.name], lucky[opponent]) if opponent in lucky else 0.0,
            )
            for opponent, differences in over.items()
        ]
    decided = decide(found, protocol.margin)
    return [
        dataclasses.replace(one, comparisons=tuple(own for own in decided if own.arm == one.arm.name))
        for one in standings
    ]


def _candidates(tried: Sequence[Tried]) -> list[dict[int, float]]:
    """The measures by base of the points that `best_point` chooses among: those that lost the fewest runs."""
    least = min(one.lost for one in tried)
    return [one.by_base for one in tried if one.lost == least]
