"""A run made again from nothing, and compared bit for bit with what was kept of it."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_exp.commands.differences import Difference, differing_bits, differing_texts, flat, table
from lora_exp.commands.stored_run import StoredRun, find
from lora_exp.config.compose import compose_values
from lora_exp.config.settings import SETTINGS, DataFolder, ExecutorSettings, Settings, StoreSettings, settings_from
from lora_exp.config.spec import RunSpec, spec_from
from lora_exp.errors import LoraExpError
from lora_exp.executors.choice import laboratory
from lora_exp.storage.result import RESULT, RunResult, from_json
from lora_exp.storage.sweep_file import Failure, Stopped
from lora_exp.storage.sweep_folder import run_command
from lora_exp.training.executor import Files


@dataclass(frozen=True)
class Reproduction:
    """What came of it: `failed` says why there is no new result, `compared` counts what was compared.

    `config` tells where the config that the command makes now is another one than was stored, `measured` which
    numbers and tensors are others, and `around` what else is; it is None where nothing of that was stored.
    """

    failed: str | None
    config: list[Difference]
    measured: list[Difference]
    around: list[Difference] | None
    compared: int

    @property
    def identical(self) -> bool:
        """Whether config, numbers and tensors are the same."""
        return self.failed is None and not self.config and not self.measured

    def lines(self) -> Iterator[str]:
        """The verdict, and what differs."""
        if self.failed is not None:
            yield f"not reproduced: it fails now: {self.failed}"
        elif self.measured:
            yield f"not reproduced: {len(self.measured)} of {self.compared} numbers, curves and tensors differ"
            yield table(self.measured)
        elif self.config:
            yield f"reproduced by another config: all {self.compared} numbers, curves and tensors are the same bits"
        else:
            yield f"reproduced: all {self.compared} numbers, curves and tensors are the same bits"
        if self.config:
            yield "the command makes another config now:"
            yield table(self.config)
        if self.around:
            yield "of the environment and the settings differ:"
            yield table(self.around)
        elif self.failed is None:
            yield "nothing was stored of the environment" if self.around is None else "the environment is the same"


def reproduce(runs: Sequence[str], tracking: Sequence[str]) -> int:
    """Make each run again, alone and one after another, and print what came of it; the exit code.

    `tracking` are overrides that say in which store MLflow runs are. Raises LoraExpError,
    before anything runs, when there is no such run or when its config can't be composed any more.
    """
    plans = []
    for kept in [find(run, tracking) for run in runs]:
        try:
            values = compose_values(kept.overrides)
            plans.append((kept, values, spec_from(values), settings_from(values)))
        except LoraExpError as error:
            raise LoraExpError(f"{kept.name}: its config can't be made any more: {error}") from error
    identical = 0
    for kept, values, spec, settings in plans:
        print(f"{kept.name}\n{run_command(shlex.join(kept.overrides))}", flush=True)
        found = _compared(kept, values, spec, settings)
        print("\n".join([*found.lines(), ""]), flush=True)
        identical += found.identical
    if len(runs) > 1:
        print(f"{identical} of {len(runs)} runs reproduced")
    return 0 if identical == len(runs) else 1


def _compared(kept: StoredRun, values: dict[str, Any], spec: RunSpec, settings: Settings) -> Reproduction:
    """Run `spec` and compare; `values` is the config that it comes from."""
    around = [row for stored in kept.configs.values() for row in _other_settings(stored, values)]
    files = _run_from_nothing(spec, settings, kept.folder)
    failed, measured = None, []
    if isinstance(files, Failure):
        failed = files.error
    else:
        result = from_json(files[RESULT].decode())
        measured = differing_bits(kept.measured, kept.measure(result, files))
        around += _environment(kept, result)
    known = list(dict.fromkeys(around)) if kept.facts else None
    return Reproduction(failed, _config(kept, spec), measured, known, len(kept.measured))


def _run_from_nothing(spec: RunSpec, settings: Settings, folder: Path) -> Files | Failure:
    """The result of `spec`, nothing of which is taken from a store; relative paths start in `folder`."""
    with tempfile.TemporaryDirectory(prefix="lora-exp-") as empty:
        data = DataFolder(str(folder / settings.data.root))
        apart = dataclasses.replace(settings, store=StoreSettings(empty), executor=ExecutorSettings(), data=data)
        alone = dataclasses.replace(laboratory(apart), halving=None)  # it has no rivals
        [(_, files)] = alone.run([spec])
    assert not isinstance(files, Stopped)
    return files


def _config(kept: StoredRun, spec: RunSpec) -> list[Difference]:
    """Where what determines the numbers is not what was stored, each with the places that say so."""
    places: dict[Difference, list[str]] = {}
    for place, stored in kept.specs.items():
        for row in differing_texts(flat(dataclasses.asdict(stored)), flat(dataclasses.asdict(spec))):
            places.setdefault(row, []).append(place)
    return [row._replace(name=f"{row.name} ({', '.join(found)})") for row, found in places.items()]


def _other_settings(stored: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """Where the parts of two configs that change no number differ, among the keys that both have."""
    before, after = (
        flat({group: values.get(group, {}) for group in SETTINGS} | {"data": {"root": values["data"].get("root")}})
        for values in (stored, now)
    )
    both = [key for key in before if key in after]
    return differing_texts({key: before[key] for key in both}, {key: after[key] for key in both})


def _environment(kept: StoredRun, now: RunResult) -> list[Difference]:
    """Versions, processor, threads and the like that are others."""
    stored = {name: fact for name, fact in kept.facts.items() if name in now.provenance}
    return differing_texts(flat(stored), flat(now.provenance))
