"""An adapter that PEFT trained, judged as one of ours: a run of its own, or one more job of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lora_exp.adapters.peft import read_folder
from lora_exp.commands.report import sweep_settings, write_again
from lora_exp.config.compose import compose_import
from lora_exp.config.spec import RunSpec
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.model.architecture import layer_shapes
from lora_exp.storage.result import IMPORTED_FROM
from lora_exp.storage.sweep_file import SWEEP, add_job, parent_run
from lora_exp.storage.sweep_folder import Sweep, read_sweep
from lora_exp.sweeps.job import check, keep, open_laboratory, with_facts


def import_peft(source: Path, into: Path | None, overrides: Sequence[str]) -> list[str]:
    """Judge the PEFT adapter in `source` on the base that `overrides` name; lines that tell what came of it.

    Its files go into a run's folder or, as one more job, into the sweep `into`, whose report is written again; it
    never enters the store of results. Raises LoraExpError for a folder or overrides
    that can't be used, before anything is written; JobsFailed when the base diverges.
    """
    for override in overrides:
        if override.startswith(("adapter", "finetune")) and not override.startswith("finetune.digit="):
            raise LoraExpError(
                f"{override}: the adapter is trained already; of finetune only finetune.digit has a meaning"
            )
    spec, settings, folder, config = compose_import(overrides)
    try:
        adapter = read_folder(source, layer_shapes(spec.model))
    except ValueError as error:
        raise LoraExpError(str(error)) from error
    spec = dataclasses.replace(spec, adapter=adapter.spec)
    check([spec], settings)
    parent = None
    if into is not None:
        folder, parent = into / str(len(_sweep(into, spec).frame)), parent_run(into)
    try:
        result, files = open_laboratory(settings).judge(spec, adapter.factors)
    except FloatingPointError as error:
        raise JobsFailed(f"{source}: can't be judged: {error}") from error
    command = ["import", str(source.absolute()), *overrides]
    result = with_facts(result, overrides=command, config=config, **{IMPORTED_FROM: str(source.absolute())})
    folder.mkdir(parents=True, exist_ok=True)
    keep(result, files, folder, settings, parent, draw=True)
    told = [result.summary, f"run      {folder.absolute()}"]
    if into is not None:
        add_job(into, command)
        sweep = _sweep(into, spec)
        where = dataclasses.replace(settings, report=sweep_settings(sweep).report)
        told.append(f"report   {write_again(sweep, where) / 'report.html'}")
    return told


def _sweep(folder: Path, spec: RunSpec) -> Sweep:
    """The sweep in `folder`, whose runs must be on the data set of `spec`."""
    if not (folder / SWEEP).is_file():
        raise LoraExpError(f"{folder}: holds no {SWEEP}, so it is not the folder of a sweep")
    try:
        sweep = read_sweep(folder)
    except ValueError as error:
        raise LoraExpError(str(error)) from error
    data = {result.spec.data.name for result in sweep.results.values()} - {spec.data.name}
    if data:
        raise LoraExpError(f"{folder}: its runs are on {', '.join(sorted(data))}, this one is on {spec.data.name}")
    return sweep
