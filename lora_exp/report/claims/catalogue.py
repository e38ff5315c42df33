"""Claims of published papers, each judged on a sweep that one preset runs.

To add a claim, add a function here, its name to `config.settings.CLAIMS`, and a preset `conf/experiment/NAME.yaml` of
the same name. Margins and directions belong to the claim and are stated before its sweep runs; see docs/claims.md.

A part of a claim passes when the confidence interval lies below its margin, fails when it lies above, and is undecided
otherwise. The claim passes when all parts pass and fails when one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from lora_exp.config.settings import CLAIMS
from lora_exp.report.claims.evidence import Runs, Undecided, evidence
from lora_exp.report.claims.verdict import Claim, Finding, Panel, Side, Verdict
from lora_exp.report.statistics import FAIL, PASS, UNDECIDED, Question, answers, interval

REGISTRY: dict[str, Claim] = {}


def judged(name: str, frame: pd.DataFrame, curves: Mapping[int, Sequence[float]]) -> Verdict:
    """Judge claim `name` on a sweep, given `frame` from `load_sweep` and loss curves by job."""
    claim = REGISTRY[name]
    try:
        found = claim.judge(evidence(frame, curves))
        sides = tuple(
            Side(runs.label, interval(runs.by_seed("target_error")), interval(runs.by_seed("forgetting")))
            for runs in found.sides
        )
    except Undecided as why:
        return Verdict(name, claim, UNDECIDED, note=f"Not judged: {why}.")
    outcomes = {answer.outcome for answer in found.answers}
    joint = FAIL if FAIL in outcomes else UNDECIDED if UNDECIDED in outcomes else PASS
    return Verdict(name, claim, found.outcome or joint, found.answers, sides, found.panels, found.note)


def _claim(words: str, source: str, measured: str) -> Callable[[Callable[[Runs], Finding]], Callable[[Runs], Finding]]:
    """Register the function that follows as a claim, under its own name."""

    def enter(judge: Callable[[Runs], Finding]) -> Callable[[Runs], Finding]:
        REGISTRY[judge.__name__] = Claim(words, source, measured, judge)
        return judge

    return enter


@_claim(
    "Few ranks suffice: ranks 1, 2 and 4 do as well as rank 64",
    "Hu et al. 2021, LoRA, section 7.2 and table 6, arXiv:2106.09685",
    "The error on the target digit at each low rank minus that at rank 64. As well means: by less than half a "
    "percentage point more.",
)
def rank_saturates(runs: Runs) -> Finding:
    *low, high = (runs.where(f"rank {rank}", rank=rank) for rank in (1, 2, 4, 64))
    asked = [
        Question(f"{few.label} minus {high.label}", "target error", "points", 0.5, few.minus(high, "target_error"))
        for few in low
    ]
    panels = (
        Panel("Error on the target digit", "rank", "%", (runs.line("rank", "target_error"),), log_x=True),
        Panel("Forgetting", "rank", "points", (runs.line("rank", "forgetting"),), log_x=True),
    )
    return Finding(answers(asked), (*low, high), panels)


@_claim(
    "LoRA learns less and forgets less than full fine-tuning",
    "Biderman et al. 2024, sections 4.1 and 4.2, arXiv:2405.09673",
    "The error on the target digits of full fine-tuning minus that of LoRA, which learns less or the same unless its "
    "error is lower by a tenth of a percentage point; and the forgetting of LoRA minus that of full fine-tuning. Each "
    "method at the learning rate at which its own target error is lowest.",
)
def learns_less_forgets_less(runs: Runs) -> Finding:
    methods = (runs.where("LoRA", method="lora"), runs.where("full", method="full"))
    lora, full = (method.at_best_rate("target_error") for method in methods)
    asked = [
        Question("full minus LoRA", "target error", "points", 0.1, full.minus(lora, "target_error")),
        Question("LoRA minus full", "forgetting", "points", 0.0, lora.minus(full, "forgetting")),
    ]
    panels = (
        _by_rate("Error on the target digits", "target_error", "%", methods),
        _by_rate("Forgetting", "forgetting", "points", methods),
    )
    return Finding(answers(asked), (lora, full), panels)


@_claim(
    "At rank 256 the scaling alpha/sqrt(r) trains to a lower loss than alpha/r, and with it rank 256 to a lower loss "
    "than rank 16",
    "Kalajdzievski 2023, rsLoRA, abstract and section 4, arXiv:2312.03732",
    "Differences of the mean loss over the last tenth of the steps. All runs at the learning rate at which rank 1, "
    "where both scalings are the same, has the lowest such loss.",
)
def rslora_high_rank(runs: Runs) -> Finding:
    rate = runs.where(rank=1).best_rate("late_loss")
    note = f"All at learning rate {runs.rate_text(rate)}."
    methods = (runs.where("rsLoRA", method="rslora"), runs.where("LoRA", method="lora"))
    rslora, lora = (method.where(learning_rate=rate) for method in methods)
    high, low = (rslora.where(f"rsLoRA rank {rank}", rank=rank) for rank in (256, 16))
    plain = lora.where("LoRA rank 256", rank=256)
    asked = [
        Question(f"{high.label} minus {other.label}", "late loss", "nats", 0.0, high.minus(other, "late_loss"))
        for other in (plain, low)
    ]
    by_rank = tuple(method.line("rank", "late_loss") for method in (rslora, lora))
    panels = (
        Panel(f"Late loss at learning rate {rate:g}", "rank", "nats", by_rank, log_x=True, log_y=True),
        _by_rate("Late loss at rank 256", "late_loss", "nats", [method.where(rank=256) for method in methods]),
    )
    return Finding(answers(asked), (high, low, plain), panels, note=note)


@_claim(
    "With a higher learning rate for B than for A, LoRA+ reaches a given loss in fewer steps than LoRA",
    "Hayou et al. 2024, LoRA+, abstract and section 4, arXiv:2402.12354",
    "Steps until the moving average of the loss reaches the final value of the slower of the two in the same seed, "
    "LoRA+ minus LoRA. Each method at the learning rate at which its own late loss is lowest.",
)
def lora_plus_faster(runs: Runs) -> Finding:
    methods = (runs.where("LoRA+", method="lora_plus"), runs.where("LoRA", method="lora"))
    plus, plain = (method.at_best_rate("late_loss") for method in methods)
    plus.minus(plain, "late_loss")  # raises Undecided unless both have the same seeds and digits and none diverged
    losses = [method.loss_by_seed() for method in (plus, plain)]
    given = losses[0].iloc[:, -1].combine(losses[1].iloc[:, -1], max)
    steps = [table.le(given, axis=0).idxmax(axis=1) for table in losses]
    saved = tuple(float(difference) for difference in steps[0] - steps[1])
    asked = [Question("LoRA+ minus LoRA", "steps to the given loss", "steps", 0.0, saved)]
    panels = (_losses((plus, plain)), _by_rate("Late loss", "late_loss", "nats", methods))
    return Finding(answers(asked), (plus, plain), panels)


@_claim(
    "An MLP trained on odd digits and fine-tuned on even ones: PiSSA's loss falls faster than LoRA's",
    "Meng et al. 2024, PiSSA, figure 2, arXiv:2404.02948",
    "The mean loss over all steps, of PiSSA minus LoRA. Each method at the learning rate at which its own is lowest.",
)
def pissa_odd_even(runs: Runs) -> Finding:
    methods = (runs.where("PiSSA", method="pissa"), runs.where("LoRA", method="lora"))
    pissa, lora = (method.at_best_rate("mean_loss") for method in methods)
    asked = [Question("PiSSA minus LoRA", "mean loss", "nats", 0.0, pissa.minus(lora, "mean_loss"))]
    panels = (_losses((pissa, lora)), _by_rate("Mean loss", "mean_loss", "nats", methods))
    return Finding(answers(asked), (pissa, lora), panels)


@_claim(
    "Replaying a share of other digits, of at most a half, keeps forgetting below one percentage point",
    "rehearsal: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7(2)",
    "Forgetting at each share. The price is the rise of the error on the target digit from no replay to the smallest "
    "share from which on forgetting is below the margin.",
)
def replay_price(runs: Runs) -> Finding:
    shares = runs.choices("replay")
    if shares[:1] != [0.0] or len(shares) == 1:
        raise Undecided("it needs runs with and without replay")
    without, *some = (runs.where(f"replay {share:g}", replay=share) for share in shares)
    asked = [Question(share.label, "forgetting", "points", 1.0, share.by_seed("forgetting")) for share in some]
    found = answers(asked)
    kept = len(found)
    while kept and found[kept - 1].outcome == PASS:
        kept -= 1
    outcome = PASS if kept < len(found) else FAIL if all(answer.outcome == FAIL for answer in found) else UNDECIDED
    note = "No share in the sweep does."
    if outcome == PASS:
        price = interval(some[kept].minus(without, "target_error"))
        note = f"The smallest share that does is {some[kept].label}; its price: target error {price.text('points')}."
    panels = (
        Panel("Forgetting", "share of replay", "points", (runs.line("replay", "forgetting"),)),
        Panel("Error on the target digit", "share of replay", "%", (runs.line("replay", "target_error"),)),
    )
    return Finding(found, (without, *some), panels, outcome, note)


def _by_rate(title: str, measure: str, unit: str, methods: Sequence[Runs]) -> Panel:
    lines = tuple(method.line("learning_rate", measure) for method in methods)
    return Panel(title, "learning rate", unit, lines, log_x=True, log_y=unit == "nats")


def _losses(methods: Sequence[Runs]) -> Panel:
    lines = tuple(method.loss_line() for method in methods)
    return Panel("Loss by step", "fine-tuning step", "nats", lines, log_y=True)


assert tuple(REGISTRY) == CLAIMS, "config.settings.CLAIMS must list the claims in the order of their functions here"
