"""Does a contest call differences that are not there, and does it see those that it says it would?

python benchmarks/contest_simulation.py [contests]: draws contests of known truth, so many of each kind, has the code of
`lora-exp contest` decide them, and prints how often it was wrong. Ends with 1 where a promise is broken: where a
binomial test, with Holm's correction for all promises, says that the share is beyond what was promised. The brackets
are 95 % intervals (Clopper and Pearson).

A contest has 3, 6 or 9 arms, one of them the reference, 5, 10 or 20 bases, and differences with a deviation of 0.1 to 1
point. All arms and the moved threshold share a part of their noise, so that their differences from the base correlate.
That part and their own are normal, heavy-tailed (t with 3 degrees of freedom), skewed or very skewed (lognormal with
sigma 0.5 and 1; a difference from the base has then a skew of 1.2 and 4.3).

What is promised, and where: equal arms differ by symmetric noise whatever its shape, so the promises about arms hold
for every shape. The promises about the base hold for symmetric noise alone: no test of a mean sees a tail of which it
has drawn nothing (Bahadur and Savage 1956, Annals of Mathematical Statistics 27, 1115-1122). The skewed rows say how
much is lost.

Tuning adds luck of its own: two arms with the same curve of rates may pick different rates, and then they do differ. A
reader takes a call for one about the methods, so each call between such arms counts as wrong here.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from lora_exp.config.contest import RATE, RATES
from lora_exp.contest.comparison import BASE, BETTER, SURE, THRESHOLD, WITHIN, WORSE, Comparison, decide
from lora_exp.contest.luck import luck
from lora_exp.contest.protocol import SELECTION, Arm, Protocol
from lora_exp.contest.rounds import rounds
from lora_exp.contest.scores import Entry, Score
from lora_exp.contest.space import Point, end_of
from lora_exp.report.statistics import CHANCE, holm

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

MARGIN = 0.3  # percentage points, as in the configuration
SPREADS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # deviations of a difference in points
BASES, ARMS = (5, 10, 20), (3, 6, 9)
CURVATURES = (0.3, 1.0, 3.0, 10.0)  # of curves of rates, in points per decade squared
REFERENCE = "arm 0"


def lognormal(sigma: float) -> Draw:
    """Centred, with a deviation of 1."""
    mean, variance = math.exp(sigma**2 / 2), math.expm1(sigma**2) * math.exp(sigma**2)
    return lambda random, size: np.asarray((random.lognormal(0.0, sigma, size) - mean) / math.sqrt(variance))


SHAPES: dict[str, Draw] = {
    "normal": lambda random, size: random.standard_normal(size),
    "heavy tails": lambda random, size: random.standard_t(3, size) / math.sqrt(3),
    "skewed": lognormal(0.5),
    "very skewed": lognormal(1.0),
}
SYMMETRIC = ("normal", "heavy tails")


@dataclass
class Count:
    """How many of `of` contests did something; `add` counts one more."""

    hits: int = 0
    of: int = 0

    def add(self, hit: bool) -> None:
        """Count a contest."""
        self.hits += hit
        self.of += 1

    def __str__(self) -> str:
        """`4.2 % [2.9, 5.8]  n=1234`."""
        if not self.of:
            return "-"
        low, high = binomtest(self.hits, self.of).proportion_ci()
        return f"{100 * self.hits / self.of:5.1f} % [{100 * low:4.1f}, {100 * high:5.1f}]  n={self.of}"


@dataclass
class Promises:
    """The p values of all promises that rows were compared with, by name."""

    chances: dict[str, float] = field(default_factory=dict)

    def row(
        self, name: str, count: Count, most: float | None = None, least: float | None = None, more: str = ""
    ) -> None:
        """Print a row, and note whether it keeps its promise, if it has one."""
        said = "no promise" if most is least is None else f"at most {most:.0%}" if most else f"at least {least:.0%}"
        print(f"  {name:38} {count!s:34} {said:14} {more}", flush=True)
        if count.of and (most is not None or least is not None):
            found = binomtest(count.hits, count.of, most or least or 0.0, "greater" if most else "less")
            self.chances[name] = float(found.pvalue)

    def broken(self) -> list[str]:
        """The names of the rows that break their promise."""
        corrected = holm(np.array(list(self.chances.values())))
        return [name for name, chance in zip(self.chances, corrected, strict=True) if chance < CHANCE]


def drawn(random: np.random.Generator, shape: str, spread: float, means: Sequence[float], bases: int) -> Floats:
    """The measures [bases, arms + 2] of a contest in points: arms, base and threshold, with these true `means`.

    Every difference of two columns has the deviation `spread`.
    """
    own = SHAPES[shape](random, (bases, len(means)))
    shared = SHAPES[shape](random, (bases, 1))
    noise = spread / math.sqrt(2) * (own + shared)
    noise[:, -2] = 0.0  # the base itself has no noise beyond that which all columns share
    measures: Floats = 3 * random.standard_normal((bases, 1)) + np.asarray(means) + noise
    return measures


def decided(measures: Floats, lucks: Sequence[float] = (), at_an_end: Sequence[str] = ()) -> list[Comparison]:
    """Every arm against the base, the threshold and the reference, as a contest decides it."""
    arms = measures.shape[1] - 2
    own = lucks or [0.0] * arms
    columns = {BASE: arms, THRESHOLD: arms + 1, REFERENCE: 0}
    return decide(
        [
            Comparison(
                f"arm {arm}",
                opponent,
                tuple((measures[:, arm] - measures[:, column]).tolist()),
                is_tuned=f"arm {arm}" not in at_an_end,
                opponent_tuned=opponent not in at_an_end,
                luck=math.hypot(own[arm], own[column]) if opponent == REFERENCE else 0.0,
            )
            for arm in range(arms)
            for opponent, column in columns.items()
            if arm != column
        ],
        MARGIN,
    )


def is_called(one: Comparison) -> bool:
    """Whether a contest said that arm and opponent differ."""
    return one.outcome in (BETTER, WORSE)


def simulated(
    random: np.random.Generator, contests: int, means: Sequence[float], shapes: Sequence[str], bases: int
) -> Iterator[tuple[float, int, list[Comparison]]]:
    """Yield the spread, the number of arms and the comparisons of so many contests of each shape and number of arms.

    `means` are those of the reference, of each other arm but the last, of the last, of the base and of the threshold.
    """
    reference, others, last, base, threshold = means
    for shape, arms, number in itertools.product(shapes, ARMS, range(contests)):
        spread = SPREADS[number % len(SPREADS)]
        every = [reference, *[others] * (arms - 2), last, base, threshold]
        yield spread, arms, decided(drawn(random, shape, spread, every, bases))


def equal_arms(random: np.random.Generator, contests: int, promises: Promises) -> None:
    """Print how often equal arms are called different, and how often equal."""
    within = {(bases, spread): Count() for bases in BASES for spread in SPREADS}
    print("\nAny difference called, where arms, base and threshold are equal; last, with 3, 6 and 9 arms")
    for shape, bases in itertools.product(SHAPES, BASES):
        every, by_arms = Count(), {arms: Count() for arms in ARMS}
        for spread, arms, found in simulated(random, contests, [0] * 5, [shape], bases):
            for count in (every, by_arms[arms]):
                count.add(any(map(is_called, found)))
            if shape == "normal":
                within[bases, spread].add(found[-1].outcome == WITHIN)
        more = ", ".join(f"{100 * own.hits / own.of:.1f} %" for own in by_arms.values())
        promises.row(f"{shape}, {bases} bases", every, CHANCE if shape in SYMMETRIC else None, more=more)
    print("\nThe same of arms and reference, where equal arms are 1 point better than base and threshold")
    for shape, bases in itertools.product(SHAPES, BASES):
        count = Count()
        for _, _, found in simulated(random, contests, [-1, -1, -1, 0, 0], [shape], bases):
            count.add(any(is_called(one) for one in found if one.opponent == REFERENCE))
        promises.row(f"{shape}, {bases} bases, better than base", count, CHANCE)
    print(f"\nSaid to be within {MARGIN} points of the reference, where equal (normal): by deviation in points")
    for bases in BASES:
        shares = (f"{spread}: {within[bases, spread]}"[:12] for spread in SPREADS)
        print(f"  {bases:2} bases   " + "  ".join(shares) + f"   n={within[bases, SPREADS[0]].of} each")


def at_the_margin(random: np.random.Generator, contests: int, promises: Promises) -> None:
    """Print how often an arm that differs by the margin is said to be within it."""
    print(f"\nAny wrong 'within', where one arm is worse than all by exactly the margin of {MARGIN} points")
    for shape, bases in itertools.product(SHAPES, BASES):
        count = Count()
        for _, arms, found in simulated(random, contests, [0, 0, MARGIN, 0, 0], [shape], bases):
            count.add(any(one.is_within for one in found if one.arm == f"arm {arms - 1}"))
        promises.row(f"{shape}, {bases} bases, at the margin", count, CHANCE if shape in SYMMETRIC else None)


def one_better(random: np.random.Generator, contests: int, promises: Promises) -> None:
    """Print how often contests call a true difference, by whether they said they would see one of the margin."""
    print(f"\nA true difference from the reference called, by contests that said {SURE:.0%} power for the margin")
    for size, bases in itertools.product((0.5, 1.0, 2.0), BASES):
        sure, unsure = Count(), Count()
        for _, arms, found in simulated(random, contests, [0, 0, -size * MARGIN, 0, 0], SYMMETRIC, bases):
            one = against_reference(found, arms - 1)
            (sure if one.power >= SURE else unsure).add(is_called(one))
        share = sure.of / (sure.of + unsure.of)
        more = f"{share:.0%} said so, of the others {unsure.hits / unsure.of:.0%} called it"
        promises.row(f"{size:g} margins, {bases} bases", sure, least=None if size < 1 else SURE, more=more)


def more_bases(random: np.random.Generator, contests: int, promises: Promises) -> None:
    """Print what contests find that have as many bases as an open one said it needed, and what a second look costs."""
    print("\nA difference of the margin called with the bases that an open contest asked for; n is of open contests")
    for bases in BASES[:2]:
        afresh, added, false = Count(), Count(), Count()
        asked = []
        for number in range(contests):
            shape, arms = SYMMETRIC[number % 2], ARMS[number // 2 % len(ARMS)]
            spread = SPREADS[number // 6 % len(SPREADS)]
            for size in (0.0, MARGIN):
                means = [0.0] * (arms - 1) + [-size, 0.0, 0.0]
                first = drawn(random, shape, spread, means, bases)
                found = decided(first)
                one = against_reference(found, arms - 1)
                wrong = size == 0 and any(map(is_called, found))
                if one.further:
                    second = drawn(random, shape, spread, means, bases + one.further)
                    both = decided(np.concatenate([first, second[bases:]]))
                    wrong |= size == 0 and any(map(is_called, both))
                    if size:
                        asked.append(bases + one.further)
                        afresh.add(is_called(against_reference(decided(second), arms - 1)))
                        added.add(is_called(against_reference(both, arms - 1)))
                if size == 0:
                    false.add(wrong)
        more = f"median {np.median(asked):.0f} bases"
        promises.row(f"{bases} bases, then all new ones", afresh, least=SURE, more=more)
        promises.row(f"{bases} bases, then more beside them", added, least=SURE)
        promises.row(f"{bases} bases, equal, any call in 2 looks", false)


def against_reference(found: Sequence[Comparison], arm: int) -> Comparison:
    """The comparison of an arm, by number, with the reference."""
    return next(one for one in found if one.arm == f"arm {arm}" and one.opponent == REFERENCE)


def whole_contests(random: np.random.Generator, contests: int, promises: Promises) -> None:
    """Print how often arms with the same curve of rates are called different, after each was tuned."""
    print("\nA difference of arms called that have the same curve of rates, judged on 10 bases")
    for arms, selection in itertools.product((2, 6), (2, 3, 5, 10)):
        with_luck, without, apart = Count(), Count(), []
        for number in range(3 * contests):
            spread, curvature = SPREADS[number % len(SPREADS)], CURVATURES[number // len(SPREADS) % len(CURVATURES)]
            measures, truth, lucks, ends = tuned_contest(random, arms, selection, spread, curvature)
            for count, known in ((with_luck, lucks), (without, [0.0] * arms)):
                found = decided(measures, known, ends)
                count.add(any(is_called(one) for one in found if one.opponent == REFERENCE))
            apart.append(max(truth) - min(truth))
        more = f"{100 * without.hits / without.of:.1f} % without its luck; rates are {np.mean(apart):.2f} points apart"
        promises.row(f"{arms} arms, tuned on {selection} bases", with_luck, CHANCE, more=more)


def tuned_contest(
    random: np.random.Generator, arms: int, selection: int, spread: float, curvature: float
) -> tuple[Floats, list[float], list[float], list[str]]:
    """Run a contest of arms with one curve of rates: a parabola of so many points per decade squared.

    Returns the measures [10, arms + 2] of judging; the true measure at the rate that each arm picked; the luck of each;
    and the arms whose rate is at an end. The base is 1 point above the best rate.
    """
    names = [f"arm {number}" for number in range(arms)]
    protocol = Protocol(
        arms=tuple(Arm(name, "lora", (), 1, ((RATE, RATES),)) for name in names),
        reference=REFERENCE,
        targets=("finetune.target=0",),
        classes=("0",),
        fixed=(),
        equal="rank",
        measure="balanced_error",
        margin=MARGIN,
        widenings=3,
        selection=tuple(range(selection)),
        judging=tuple(range(selection, selection + 10)),
        seeds=1,
        steps=None,
        halving=False,
        data_sha256="0" * 64,
        settings={},
    )
    best = random.uniform(math.log10(RATES[0]), math.log10(RATES[-1]))
    scores: dict[Entry, Score] = {}
    for batch in rounds(protocol, scores):
        noise = spread / math.sqrt(2) * random.standard_normal((len(batch), 2))
        for entry, (validation, test) in zip(batch, noise.tolist(), strict=True):
            truth = curvature * (math.log10(entry.point.rate) - best) ** 2
            scores[entry] = Score((truth + validation) / 100, (truth + test) / 100, 0.01, 0.01, 0, 0, 1, 1, 1)
    picked = {entry.arm: entry.point for entry in batch}  # the last batch is judging
    tried: dict[str, dict[Point, dict[int, float]]] = {name: {} for name in names}
    for entry, score in scores.items():
        if entry.phase == SELECTION:
            tried[entry.arm].setdefault(entry.point, {})[entry.base] = 100 * score.validation
    judged = [[100 * scores[one].test for one in batch if one.arm == name] for name in names]
    return (
        np.array([*judged, *np.ones((2, 10))]).T,
        [curvature * (math.log10(picked[name].rate) - best) ** 2 for name in names],
        [luck(list(tried[name].values())) for name in names],
        [name for name in names if end_of(picked[name], list(tried[name]))],
    )


def main(contests: int) -> int:
    """Print a block for each promise; return 1 where one is broken."""
    random, promises = np.random.default_rng(0), Promises()
    for part in (equal_arms, at_the_margin, one_better, more_bases, whole_contests):
        part(random, contests, promises)
    broken = promises.broken()
    print(f"\n{len(promises.chances)} promises, broken: " + ("; ".join(broken) or "none"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 120))
