"""The protocol of a contest in words: what was decided before it ran, and how its tests work."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_exp.contest.comparison import SURE
from lora_exp.contest.protocol import CONTEST, Arm, Protocol
from lora_exp.contest.rounds import FIRST_BASES
from lora_exp.contest.space import FURTHER
from lora_exp.contest.verdict import Verdict
from lora_exp.contest.words import MEANINGS, MEASURES, count, listed, spoken
from lora_exp.report.document import Code, Grid
from lora_exp.report.statistics import CHANCE
from lora_exp.storage.words import as_text

EQUAL = {
    "rank": "the rank: every arm that has one has the same",
    "parameters": "the number of trained parameters, as nearly as ranks allow",
    "none": "nothing: the arms are as given",
}


def protocol_table(verdict: Verdict) -> Grid:
    """What `contest.yaml` states, a row each, but for the arms and the other settings."""
    protocol = verdict.protocol
    names = protocol.classes
    targets = [shlex.join(target.split()) or "that of the config" for target in protocol.targets]
    told = [
        f"{text} ({names[at]})" if at < len(names) and not text.endswith(f"={names[at]}") else text
        for at, text in enumerate(targets)
    ]
    rows = [
        ["compared with", f"{listed([spoken(one) for one in verdict.opponents])} (the reference)"],
        ["measure", f"{MEASURES[protocol.measure]}: {MEANINGS[protocol.measure]}"],
        ["margin", f"{protocol.margin:g} points: a smaller difference does not matter"],
        ["held equal", EQUAL[protocol.equal]],
        ["selection", f"on validation images, {_bases(protocol.selection)}"],
        ["judging", f"on test images, {_bases(protocol.judging)}, none of which took part in selection"],
        ["on each base", f"{count(protocol.seeds, 'order')} of images, {count(len(told), 'target')}"],
        ["targets", listed(told)],
        ["steps", "as the epochs of the config give" if protocol.steps is None else f"{protocol.steps:,} a job"],
        ["widenings", f"at most {protocol.widenings}, of {FURTHER} points an arm; {verdict.widened} made"],
        ["halving", f"after {FIRST_BASES} bases of selection the better half goes on" if protocol.halving else "none"],
        ["every job", " ".join(protocol.fixed) or "the defaults"],
    ]
    hashes = [["data, SHA-256", Code(protocol.data_sha256)], [f"{CONTEST}, SHA-256", Code(protocol.sha256)]]
    return Grid((["what", "stated"], [*rows, *hashes]), words=2)


def arms_table(protocol: Protocol) -> Grid:
    """A row an arm: method, overrides, trained parameters, and the values that it tries first."""
    headings = ["arm", "method", "overrides", "first tried", "trained parameters"]
    rows = [
        [arm.name, arm.method, " ".join(arm.overrides) or "none", _space(arm), f"{arm.parameters:,}"]
        for arm in protocol.arms
    ]
    return Grid((headings, rows), words=4)


def settings_table(protocol: Protocol) -> Grid:
    """A row for each group of all other settings of a job."""
    rows = [
        [name, Code(" ".join(_pairs(own if isinstance(own, Mapping) else {name: own})))]
        for name, own in protocol.settings.items()
    ]
    return Grid((["group", "settings"], rows), words=2)


def how_it_decides(verdict: Verdict) -> list[str]:
    """How differences are taken, tested and corrected, what tuned means, and what the intervals do not cover."""
    protocol = verdict.protocol
    tests = sum(one.is_tested for standing in verdict.standings for one in standing.comparisons)
    margin, wrong = f"{protocol.margin:g} points", f"{100 * CHANCE:g} %"
    every = f"all {count(tests, 'test')}" if tests else "all tests"
    return [
        "Differences are paired: on each base, the measure of the arm minus that of its opponent, as a mean over "
        f"targets and orders of images. n counts bases ({len(protocol.judging)}). A moved threshold is the untouched "
        "base with one constant added to the logit of the target, so that its recall is that of the run.",
        f"A difference is shown by a two-sided paired t test. Holm's procedure corrects {every} of the contest "
        f"together, so that the chance of any wrong one is at most {wrong}. Intervals are 95 % t intervals, not "
        "corrected.",
        "Tuning may be lucky: over other selection bases another rate might have been the best. How far, in root mean "
        "square, the rates that might have been picked are from the best, for the arm and for the reference, is the "
        "luck; its square is added to that of the standard error.",
        f"That an arm is within the margin is shown by two one-sided t tests (TOST, Schuirmann 1987) against {margin}, "
        "corrected in the same way among themselves. No difference shown means neither: the contest can't tell.",
        "Power is the chance that a t test, at the strictest level that Holm's procedure asks for, shows a difference "
        f"of {margin}. It is computed with the upper end of the one-sided 80 % interval of the spread, so in four of "
        f"five contests it is no less. More bases are counted until it is {100 * SURE:.0f} %.",
        "An arm is tuned when its best rate is neither the lowest nor the highest tried. Best is the point with most "
        "runs that ended, then the lowest mean on validation images, then the lowest rate. In a widening every arm "
        "gets as many further points. An arm that is not tuned can win but not lose, and one that lost runs can't win.",
        "Limits: intervals are over bases, and every base is judged on the same test images. What other test images, "
        "data sets, models or steps would give, they do not say.",
    ]


def _bases(seeds: Sequence[int]) -> str:
    """`10 bases (seeds 0 to 9)`."""
    runs = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    named = f"{seeds[0]} to {seeds[-1]}" if runs else listed([str(seed) for seed in seeds])
    return f"{count(len(seeds), 'base')} (seed{'s' if len(seeds) > 1 else ''} {named})"


def _space(arm: Arm) -> str:
    """`learning_rate 0.0001, 0.001, 0.01`, and further keys below it."""
    return ";\n".join(f"{key.rpartition('.')[2]} {', '.join(map(_value, values))}" for key, values in arm.space)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else as_text(value)


def _pairs(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested settings as `key=value`, with dotted keys."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _pairs(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={as_text(value) or value}"
