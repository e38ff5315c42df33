"""`lora-exp reproduce`: make a run again without any store, and compare it bit for bit with what is stored of it.

A run of a processor with other kernels has other bits: training amplifies the last bit of a product. Its error rates
are compared within a tolerance instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp import numerics
from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.commands.differences import (
    Difference,
    differing_bits,
    differing_rates,
    differing_texts,
    flat,
    rates,
    table,
)
from lora_exp.commands.stored_run import StoredRun, find
from lora_exp.config.compose import compose_values
from lora_exp.config.settings import SETTINGS, ExecutorSettings, Settings, StoreSettings, settings_from
from lora_exp.config.spec import RunSpec, spec_from
from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT, RunResult, from_json
from lora_exp.storage.sweep_file import Failure, Stopped, run_command

if TYPE_CHECKING:
    from lora_exp.training.executor import Files


# Rates, of a run on a processor with other kernels. Seen (docs/safety.md): 2.2 points on a digit's error, of a base.
TOLERANCE = 0.05


def main(arguments: Sequence[str]) -> int:
    """Make runs again without any store, and compare every number and tensor with what is stored of them."""
    parser = argparse.ArgumentParser(prog="lora-exp reproduce", description=main.__doc__)
    forms = "folder of a run or of a job, MLflow run id, SWEEP:JOB, or a report's summary.csv:JOB"
    parser.add_argument("run", nargs="+", help=forms)
    add_overrides(parser, "tracking.uri=sqlite:///other.db, the store that MLflow runs are in")
    options = parse(parser, arguments)
    for override in options.overrides:
        if not override.lstrip("+~").startswith("tracking"):
            raise LoraExpError(f"{override}: only tracking can be overridden; a run is made again with its own config")
    return reproduce(options.run, options.overrides)


def reproduce(runs: Sequence[str], overrides: Sequence[str]) -> int:
    """Make each run again, one after another and outside any pack, and print the comparison; return the exit code.

    `overrides` of tracking name the store that MLflow runs are in. Raises LoraExpError, before anything runs, when a
    run does not exist or its config can't be composed any more.
    """
    plans = []
    for stored in [find(run, overrides) for run in runs]:
        try:
            values = compose_values(stored.overrides)
            plans.append((stored, values, spec_from(values), settings_from(values)))
        except LoraExpError as error:
            raise LoraExpError(f"{stored.name}: its config can't be composed any more: {error}") from error
    if any(settings.device.portable for _, _, _, settings in plans):
        numerics.request_portable_kernels()
    identical = 0
    for stored, values, spec, settings in plans:
        print(f"{stored.name}\n{run_command(shlex.join(stored.overrides))}", flush=True)
        if kernels := _other_kernels(stored):
            print(kernels, flush=True)
        is_identical, lines = _compared(stored, values, spec, settings)
        print("\n".join([*lines, ""]), flush=True)
        identical += is_identical
    if len(runs) > 1:
        print(f"{identical} of {len(runs)} runs reproduced")
    return 0 if identical == len(runs) else 1


def _compared(stored: StoredRun, values: dict[str, Any], spec: RunSpec, settings: Settings) -> tuple[bool, list[str]]:
    """Run `spec`, which was read from the config `values`, and compare.

    Returns whether config, numbers and tensors are equal, and the verdict and the differences as lines to print.
    """
    config, measured = _other_spec(stored, spec), []
    environment = [row for saved in stored.configs.values() for row in _other_settings(saved, values)]
    new = _run_without_store(spec, settings, stored.folder)
    failed = isinstance(new, Failure)
    if isinstance(new, Failure):
        lines = [f"not reproduced: it fails now: {new.error}"]
    else:
        result = from_json(new[RESULT].decode())
        environment += _other_provenance(stored, result)
        now, tolerated = stored.measure(result, new), _other_kernels(stored) is not None
        before = rates(stored.measured) if tolerated else stored.measured
        measured = differing_rates(before, rates(now), TOLERANCE) if tolerated else differing_bits(before, now)
        what = "error rates" if tolerated else "numbers, curves and tensors"
        verdict = "reproduced by another config" if config else "reproduced"
        same = f"differ by at most {100 * TOLERANCE:g} percentage points" if tolerated else "have the same bits"
        lines = [f"{verdict}: all {len(before)} {what} {same}"]
        if measured:
            more = f" by more than {100 * TOLERANCE:g} percentage points" if tolerated else ""
            lines = [f"not reproduced: {len(measured)} of {len(before)} {what} differ{more}", table(measured)]
    if config:
        lines += ["the command makes another config now:", table(config)]
    if stored.facts and environment:
        lines += ["environment and settings differ:", table(list(dict.fromkeys(environment)))]
    elif not failed:
        lines.append("the environment is the same" if stored.facts else "no environment is stored")
    return not (failed or config or measured), lines


def _other_kernels(stored: StoredRun) -> str | None:
    """Say that the run was computed by other kernels than this machine uses; None when it was not, or not on a CPU."""
    # Older results tell only what was asked of MKL, or of MKL and torch but not the maker of the processor.
    name, now = ("kernels", numerics.kernels()) if "kernels" in stored.facts else ("mkl_cbwr", numerics.requested())
    then = str(stored.facts.get(name, now))
    if then in (now, now.removesuffix(f" {numerics.maker()}")) or not str(stored.facts.get("device", "cpu")).startswith(
        "cpu"
    ):
        return None
    return (
        f"the run was computed by other kernels ({then}) than this processor uses ({now}), so other bits are expected; "
        f"error rates are compared within {100 * TOLERANCE:g} percentage points (device.portable=true avoids this)"
    )


def _run_without_store(spec: RunSpec, settings: Settings, folder: Path) -> Files | Failure:
    """The files of a new run of `spec`, in an empty store. Relative paths in the settings start at `folder`."""
    from lora_exp.executors.choice import laboratory

    with tempfile.TemporaryDirectory(prefix="lora-exp-") as empty:
        data = settings.data.below(folder, spec.data.name)
        apart = dataclasses.replace(settings, store=StoreSettings(empty), executor=ExecutorSettings(), data=data)
        alone = dataclasses.replace(laboratory(apart), halving=None)  # which compares jobs
        [(_, files)] = alone.run([spec])
    assert not isinstance(files, Stopped)
    return files


def _other_spec(stored: StoredRun, spec: RunSpec) -> list[Difference]:
    """Where what determines the numbers differs from what is stored, with the files that say so."""
    files: dict[Difference, list[str]] = {}
    for file, own in stored.specs.items():
        for row in differing_texts(flat(dataclasses.asdict(own)), flat(dataclasses.asdict(spec))):
            files.setdefault(row, []).append(file)
    return [row._replace(name=f"{row.name} ({', '.join(found)})") for row, found in files.items()]


def _other_settings(stored: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """Where the settings of two configs, which change no number, differ; only keys that both have."""
    before, after = (
        flat({group: values.get(group, {}) for group in SETTINGS} | {"data": {"root": values["data"].get("root")}})
        for values in (stored, now)
    )
    both = [key for key in before if key in after]
    return differing_texts({key: before[key] for key in both}, {key: after[key] for key in both})


def _other_provenance(stored: StoredRun, now: RunResult) -> list[Difference]:
    """Where versions, processor, threads and the like differ."""
    known = {name: fact for name, fact in stored.facts.items() if name in now.provenance}
    return differing_texts(flat(known), flat(now.provenance))
