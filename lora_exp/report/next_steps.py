"""What a sweep proposes at its end: commands that repeat a run, and the recommended setting on more bases."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_exp.config.models import MODULE
from lora_exp.report.terminal import WIDTH, shown_as
from lora_exp.storage.recommendation import Recommendation, recommendations
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import unbeaten

# Overrides that the proposed sweep must not have: where a sweep is, what its report is called, seeds, and halving.
LEFT_OUT = ("hydra.sweep.dir", "hydra.run.dir", "report.name", "base.seed", "finetune.seed", "halving.")
CLASSES = ("finetune.target", "finetune.digit")  # keys that choose them
LEAST, MOST = 5, 20  # bases to propose


def next_text(sweep: Sweep, width: int = WIDTH) -> str:
    """The commands that a reader of the table may want next, with their purposes."""
    steps = [("lora-exp ui", "compare the runs in MLflow")]
    found = recommendations(sweep.frame)
    job = chosen_job(sweep, found)
    if job is not None and sweep.results[job].spec.model.kind != MODULE:  # which no command can build
        folder = shlex.quote(str(Path(sweep.frame["folder"].iloc[job])))
        is_shown = job == found[0].jobs[0]
        what = shown_as(found[0]) if is_shown else "the search's choice"
        steps.append((f"lora-exp reproduce {folder}", f"repeat {what} from scratch"))
        it = "it" if is_shown else "the recommended setting"
        steps += _over_bases(sweep, found[0], it)
    return steps_text(steps, width)


def steps_text(steps: Iterable[tuple[str, str]], width: int = WIDTH) -> str:
    """Commands and their purposes; a purpose that does not fit on the line of its command stands above it."""
    lines: list[str] = []
    for command, purpose in steps:
        whole = f"{command}  # {purpose}"
        lines += [whole] if len(whole) + 9 <= max(width, WIDTH) else [f"# {purpose}", command]
    return "".join(f"{'' if at else 'next':<8} {line}\n" for at, line in enumerate(lines))


def chosen_job(sweep: Sweep, found: list[Recommendation]) -> int | None:
    """The job that a search found on its validation images; else one of the first of the recommendations `found`."""
    if sweep.search is not None and len(names := sweep.search["objectives"]) == 1:
        own = {job: run for job, run in sweep.results.items() if not (run.diverged or run.imported)}
        if unbeaten_jobs := unbeaten({job: run.objectives(names) for job, run in own.items()}):
            return unbeaten_jobs[0]
    return found[0].jobs[0] if found else None


def _over_bases(sweep: Sweep, one: Recommendation, it: str) -> Iterator[tuple[str, str]]:
    """The setting on all its classes once more, over as many bases as may decide whether it gains.

    Nothing where that is decided, or would take too many. A base that was given has no seed: then over seeds.
    """
    is_given = sweep.results[one.jobs[0]].spec.base.epochs == 0
    repeats = one.over_bases or is_given
    done = len(one.gained) if repeats else 1
    if repeats and one.further == 0:
        return
    count = min(max(done + (MOST if one.further is None else one.further), LEAST), MOST)
    if count <= done:
        return
    first, *others = [shlex.split(sweep.frame["overrides"].iloc[job]) for job in one.jobs]
    own = []
    for part in first:
        key = _key(part)
        if key in CLASSES:
            values = [row.partition("=")[2] for parts in (first, *others) for row in parts if _key(row) == key]
            part = f"{key}={','.join(dict.fromkeys(values))}"
        if not key.startswith(LEFT_OUT):
            own.append(part)
    if sweep.stopped:
        own.append("halving.eta=null")
    seeds = [f"base.seed=range(0,{count})", "finetune.seed=${base.seed}"]
    if is_given:
        seeds = [f"finetune.seed=range(0,{count})"]
    purpose = f"more {'seeds' if is_given else 'bases'} decide whether {it} gains"
    yield shlex.join(["lora-exp", "-m", *own, *seeds]), purpose


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
