"""What a sweep proposes at its end: commands that repeat the chosen run, and that show which differences are chance."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from lora_exp.config.models import MODULE
from lora_exp.storage.recommendation import representative
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished, unbeaten

# Overrides of one sweep that another must not have: where it is, and what its report is called.
OF_ONE_SWEEP = ("hydra.sweep.dir", "hydra.run.dir", "report.name")
SEEDS = ("base.seed", "finetune.seed")


def next_text(sweep: Sweep) -> str:
    """The commands that a reader of the table may want next, with their purposes, a line each."""
    steps = [("lora-exp ui", "compare the runs in MLflow")]
    job = chosen_job(sweep)
    if job is not None and sweep.results[job].spec.model.kind != MODULE:  # which no command can build
        folder = shlex.quote(str(Path(sweep.frame["folder"].iloc[job])))
        what = "the chosen run" if sweep.search is None else "the search's choice"
        steps.append((f"lora-exp reproduce {folder}", f"repeat {what} from scratch"))
        steps += _over_seeds(sweep, job)
    lines = (f"{'' if at else 'next':<8} {command}  # {purpose}" for at, (command, purpose) in enumerate(steps))
    return "".join(f"{line}\n" for line in lines)


def chosen_job(sweep: Sweep) -> int | None:
    """The job that a search found on its validation images; else one of the recommended setting, chosen on such too."""
    if sweep.search is not None and len(names := sweep.search["objectives"]) == 1:
        own = {job: run for job, run in sweep.results.items() if not (run.diverged or run.imported)}
        if found := unbeaten({job: run.objectives(names) for job, run in own.items()}):
            return found[0]
    return representative(sweep.frame)


def _over_seeds(sweep: Sweep, job: int) -> Iterator[tuple[str, str]]:
    """The sweep once more, over several bases where there was one; of a search, its best job."""
    runs = finished(sweep.frame)
    is_given = sweep.results[job].spec.base.epochs == 0  # such a base has no seed
    if runs["seed" if is_given else "base_seed"].nunique() > 1:
        return
    given = shlex.split(sweep.command)[1:] if sweep.search is None else shlex.split(sweep.frame["overrides"].iloc[job])
    without = (*OF_ONE_SWEEP, *SEEDS)
    own = [part for part in given if part not in ("-m", "--multirun") and _key(part) not in without]
    if sweep.search is None:
        for key, values in _mended(sweep).items():
            own = [part for part in own if _key(part) != key] + [f"{key}={','.join(values)}"]
    seeds = ["base.seed=range(0,5)", "finetune.seed=${base.seed}"]
    purpose = "several bases show which differences are chance"
    if is_given:
        seeds, purpose = ["finetune.seed=range(0,5)"], "several seeds show which differences are chance"
    yield shlex.join(["lora-exp", "-m", *own, *seeds]), purpose


def _mended(sweep: Sweep) -> dict[str, list[str]]:
    """The swept keys with a value whose runs all diverged: key -> its other values."""
    statuses: dict[str, dict[str, set[str]]] = {}
    for row in sweep.frame.to_dict("records"):
        for part in shlex.split(row["overrides"]):
            key, _, value = part.partition("=")
            statuses.setdefault(key, {}).setdefault(value, set()).add(row["status"])
    found = {key: [value for value, of in own.items() if of != {"diverged"}] for key, own in statuses.items()}
    return {key: kept for key, kept in found.items() if 0 < len(kept) < len(statuses[key])}


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
