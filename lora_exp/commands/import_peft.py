"""`lora-exp import`: evaluate an adapter that PEFT trained, as a run of its own or as one more job of a sweep."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.commands.report import sweep_settings, write_again
from lora_exp.config.compose import compose_import
from lora_exp.config.spec import RunSpec
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.numerics import request_portable_kernels
from lora_exp.storage.result import IMPORTED_FROM
from lora_exp.storage.sweep_file import add_job, read_about

if TYPE_CHECKING:
    from lora_exp.storage.sweep_folder import Sweep


def main(arguments: Sequence[str]) -> int:
    """Evaluate an adapter that PEFT trained (LoRA, rsLoRA or DoRA) on a base of lora-exp."""
    parser = argparse.ArgumentParser(prog="lora-exp import", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder that PEFT's save_pretrained wrote")
    parser.add_argument("--into", type=Path, metavar="SWEEP", help="folder of a sweep to add it to, as one more job")
    add_overrides(parser, "model=tiny finetune.digit=9, which name the base and the target")
    options = parse(parser, arguments)
    print("\n".join(import_peft(options.folder, options.into, options.overrides)))
    return 0


def import_peft(source: Path, into: Path | None, overrides: Sequence[str]) -> list[str]:
    """Evaluate the PEFT adapter in `source` on the base that `overrides` name; return lines to print.

    The files go into a run's folder or, as one more job, into the sweep `into`, whose report is written again. The
    result never enters the store. Raises LoraExpError, before anything is written, for a folder or overrides that
    can't be used; JobsFailed when the base diverges.
    """
    for override in overrides:
        key = override.lstrip("+~")
        if key.startswith(("adapter", "finetune")) and not key.startswith(("finetune.digit=", "finetune.target=")):
            can = "of adapter and finetune only finetune.target and finetune.digit can be set"
            raise LoraExpError(f"{override}: the adapter is trained already; {can}")
    spec, settings, folder, config = compose_import(overrides)
    if settings.device.portable:
        request_portable_kernels()  # before the imports below load torch
    from lora_exp.adapters.peft import read_folder
    from lora_exp.data.header import header
    from lora_exp.data.prepared import prepare
    from lora_exp.model.base import network
    from lora_exp.sweeps.job import check, keep, open_laboratory, with_facts
    from lora_exp.sweeps.recording import recording

    try:
        found = header(prepare(spec.data, settings.data))
        assert found is not None, "it has just been prepared"
        adapter = read_folder(source, network(spec.model, found.facts).layers)
    except ValueError as error:
        raise LoraExpError(str(error)) from error
    spec = dataclasses.replace(spec, adapter=adapter.spec)
    check([spec], settings)
    if into is not None:
        folder = into / str(len(_sweep(into, spec).frame))
    try:
        result, files = open_laboratory(settings).judge(spec, adapter.factors)
    except FloatingPointError as error:
        raise JobsFailed(f"{source}: can't be evaluated: {error}") from error
    command = ["import", str(source.absolute()), *overrides]
    result = with_facts(result, overrides=command, config=config, **{IMPORTED_FROM: str(source.absolute())})
    folder.mkdir(parents=True, exist_ok=True)
    keep(result, files, folder)
    recording().draw(folder, spec.data, settings.data)
    recording().record(folder, into)
    recording().finish()
    lines = [result.summary, f"run      {folder.absolute()}"]
    if into is not None:
        add_job(into, command)
        sweep = _sweep(into, spec)
        where = dataclasses.replace(settings, report=sweep_settings(sweep).report)
        lines.append(f"report   {write_again(sweep, where) / 'report.html'}")
    return lines


def _sweep(folder: Path, spec: RunSpec) -> Sweep:
    """The sweep in `folder`, whose runs must be on the data set of `spec`."""
    from lora_exp.storage.sweep_folder import read_sweep

    read_about(folder)  # refuses the folder of a single run
    sweep = read_sweep(folder)
    others = {result.spec.data.name for result in sweep.results.values()} - {spec.data.name}
    if others:
        raise LoraExpError(f"{folder}: its runs are on {', '.join(sorted(others))}, this one is on {spec.data.name}")
    return sweep
