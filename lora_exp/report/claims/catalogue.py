"""Claims of published papers, each judged on a sweep that one preset runs.

To add a claim, add a function here, its name to `config.settings.CLAIMS`, and a preset `conf/experiment/NAME.yaml` of
the same name. Margins and directions belong to the claim and are stated before its sweep runs; see docs/claims.md.

A part of a claim passes when the confidence interval lies below its margin, fails when it lies above, and is undecided
otherwise. The claim passes when all parts pass and fails when one fails (see `statistics.Answer`). Learning rates are
chosen on validation images and on the other bases, and compared on test images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from lora_exp.config.settings import CLAIMS
from lora_exp.report.claims.evidence import Runs, Undecided, evidence
from lora_exp.report.claims.verdict import Claim, Finding, Panel, Side, Verdict
from lora_exp.report.statistics import FAIL, PASS, UNDECIDED, Question, answers, interval

REGISTRY: dict[str, Claim] = {}
Judge = Callable[[Runs], Finding]


def judged(name: str, frame: pd.DataFrame) -> Verdict:
    """Judge claim `name` on a sweep, given `frame` from `read_sweep`."""
    claim = REGISTRY[name]
    try:
        found = claim.judge(evidence(frame))
        sides = tuple(
            Side(runs.label, interval(runs.by_seed("target_error")), interval(runs.by_seed("forgetting")))
            for runs in found.sides
        )
    except Undecided as why:
        return Verdict(name, claim, UNDECIDED, note=f"Not judged: {why}.")
    outcomes = {answer.outcome for answer in found.answers}
    joint = FAIL if FAIL in outcomes else UNDECIDED if UNDECIDED in outcomes else PASS
    return Verdict(name, claim, found.outcome or joint, found.answers, sides, found.panels, found.note)


def _claim(
    words: str, source: str, measured: str, effect: float
) -> Callable[[Callable[[Runs], Finding]], Callable[[Runs], Finding]]:
    """Register the function that follows as a claim, under its own name.

    `effect` is how far beyond the margin a true difference of the size that the source reports would lie.
    """

    def enter(judge: Judge) -> Judge:
        REGISTRY[judge.__name__] = Claim(words, source, measured, effect, judge)
        return judge

    return enter


@_claim(
    "Few ranks suffice: ranks 1, 2 and 4 do as well as rank 64",
    "Hu et al. 2021, LoRA, section 7.2 and table 6, arXiv:2106.09685",
    "The gain in balanced accuracy at rank 64 minus that at each low rank. As well means: by less than half a "
    "percentage point more.",
    effect=0.5,
)
def rank_saturates(runs: Runs) -> Finding:
    *low, high = (runs.where(f"rank {rank}", rank=rank) for rank in (1, 2, 4, 64))
    asked = [
        Question(
            f"{high.label} minus {few.label}", "balanced accuracy", "points", 0.5, high.minus(few, "balanced_gain")
        )
        for few in low
    ]
    panels = (
        Panel("Gain in balanced accuracy", "rank", "points", (runs.line("rank", "balanced_gain"),), log_x=True),
        Panel("Forgetting", "rank", "points", (runs.line("rank", "forgetting"),), log_x=True),
    )
    return Finding(answers(asked), (*low, high), panels)


@_claim(
    "LoRA learns substantially less and forgets less than full fine-tuning",
    "Biderman et al. 2024, sections 4.1 and 4.2, arXiv:2405.09673",
    "The fall of the target error by LoRA, minus nine tenths of that by full fine-tuning, after the most steps; and "
    "the forgetting of LoRA minus that of full fine-tuning, as the mean over all numbers of steps.",
    effect=0.5,
)
def learns_less_forgets_less(runs: Runs) -> Finding:
    methods = (runs.where("LoRA", method="lora"), runs.where("full", method="full"))
    lora, full = (method.at_best_rate("validation_target_error") for method in methods)
    steps = max(runs.choices("steps"))
    last = [own.where(steps=steps).by_seed("target_gain") for own in (lora, full)]
    lora.minus(full, "target_gain")  # raises Undecided unless both have the same bases and targets and none diverged
    less = tuple(mine - 0.9 * theirs for mine, theirs in zip(*last, strict=True))
    asked = [
        Question("LoRA minus 0.9 full", "target gain", "points", 0.0, less),
        Question("LoRA minus full", "forgetting", "points", 0.0, lora.minus(full, "forgetting")),
    ]
    panels = tuple(
        Panel(title, "fine-tuning steps", unit, tuple(own.line("steps", measure) for own in (lora, full)), log_x=True)
        for title, measure, unit in (
            ("Error on the target classes", "target_error", "%"),
            ("Forgetting", "forgetting", "points"),
        )
    )
    return Finding(answers(asked), (lora, full), panels)


@_claim(
    "At rank 256 the scaling alpha/sqrt(r) trains to a lower loss than alpha/r, and with it rank 256 to a lower loss "
    "than rank 16",
    "Kalajdzievski 2023, rsLoRA, abstract and section 4, arXiv:2312.03732",
    "Differences of the loss on the target's test images. Every method and rank at the learning rate at which rank 1, "
    "where both scalings are the same, has the lowest loss on validation images.",
    effect=0.05,
)
def rslora_high_rank(runs: Runs) -> Finding:
    methods = (runs.where("rsLoRA", method="rslora"), runs.where("LoRA", method="lora"))
    rates = runs.where("rank 1", rank=1).best_rates("validation_target_loss")
    rslora, lora = (method.at_rates(rates) for method in methods)
    high, low = (rslora.where(f"rsLoRA rank {rank}", rank=rank) for rank in (256, 16))
    plain = lora.where("LoRA rank 256", rank=256)
    asked = [
        Question(f"{high.label} minus {other.label}", "test loss", "nats", 0.0, high.minus(other, "target_loss"))
        for other in (plain, low)
    ]
    by_rank = tuple(method.line("rank", "target_loss") for method in (rslora, lora))
    panels = (
        Panel("Loss at that learning rate", "rank", "nats", by_rank, log_x=True, log_y=True),
        _by_rate("Loss at rank 256", [method.where(rank=256) for method in methods]),
    )
    return Finding(answers(asked), (high, low, plain), panels, note=f"All at {runs.rates_text(rates)}.")


@_claim(
    "With a higher learning rate for B than for A, LoRA+ reaches a given loss in fewer steps than LoRA",
    "Hayou et al. 2024, LoRA+, abstract and section 4, arXiv:2402.12354",
    "Steps until the loss on the target's test images reaches the final value of the slower of the two over the same "
    "base, LoRA+ minus LoRA, interpolated between the numbers of steps that were run.",
    effect=50,
)
def lora_plus_faster(runs: Runs) -> Finding:
    methods = (runs.where("LoRA+", method="lora_plus"), runs.where("LoRA", method="lora"))
    plus, plain = (method.at_best_rate("validation_target_loss") for method in methods)
    plus.minus(plain, "target_loss")  # raises Undecided unless both have the same bases and targets and none diverged
    losses = [method.by_steps("target_loss") for method in (plus, plain)]
    given = losses[0].iloc[:, -1].combine(losses[1].iloc[:, -1], max)
    steps = [steps_to(table, given) for table in losses]
    saved = tuple(float(difference) for difference in steps[0] - steps[1])
    asked = [Question("LoRA+ minus LoRA", "steps to the given loss", "steps", 0.0, saved)]
    panels = (_by_steps((plus, plain)), _by_rate("Loss, mean over the steps", methods))
    return Finding(answers(asked), (plus, plain), panels)


@_claim(
    "An MLP trained on odd digits and fine-tuned on even ones: PiSSA's loss falls faster than LoRA's",
    "Meng et al. 2024, PiSSA, figure 2, arXiv:2404.02948",
    "The loss on the target's test images, as the mean over all numbers of steps, of PiSSA minus LoRA.",
    effect=0.1,
)
def pissa_odd_even(runs: Runs) -> Finding:
    methods = (runs.where("PiSSA", method="pissa"), runs.where("LoRA", method="lora"))
    pissa, lora = (method.at_best_rate("validation_target_loss") for method in methods)
    for method in (pissa, lora):
        method.by_steps("target_loss")  # raises Undecided for a single number of steps
    asked = [Question("PiSSA minus LoRA", "mean loss", "nats", 0.0, pissa.minus(lora, "target_loss"))]
    panels = (_by_steps((pissa, lora)), _by_rate("Loss, mean over the steps", methods))
    return Finding(answers(asked), (pissa, lora), panels)


@_claim(
    "Replaying a share of other classes, of at most a half, keeps forgetting below one percentage point",
    "rehearsal: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7(2)",
    "Forgetting at each share. The price is the rise of the error on the target class from no replay to the smallest "
    "share from which on forgetting is below the margin.",
    effect=0.5,
)
def replay_price(runs: Runs) -> Finding:
    shares = runs.choices("replay")
    if shares[:1] != [0.0] or len(shares) == 1:
        raise Undecided("it needs runs with and without replay")
    without, *some = (runs.where(f"replay {share:g}", replay=share) for share in shares)
    asked = [Question(share.label, "forgetting", "points", 1.0, share.by_seed("forgetting")) for share in some]
    found = answers(asked)
    kept = len(
        found
    )  # from the largest share down to the first that does not: tests in a fixed order need no correction
    while kept and found[kept - 1].outcome == PASS:
        kept -= 1
    outcome = PASS if kept < len(found) else FAIL if all(answer.outcome == FAIL for answer in found) else UNDECIDED
    note = "No share in the sweep does."
    if outcome == PASS:
        price = interval(some[kept].minus(without, "target_error"))
        note = f"The smallest share that does is {some[kept].label}; its price: target error {price.text('points')}."
    panels = (
        Panel("Forgetting", "share of replay", "points", (runs.line("replay", "forgetting"),)),
        Panel("Error on the target class", "share of replay", "%", (runs.line("replay", "target_error"),)),
    )
    return Finding(found, (without, *some), panels, outcome, note)


@_claim(
    "A LoRA adapter forgets less than a moved threshold of the same recall",
    "This project: one constant on the target's logit of the untouched base is the fair baseline (docs/gains.md)",
    "The forgetting of the adapter minus that of the matched shift, at each rank on each data set.",
    effect=0.5,
)
def threshold_or_learning(runs: Runs) -> Finding:
    sides = [
        runs.where(f"{data.replace('_', ' ')} rank {rank}", data=data, rank=rank)
        for data in runs.choices("data")
        for rank in runs.choices("rank")
    ]
    asked = []
    for own in sides:
        below = tuple(-value for value in own.by_seed("beyond_shift"))
        if any(map(math.isnan, below)):
            raise Undecided(f"runs of {own.label} have no matched shift")
        asked.append(Question(own.label, "adapter minus shift", "points", 0.0, below))
    if not asked:
        raise Undecided("there are no runs")
    found = answers(asked)
    better = [answer.question.what for answer in found if answer.corrected.high < 0]
    worse = [answer.question.what for answer in found if answer.corrected.low > 0]
    note = f"Better than a moved threshold, with Holm's correction: {', '.join(better) or 'none'}; worse: "
    by_rank = tuple(runs.where(data, data=data).line("rank", "beyond_shift") for data in runs.choices("data"))
    panels = (Panel("Forgetting below that of the shift", "rank", "points", by_rank, log_x=True),)
    return Finding(found, tuple(sides), panels, note=f"{note}{', '.join(worse) or 'none'}.")


def steps_to(losses: pd.DataFrame, given: pd.Series[float]) -> pd.Series[float]:
    """Return for each row the steps at which its loss first reaches `given`, on straight lines of the log loss.

    `losses` has one column for each number of steps, in order; the last loss of a row is at most its given one. A loss
    that is reached before the first number of steps counts as reached there.
    """
    steps = [float(str(name)) for name in losses.columns]
    found = {}
    for row, values, last in zip(losses.index, losses.to_numpy(), given, strict=True):
        logs, goal = [math.log(value) for value in values], math.log(last)
        at = next(place for place, value in enumerate(logs) if value <= goal)
        share = 0.0 if at == 0 else (logs[at - 1] - goal) / (logs[at - 1] - logs[at])
        found[row] = steps[at] if at == 0 else steps[at - 1] + share * (steps[at] - steps[at - 1])
    return pd.Series(found)


def _by_rate(title: str, methods: Sequence[Runs]) -> Panel:
    lines = tuple(method.line("learning_rate", "target_loss") for method in methods)
    return Panel(title, "learning rate", "nats", lines, log_x=True, log_y=True)


def _by_steps(methods: Sequence[Runs]) -> Panel:
    lines = tuple(method.line("steps", "target_loss") for method in methods)
    return Panel("Loss on the target's test images", "fine-tuning steps", "nats", lines, log_x=True, log_y=True)


assert tuple(REGISTRY) == CLAIMS, "config.settings.CLAIMS must list the claims in the order of their functions here"
