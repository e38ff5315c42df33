"""The report of a sweep: a folder with tables, figures, and a page in Markdown and in HTML.

Every statement about a gain states its cost: the error on the target class comes with the error on the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lora_exp.report import figures, sections, sweep_figures
from lora_exp.report.claims.catalogue import judged
from lora_exp.report.claims.figure import claim_figure
from lora_exp.report.claims.verdict import CLAIM_FIGURE, Verdict, claim_section
from lora_exp.report.document import Picture, Section, markdown
from lora_exp.report.gained import gained_section
from lora_exp.report.html import html
from lora_exp.report.page_data import page_data
from lora_exp.report.search_section import search_section
from lora_exp.report.seeds import compare
from lora_exp.report.tables import errors_text, setting_labels
from lora_exp.storage.recommendation import representative
from lora_exp.storage.sweep_file import check_report_place
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished, row_of
from lora_exp.storage.varied import heading, setting_names, varied


def write_report(
    sweep: Sweep,
    out: Path,
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    claim: Verdict | None = None,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write `summary.csv`, `summary.parquet`, `report.md`, `report.html` and `figures/*.png` into `out`; return it.

    `pictures` (uint8 [N, 28, 28]) and `labels` [N] are the test images of the evaluation; `claim` comes from
    `judged_claim`, and `beside` writes further files. In the summaries `folder` is relative to the sweep's folder. The
    report is written whole or not at all, and replaces an older one. Raises LoraExpError when `out` holds something
    else.
    """
    check_report_place(out)
    fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{which}") for which in ("new", "old"))
    (fresh / "figures").mkdir(parents=True)
    try:
        folders = [Path(folder).relative_to(sweep.folder).as_posix() for folder in sweep.frame["folder"]]
        table = sweep.frame.assign(folder=folders)
        table.to_csv(fresh / "summary.csv", index=False)
        table.to_parquet(fresh / "summary.parquet", index=False)
        drawn = _draw(sweep, pictures, labels, fresh / "figures")
        if claim is not None and claim.answers:
            figures.save(claim_figure(claim), fresh / "figures" / CLAIM_FIGURE)
        _write_pages(sweep, claim, drawn, page_data(sweep, pictures, labels), fresh)
        if beside is not None:
            beside(fresh)
        if out.exists():
            out.replace(old)
        fresh.replace(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return out


def judged_claim(sweep: Sweep, name: str | None) -> Verdict | None:
    """Judge the claim of that name, if any, on the runs of the sweep, without imported adapters."""
    return None if name is None else judged(name, sweep.frame[sweep.frame["origin"] != "imported"])


def _write_pages(
    sweep: Sweep, claim: Verdict | None, drawn: Sequence[Section], data: dict[str, Any], folder: Path
) -> None:
    """Write `report.md` with the figures, and `report.html` with interactive charts in their place."""
    frame, results, comparison = sweep.frame, list(sweep.results.values()), compare(sweep.frame)
    title, runs = sections.title(sweep), [] if finished(frame).empty else [sections.runs_section(frame)]
    lead = [*([] if claim is None else [claim_section(claim)]), sections.recommendation_section(frame)]
    found = [
        sections.verdict_section(frame, comparison),
        *gained_section(frame, sweep.results),
        *([] if sweep.search is None else [search_section(sweep, sweep.search)]),
        *sections.halving_section(sweep),
        *sections.over_seeds(comparison),
    ]
    rest = sections.unfinished_section(sweep)
    rest += [sections.model_section(results), sections.proof_section(sweep)] if results else []
    commands = [sections.commands_section(frame)]
    provenance = [sections.provenance_section(results)] if results else []
    means = [sections.means_section(frame)] if runs else []  # which the page takes of the runs that it shows
    head = sections.head(sweep)
    text = markdown(title, [head, *lead, *found, *drawn, *means, *runs, *rest, *commands, *provenance])
    (folder / "report.md").write_text(text, encoding="utf-8")
    last = [*found, *rest, *([] if runs else commands), *provenance]
    page = html(title, head, lead, runs[0] if runs else None, last, data, folder / "figures")
    (folder / "report.html").write_text(page, encoding="utf-8")


def _draw(sweep: Sweep, pictures: NDArray[np.uint8], labels: NDArray[Any], folder: Path) -> list[Section]:
    """Draw the figures of the sweep into `folder`: a section for each, with the picture, or why there is none."""
    drawn: list[Section] = []
    runs = finished(sweep.frame)

    def add(title: str, name: str, figure: Figure, alt: str, note: str = "") -> None:
        figures.save(figure, folder / f"{name}.png")
        drawn.append(Section(title, [Picture(f"{name}.png", alt, note)]))

    if len(runs) > 1 and len(runs[_cell(runs)].drop_duplicates()) > 1:
        add(
            "Errors by class and setting",
            "heat_maps",
            sweep_figures.heat_maps(runs),
            "Heat maps of class by setting: error on the target class, forgetting, and balanced accuracy gained",
            "In the errors dark is low. In balanced accuracy blue is a gain and orange a loss. " + _of_cells(runs),
        )
        add(
            "Gain against price",
            "gain_against_price",
            sweep_figures.gain_against_price(runs),
            "Error on the target class against forgetting, a mark a run, coloured by setting",
            "Left and below is better. A front joins the runs of a class that no other of it beats in both.",
        )
    if runs.loc[runs["parameters_adapter"] > 0, "parameters_adapter"].nunique() > 1:
        add(
            "Parameters against error",
            "parameters_against_error",
            sweep_figures.parameters_against_error(sweep.frame),
            "Error on the target class and on the other classes against the number of adapter parameters",
            "The dashed line is the base. Means are over the finished runs of each size.",
        )
    if (shown := representative(sweep.frame)) is not None:
        result = sweep.results[shown]
        why = ", the run that is chosen above." if len(runs) > 1 else "."
        why = f"Job {shown}, {result.description}{why}"
        add(
            "Errors per class",
            "errors_per_class",
            figures.error_bars(result),
            f"Bars of every class's error rate before and after: {errors_text(row_of(result))}",
            why,
        )
        title = "Wrongly predicted images"
        try:
            figure = figures.wrong_images(result, sweep.logits(shown), pictures, labels)
        except ValueError as error:
            drawn.append(Section(title, [f"No figure for job {shown}: {error}."]))
        else:
            alt = "Images that fine-tuning mended, broke or left wrong, with true class and both predictions"
            add(title, "wrong_images", figure, alt, why)
    trained = {job: result for job, result in sweep.results.items() if not result.imported}
    if any(result.outcome.diverged_at != 1 for result in trained.values()):
        named = setting_labels(sweep.frame[sweep.frame["job"].isin(trained)])
        add(
            "Loss curves",
            "loss_curves",
            figures.loss_curves([trained[job] for job in named], list(named.values())),
            "Fine-tuning loss by step, one line a run, coloured by setting",
        )
    return drawn


def _cell(runs: pd.DataFrame) -> list[str]:
    """The columns whose values make a cell of the heat maps: the class, and the setting."""
    return ["target", *setting_names(varied(runs))]


def _of_cells(runs: pd.DataFrame) -> str:
    """Say which runs a cell of the heat maps shows."""
    most = int(runs.groupby(_cell(runs), dropna=False).size().max())
    if most == 1:
        return "Each cell is one run."
    names = [heading(name) for name in varied(runs) if name not in _cell(runs)]
    return f"A cell is the mean of up to {most} runs" + (f", which differ in {', '.join(names)}." if names else ".")
