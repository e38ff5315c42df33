"""The page of a contest, which the appendix of a paper could hold, and the same in Markdown, LaTeX and CSV.

A table or a picture has the paragraph before it for its caption.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from lora_exp.contest.comparison import SURE
from lora_exp.contest.figures import FOREST, RATES, figure_names, write_figures
from lora_exp.contest.latex import latex_table
from lora_exp.contest.stated import arms_table, how_it_decides, protocol_table, settings_table
from lora_exp.contest.tables import cost_table, limits_text, main_table, power_table, selection_table
from lora_exp.contest.verdict import Verdict
from lora_exp.contest.words import MEANINGS, MEASURES, SIGN, count, listed, sentences, spoken
from lora_exp.report.document import Block, Code, Grid, Heading, Listing, Picture, Section, markdown

TEMPLATES = Path(__file__).parent / "page"
NAMED = 4  # arms that the title names
ALTERNATIVES = {
    FOREST: "Forest plot: a panel for each opponent and a row for each arm, with the mean difference in points, its "
    "95 % interval, the margin and the outcome; the numbers are in the table above it",
    RATES: "Curves: a panel for each arm, with its measure on validation images by learning rate, and the rate that "
    "was chosen; the numbers are in the table below it",
}


def write_contest(verdict: Verdict, folder: Path) -> None:
    """Write `contest.html`, `.md`, `.tex`, `.csv` and `figures/contest_*.svg` and `.pdf` into an existing folder.

    Without judging there is no table for LaTeX, and the CSV has no rows.
    """
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    write_figures(verdict, figures)
    title, parts = title_of(verdict), sections(verdict)
    (folder / "contest.html").write_text(html(title, parts, figures), encoding="utf-8")
    (folder / "contest.md").write_text(markdown(title, parts), encoding="utf-8")
    if verdict.standings:
        (folder / "contest.tex").write_text(latex_table(verdict), encoding="utf-8")
    with (folder / "contest.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["arm", "opponent", "base_seed", "difference"])
        for one in (one for standing in verdict.standings for one in standing.comparisons):
            rows.writerows([one.arm, one.opponent, *pair] for pair in zip(one.bases, one.differences, strict=True))


def title_of(verdict: Verdict) -> str:
    """The question that the contest asks."""
    names = [spoken(arm.name) for arm in verdict.protocol.arms]
    who = listed(names) if len(names) <= NAMED else f"{len(names)} arms"
    return f"Which of {who} errs least, when each is tuned with the same effort?"


def sections(verdict: Verdict) -> list[Section]:
    """The whole page: the verdict, its tables and figures, the protocol, and how to repeat it."""
    protocol, figures = verdict.protocol, figure_names(verdict)
    asked = (
        f"{count(len(protocol.arms), 'arm')} ({listed([spoken(arm.name) for arm in protocol.arms])}) "
        f"{'are to be' if verdict.why_not else 'were'} tuned on {count(len(protocol.selection), 'base')} with "
        f"validation images, and judged on {count(len(protocol.judging), 'other base')} with test images, by "
        f"{MEASURES[protocol.measure]}: {MEANINGS[protocol.measure]}."
    )
    found = [Section("Verdict", [" ".join(sentences(verdict)), asked])]
    if verdict.standings:
        found += [_results(verdict), _equivalence(verdict), _cost(verdict)]
    if any(verdict.tried.values()):
        tuning: list[Block] = [_picture(RATES, "Learning rates tried and chosen.")] if RATES in figures else []
        tuning += [
            f"Every point that an arm tried: its measure, {_over(verdict)}.",
            selection_table(verdict),
        ]
        found.append(Section("Tuning", tuning))
    return _numbered([*found, _protocol(verdict), _repeat(verdict)])


def html(title: str, parts: list[Section], figures: Path) -> str:
    """Write the page, in which the SVG pictures of the folder `figures` are embedded. It needs no script."""
    pictures = [block.file for section in parts for block in section.blocks if isinstance(block, Picture)]
    images = {name: base64.b64encode((figures / name).read_bytes()).decode() for name in pictures}
    page, style = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("contest.html", "contest.css"))
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(page)
        .render(
            title=title,
            sections=parts,
            images={name: f"data:image/svg+xml;base64,{picture}" for name, picture in images.items()},
            kind=lambda value: type(value).__name__,
            style=style,
        )
    )


def _results(verdict: Verdict) -> Section:
    protocol = verdict.protocol
    starred = any(one.end for one in verdict.standings)
    caption = (
        f"Each arm at its best rate over {count(len(protocol.judging), 'base')}: its measure, and its difference to "
        f"each opponent in points, with the 95 % interval, the corrected p value and the outcome. {SIGN}."
    ) + (" *: the best rate is the lowest or the highest tried, so the arm is not tuned." if starred else "")
    note = (
        f"Differences with 95 % intervals. Left of 0 the arm errs less; the band is the margin of {_margin(verdict)}."
    )
    return Section("Results", [caption, main_table(verdict), _picture(FOREST, note)])


def _equivalence(verdict: Verdict) -> Section:
    has_luck = any(one.luck for standing in verdict.standings for one in standing.comparisons)
    caption = (
        f"Whether each arm is shown to be within {_margin(verdict)} of its opponent (corrected p value of TOST), and "
        f"the power to show a difference of {_margin(verdict)}, with the bases that would raise it to "
        f"{100 * SURE:.0f} % where no difference is shown."
    ) + (" Luck is the deviation, in points, that is due to which rates were picked." if has_luck else "")
    return Section("Equivalence and power", [caption, power_table(verdict)])


def _cost(verdict: Verdict) -> Section:
    caption = (
        "What stands beside the measure: forgetting (the rise of the error on the other classes) and balanced accuracy "
        "with 95 % intervals over bases, and what it took to tune and to judge each arm. Core seconds are its share of "
        "the time of its packs."
    )
    return Section("Cost", [caption, cost_table(verdict)])


def _over(verdict: Verdict) -> str:
    """What a number of the selection table is."""
    return f"the mean and the {limits_text(verdict)}" if len(verdict.protocol.selection) > 1 else "on 1 base"


def _margin(verdict: Verdict) -> str:
    return f"{verdict.protocol.margin:g} points"


def _protocol(verdict: Verdict) -> Section:
    protocol = verdict.protocol
    stated = (
        "What was stated in contest.yaml before anything ran. Its SHA-256 shows that nothing was decided afterwards."
    )
    blocks: list[Block] = [stated, protocol_table(verdict), "The arms.", arms_table(protocol)]
    blocks += [Heading("How it decides"), *how_it_decides(verdict)]
    if protocol.settings:
        blocks += ["All other settings of a job.", settings_table(protocol)]
    return Section("Protocol", blocks)


def _repeat(verdict: Verdict) -> Section:
    versions: list[Block] = []
    if verdict.versions:
        pairs = [[name, text] for name, text in verdict.versions.items()]
        versions = ["What it ran with.", Grid((["what", "version"], pairs), words=2)]
    where = (
        "The same command states the same protocol and gives the same numbers. Its runs are in the folder ",
        Code(Path(verdict.folder).name),
        ".",
    )
    return Section("Repeat it", [Listing([verdict.command]), where, *versions])


def _picture(name: str, note: str) -> Picture:
    return Picture(f"{name}.svg", ALTERNATIVES[name], note)


def _numbered(parts: Sequence[Section]) -> list[Section]:
    """The sections with `Table 1. ` and `Figure 1. ` before the captions."""
    tables, pictures = itertools.count(1), itertools.count(1)
    found = []
    for section in parts:
        blocks = list(section.blocks)
        for at, block in enumerate(blocks):
            if isinstance(block, Picture):
                blocks[at] = dataclasses.replace(block, note=f"Figure {next(pictures)}. {block.note}")
            elif isinstance(block, Grid):
                blocks[at - 1] = f"Table {next(tables)}. {blocks[at - 1]}"
        found.append(dataclasses.replace(section, blocks=blocks))
    return found
