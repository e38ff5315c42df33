"""The main table of a verdict for LaTeX; it needs the package booktabs."""

from __future__ import annotations

import math

from lora_exp.contest.comparison import BETTER, LOST, NOT_TUNED, OPEN, WITHIN, WORSE, Comparison
from lora_exp.contest.verdict import Verdict
from lora_exp.contest.words import MEASURES, count, difference, percent, rate
from lora_exp.report.statistics import CHANCE

SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "–": "--"},
}
LONG_NAME = 24  # letters; a longer name of an arm is broken
# What stands at a difference, by its outcome, and what the caption says of it.
SIGNS = {
    BETTER: (r"^\mathrm{b}", "better"),
    WORSE: (r"^\mathrm{w}", "worse"),
    WITHIN: (r"^{\approx}", "within the margin (TOST)"),
    OPEN: (r"^{\circ}", "no difference shown"),
    NOT_TUNED: (r"^{\ast}", "not tuned"),
    LOST: (r"^{\dagger}", "runs lost"),
}


def latex_table(verdict: Verdict) -> str:
    """A `table` environment with a row an arm; its caption states n, margin, correction and the protocol's hash."""
    is_long = any(len(one.arm.name) > LONG_NAME for one in verdict.standings)
    heads = " & ".join(
        f"minus {escaped(one) if len(one) <= LONG_NAME else 'the reference'}" for one in verdict.opponents
    )
    arms = r"p{0.16\linewidth}" if is_long else "l"
    rows = [
        " & ".join(
            [
                rf"\raggedright {escaped(one.arm.name)}" if is_long else escaped(one.arm.name),
                escaped(rate(one)),
                escaped(percent(one.measure.mean)),
                *(_cell(one.against(opponent)) for opponent in verdict.opponents),
            ]
        )
        for one in verdict.standings
    ]
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{2pt}\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{_caption(verdict)}}}",
        r"\label{tab:contest}",
        rf"\begin{{tabular}}{{@{{}}{arms}rr{'l' * len(verdict.opponents)}@{{}}}}",
        r"\toprule",
        rf"arm & rate & error (\%) & {heads} \\",
        r"\midrule",
        *(rf"{row} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text as LaTeX has to be given it."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def _cell(one: Comparison | None) -> str:
    r"""`$-1.20^\mathrm{b}$ {\tiny[$-1.42$, $-0.98$]}`."""
    if one is None or not one.differences:
        return "--"
    sign, _ = SIGNS.get(one.outcome, ("", ""))
    mean, low, high = map(difference, (one.interval.mean, one.interval.low, one.interval.high))
    limits = rf" {{\tiny[${low}$, ${high}$]}}" if math.isfinite(one.interval.low) else ""
    return f"${mean}{sign}${limits}"


def _caption(verdict: Verdict) -> str:
    protocol = verdict.protocol
    compared = [one for standing in verdict.standings for one in standing.comparisons if one.is_tested]
    outcomes = {one.outcome for one in compared}
    signs = ", ".join(f"${sign}$ {meaning}" for outcome, (sign, meaning) in SIGNS.items() if outcome in outcomes)
    stars = r" $\ast$ at a rate: the lowest or highest tried." if any(one.end for one in verdict.standings) else ""
    bases = len(protocol.judging)
    fewer = " (fewer where runs were lost)" if any(len(one.differences) < bases for one in compared) else ""
    digits = protocol.sha256
    digest = r"\allowbreak ".join(digits[at : at + 8] for at in range(0, len(digits), 8))
    return (
        f"The {escaped(MEASURES[protocol.measure])} of each arm at its best rate, and its differences (points) with "
        f"95\\,\\% intervals over $n={bases}$ bases{fewer}; below 0 the arm errs less. Paired $t$ tests at "
        f"{100 * CHANCE:g}\\,\\%, corrected for {count(len(compared), 'test')} (Holm), and TOST with a margin of "
        f"{protocol.margin:g} points: {signs}.{stars} Reference: {escaped(protocol.reference)}. "
        f"Protocol: SHA-256 \\texttt{{{digest}}}."
    )
