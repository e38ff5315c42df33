"""`lora-exp reproduce`: make a run again without any store, and compare it bit for bit with what is stored of it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.commands.differences import Difference, differing_bits, differing_texts, flat, table
from lora_exp.commands.stored_run import StoredRun, find
from lora_exp.config.compose import compose_values
from lora_exp.config.settings import SETTINGS, DataFolder, ExecutorSettings, Settings, StoreSettings, settings_from
from lora_exp.config.spec import RunSpec, spec_from
from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT, RunResult, from_json
from lora_exp.storage.sweep_file import Failure, Stopped

if TYPE_CHECKING:
    from lora_exp.training.executor import Files


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


@dataclass(frozen=True)
class Reproduction:
    """The comparison of a run with what is stored of it.

    `failed` is the reason why there is no new result, if so. `config` holds the differences between the stored config
    and the one that the command makes now, `measured` those of numbers and tensors, and `environment` those of
    provenance and settings (None where none of that is stored). `compared` counts the numbers and tensors.
    """

    failed: str | None
    config: list[Difference]
    measured: list[Difference]
    environment: list[Difference] | None
    compared: int

    @property
    def identical(self) -> bool:
        """Whether config, numbers and tensors are equal."""
        return self.failed is None and not self.config and not self.measured

    def lines(self) -> Iterator[str]:
        """The verdict and the differences, as lines to print."""
        if self.failed is not None:
            yield f"not reproduced: it fails now: {self.failed}"
        elif self.measured:
            yield f"not reproduced: {len(self.measured)} of {self.compared} numbers, curves and tensors differ"
            yield table(self.measured)
        elif self.config:
            yield f"reproduced by another config: all {self.compared} numbers, curves and tensors have the same bits"
        else:
            yield f"reproduced: all {self.compared} numbers, curves and tensors have the same bits"
        if self.config:
            yield "the command makes another config now:"
            yield table(self.config)
        if self.environment:
            yield "environment and settings differ:"
            yield table(self.environment)
        elif self.failed is None:
            yield "no environment is stored" if self.environment is None else "the environment is the same"


def reproduce(runs: Sequence[str], overrides: Sequence[str]) -> int:
    """Make each run again, one after another and outside any pack, and print the comparison; return the exit code.

    `overrides` of tracking name the store that MLflow runs are in. Raises LoraExpError, before anything runs, when a
    run does not exist or its config can't be composed any more.
    """
    from lora_exp.storage.sweep_folder import run_command

    plans = []
    for stored in [find(run, overrides) for run in runs]:
        try:
            values = compose_values(stored.overrides)
            plans.append((stored, values, spec_from(values), settings_from(values)))
        except LoraExpError as error:
            raise LoraExpError(f"{stored.name}: its config can't be composed any more: {error}") from error
    identical = 0
    for stored, values, spec, settings in plans:
        print(f"{stored.name}\n{run_command(shlex.join(stored.overrides))}", flush=True)
        found = _compared(stored, values, spec, settings)
        print("\n".join([*found.lines(), ""]), flush=True)
        identical += found.identical
    if len(runs) > 1:
        print(f"{identical} of {len(runs)} runs reproduced")
    return 0 if identical == len(runs) else 1


def _compared(stored: StoredRun, values: dict[str, Any], spec: RunSpec, settings: Settings) -> Reproduction:
    """Run `spec`, which was read from the config `values`, and compare."""

    environment = [row for config in stored.configs.values() for row in _other_settings(config, values)]
    new = _run_without_store(spec, settings, stored.folder)
    failed, measured = None, []
    if isinstance(new, Failure):
        failed = new.error
    else:
        result = from_json(new[RESULT].decode())
        measured = differing_bits(stored.measured, stored.measure(result, new))
        environment += _other_provenance(stored, result)
    known = list(dict.fromkeys(environment)) if stored.facts else None
    return Reproduction(failed, _other_spec(stored, spec), measured, known, len(stored.measured))


def _run_without_store(spec: RunSpec, settings: Settings, folder: Path) -> Files | Failure:
    """The files of a new run of `spec`, in an empty store. Relative paths in the settings start at `folder`."""
    from lora_exp.executors.choice import laboratory

    with tempfile.TemporaryDirectory(prefix="lora-exp-") as empty:
        data = DataFolder(str(folder / settings.data.root))
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
