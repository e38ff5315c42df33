"""Made-up but valid verdicts of contests, for tests and pictures of what is written about one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lora_exp.config.contest import RATE
from lora_exp.contest.comparison import BASE, THRESHOLD, Comparison, decide
from lora_exp.contest.protocol import Arm, Protocol
from lora_exp.contest.space import Point, end_of
from lora_exp.contest.verdict import Standing, Tried, Verdict
from lora_exp.report.statistics import Interval, interval

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
BEST = 1e-3  # of a tuned arm
BASE_ERROR, THRESHOLD_ERROR, LORA_ERROR = 5.0, 4.4, 3.6  # percent
SETTINGS = {
    "adapter": {"rank": 4, "alpha": 1.0, "layers": "all"},
    "base": {"epochs": 2, "batch_size": 100},
    "data": {"name": "fashion_mnist", "validation": 5000},
    "device": "cpu",
}
VERSIONS = {
    "python": "3.11.2",
    "torch": "2.14.1",
    "lora_exp": "0.1.0",
    "processor": "2 cores of an Intel Xeon with AVX-512",
}


def verdict(
    differences: Mapping[str, float],
    optima: Mapping[str, float] | None = None,
    lost: Mapping[str, int] | None = None,
    unmatched: Sequence[str] = (),
    bases: int = 10,
    selection: int = 3,
    noise: float = 0.08,
    luck: float = 0.0,
    ratios: Mapping[str, tuple[int, ...]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Verdict:
    """A verdict on arms by name, whose true `differences` to the reference are in points; the first is the reference.

    The best rate of an arm is `optima`, where it is not BEST. `lost` counts its judging runs that did not end. For
    those `unmatched` no moved threshold has their recall. Differences vary by `noise` over the bases, and `luck` is
    that of tuning. Arms with `ratios` try each of them with each rate.
    """
    names, optima, lost = list(differences), optima or {}, lost or {}
    protocol = made_protocol(names, bases, selection, ratios or {}, notes or {})
    random = np.random.default_rng(0)
    shared = random.normal(0, 0.4, bases)  # what a base adds to the error of every arm over it
    judged = {name: LORA_ERROR + differences[name] + shared + random.normal(0, noise, bases) for name in names}
    tried = {arm.name: made_tried(arm, optima.get(arm.name, BEST), protocol, random) for arm in protocol.arms}
    best = {name: min(own, key=lambda one: (one.lost, one.interval.mean)) for name, own in tried.items()}
    ends = {name: end_of(best[name].point, [one.point for one in own]) for name, own in tried.items()}
    opposing = {BASE: BASE_ERROR + shared, THRESHOLD: THRESHOLD_ERROR + shared, names[0]: judged[names[0]]}
    comparisons = [
        Comparison(
            name,
            opponent,
            ()
            if name in unmatched and opponent == THRESHOLD
            else tuple((judged[name] - error)[lost.get(name, 0) :].tolist()),
            () if name in unmatched and opponent == THRESHOLD else protocol.judging[lost.get(name, 0) :],
            is_tuned=ends[name] is None,
            opponent_tuned=opponent != names[0] or ends[names[0]] is None,
            lost=lost.get(name, 0),
            luck=luck,
        )
        for name in names
        for opponent, error in opposing.items()
        if name != opponent
    ]
    decided = decide(comparisons, protocol.margin)
    standings = tuple(
        Standing(
            arm,
            best[arm.name].point,
            ends[arm.name],
            measure=interval(judged[arm.name].tolist()),
            forgetting=interval((judged[arm.name] - BASE_ERROR).tolist()),
            balanced_accuracy=interval((100 - judged[arm.name]).tolist()),
            jobs=len(tried[arm.name]) * selection + bases,
            steps=300 * (len(tried[arm.name]) * selection + bases),
            seconds=0.7 * (len(tried[arm.name]) * selection + bases),
            lost=lost.get(arm.name, 0),
            comparisons=tuple(one for one in decided if one.arm == arm.name),
        )
        for arm in protocol.arms
    )
    command = f"lora-exp contest adapter={','.join(names)} model=cnn_small data=fashion_mnist finetune.digit=3,8"
    return Verdict(
        protocol,
        command,
        "runs/2026-11-27/20-27-38",
        VERSIONS,
        base=interval(opposing[BASE].tolist()),
        standings=standings,
        tried=tried,
    )


def made_protocol(
    names: Sequence[str],
    bases: int,
    selection: int,
    ratios: Mapping[str, tuple[int, ...]],
    notes: Mapping[str, str],
) -> Protocol:
    """A protocol of these arms, in which the first is the reference."""

    def space(name: str) -> tuple[tuple[str, tuple[float, ...]], ...]:
        more = {"adapter.learning_rate_ratio": ratios[name]} if name in ratios else {}
        return tuple({RATE: RATES, **more}.items())

    return Protocol(
        arms=tuple(
            Arm(name, name.split(",")[0], (f"adapter={name.split(',')[0]}",), 3_640, space(name), notes.get(name, ""))
            for name in names
        ),
        reference=names[0],
        targets=("finetune.digit=3", "finetune.digit=8"),
        fixed=("model=cnn_small", "data=fashion_mnist"),
        equal="rank",
        measure="balanced_error",
        margin=0.3,
        widenings=3,
        selection=tuple(range(100, 100 + selection)),
        judging=tuple(range(bases)),
        seeds=1,
        steps=300,
        halving=False,
        data_sha256="0" * 64,
        settings=SETTINGS,
        classes=("dress", "bag"),
    )


def made_tried(arm: Arm, optimum: float, protocol: Protocol, random: np.random.Generator) -> tuple[Tried, ...]:
    """Every point of an arm: its error rises with the distance to the best rate and to the lowest ratio."""
    space = dict(arm.space)
    more = [((key, value),) for key, values in space.items() if key != RATE for value in values] or [()]
    return tuple(
        Tried(
            Point(rate, own),
            {
                seed: LORA_ERROR
                + 1.5 * math.log10(rate / optimum) ** 2
                + 0.3 * more.index(own)
                + float(random.normal(0, 0.1))
                for seed in protocol.selection
            },
            lost=0,
        )
        for rate in space[RATE]
        for own in more
    )


def unjudged() -> Verdict:
    """A contest that was stopped before judging."""
    whole = verdict({"lora": 0.0, "dora": 0.0})
    tried = whole.tried | {"dora": tuple(Tried(one.point, {}, 3) for one in whole.tried["dora"])}
    return dataclasses.replace(
        whole, base=None, standings=(), tried=tried, why_not="15 of the 30 jobs of selection have no result"
    )


def diverged() -> Verdict:
    """Of one arm no run ended at the highest rate, and one arm lost all its judging runs."""
    whole = verdict({"lora": 0.0, "dora": 0.0, "pissa": 0.0}, lost={"pissa": 10})
    lora, dora, pissa = whole.standings
    last = whole.tried["dora"][-1].point
    nothing = Interval(math.nan, math.nan, math.nan)
    pissa = dataclasses.replace(pissa, measure=nothing, forgetting=nothing, balanced_accuracy=nothing)
    tried = whole.tried | {"dora": (*whole.tried["dora"][:-1], Tried(last, {}, 3))}
    return dataclasses.replace(whole, standings=(lora, dora, pissa), tried=tried)


METHODS = ("lora", "dora", "rslora", "pissa", "lora_plus", "full", "bitfit", "head", "shift")
LONG = "an arm with a name_of <b>sixty</b> letters & 100 % of {TeX} $5 #1"
CONTESTS: dict[str, Callable[[], Verdict]] = {
    "equal": lambda: verdict({"lora": 0.0, "dora": 0.0, "rslora": 0.0}),
    "winner": lambda: verdict({"lora": 0.0, "dora": -0.6, "pissa": 0.02, "bitfit": 0.9}),
    "open": lambda: verdict({"lora": 0.0, "dora": 0.05, "rslora": -0.05}, noise=0.6, bases=5),
    "not tuned": lambda: verdict({"lora": 0.0, "dora": 0.1, "full": 0.8, "head": -0.7}, {"full": 1e-1, "head": 1e-5}),
    "reference not tuned": lambda: verdict({"lora": 0.0, "dora": -0.6}, {"lora": 1e-1}),
    "lost": lambda: verdict({"lora": 0.0, "dora": -0.6, "pissa": 0.0}, lost={"dora": 2}),
    "lucky": lambda: verdict({"lora": 0.0, "dora": -0.3, "pissa": 0.1}, luck=0.2),
    "two": lambda: verdict({"lora": 0.0, "dora": 0.0}, selection=1, luck=math.inf),
    "twelve": lambda: verdict(
        dict(
            zip(
                [*METHODS, *(f"lora, rank {rank}" for rank in (1, 2, 8))], np.linspace(0, 2.2, 12).tolist(), strict=True
            )
        ),
        {"full": 1e-1},
        noise=0.3,
        ratios={"lora_plus": (4, 16)},
        notes={"full": "every weight and bias is trained", "shift": "one constant for each target"},
    ),
    "long names": lambda: verdict({LONG: 0.0, LONG.replace("sixty", "60"): -0.5, "x" * 60: 0.0, "lora": 30.0}),
    "unmatched": lambda: verdict({"lora": 0.0, "dora": 0.0}, unmatched=("dora",)),
    "diverged": diverged,
    "unjudged": unjudged,
}
