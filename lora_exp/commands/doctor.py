"""`lora-exp doctor`: is everything in order that runs need? One line each; what is wrong comes with how to mend it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_exp import numerics
from lora_exp.config.compose import compose_config, config_folder, read
from lora_exp.config.settings import Settings
from lora_exp.config.spec import DATA_SETS
from lora_exp.model.architecture import layer_shapes
from lora_exp.model.data import MNIST_SHA256, damaged_embedded_files, damaged_unpacked_files, read_prepared
from lora_exp.storage.leases import held_and_abandoned
from lora_exp.storage.provenance import processor
from lora_exp.storage.pruning import GIB, USERS, damage, entries, held_locks
from lora_exp.storage.store import DAMAGED, PARTIAL, Store
from lora_exp.tracking.connection import state

LEAST_FREE = 1.0  # GiB


@dataclass(frozen=True)
class Finding:
    """What was found of one thing; where it is not well, with how to mend it."""

    said: str
    well: bool = True


Check = Callable[[], Iterator[Finding]]


def examine(overrides: Sequence[str], full: bool) -> int:
    """Print what is found, for runs with these overrides; 0 when all is well, else 1.

    `full` tries every checksum of the store. Raises LoraExpError for overrides that are not allowed.
    """
    config = compose_config(overrides)
    settings = read(config)[1]
    well = True
    for name, check in _checks(settings, Path(str(config.hydra.run.dir)), full):
        for finding in _findings(check):
            print(f"{'ok' if finding.well else 'WRONG':6}{name:11}{finding.said}", flush=True)
            well &= finding.well
    return 0 if well else 1


def _checks(settings: Settings, runs: Path, full: bool) -> list[tuple[str, Check]]:
    store = Store(Path(settings.store.folder).absolute())
    places = {"store": settings.store.folder, "runs": str(runs), "reports": settings.report.folder}
    places["data"] = settings.data.root
    if settings.tracking.kind == "sqlite":
        places["artifacts"] = settings.tracking.artifacts
    return [
        ("python", _libraries),
        ("device", functools.partial(_device, settings.device.name)),
        ("products", functools.partial(_products, settings.device.name)),
        ("executor", functools.partial(_executor, settings)),
        ("mnist", _embedded),
        ("data", functools.partial(_data_sets, Path(settings.data.root).absolute())),
        ("store", functools.partial(_store, store, full)),
        ("leftovers", functools.partial(_leftovers, store)),
        ("tracking", functools.partial(_tracking, settings)),
        *(("disk", functools.partial(_place, name, Path(place).absolute())) for name, place in places.items()),
    ]


def _findings(check: Check) -> Iterator[Finding]:
    """What a check finds; whatever it raises is a finding too."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(" ".join(str(error).split()) or type(error).__name__, well=False)


def _libraries() -> Iterator[Finding]:
    """Python and every library against what the installed package asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted, python = importlib.metadata.metadata("lora-exp")["Requires-Python"], platform.python_version()
    well = python in SpecifierSet(wanted)
    yield Finding(f"{python}, {wanted} is needed" + ("" if well else "; make .venv anew with such a Python"), well)
    needed = [Requirement(line) for line in importlib.metadata.requires("lora-exp") or ()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = 0
    for one in needed:
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not one.specifier.contains(found, prereleases=True):
            wrong += 1
            yield Finding(
                f"{one.name} {found or 'is absent'}; mend: pip install '{one.name}{one.specifier}'", well=False
            )
    if not wrong:
        yield Finding(f"{len(needed)} libraries, all of versions that lora-exp {_version()} works with")


def _version() -> str:
    return importlib.metadata.version("lora-exp")


def _device(name: str) -> Iterator[Finding]:
    import torch

    from lora_exp.executors.choice import torch_device

    device = torch_device(name)
    if float(torch.ones(8, device=device).sum()) != 8:
        yield Finding(f"{device} can't add; use device=cpu", well=False)
    present = [f"{os.cpu_count()} cores of {processor()}"]
    present += [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    present += ["mps"] if torch.backends.mps.is_available() else []
    yield Finding(f"device={name} is {device}; here: {', '.join(present)}; torch {torch.__version__}")


def _products(device: str) -> Iterator[Finding]:
    """The promise about bits, for every size of model."""
    from lora_exp.executors.choice import torch_device

    models: dict[str, list[str]] = {}
    for path in sorted((config_folder() / "model").glob("*.yaml")):
        shapes = layer_shapes(read(compose_config([f"model={path.stem}"]))[0].model)
        promise = numerics.promise([(layer.outputs, layer.inputs) for layer in shapes], torch_device(device))
        models.setdefault(promise, []).append(path.stem)
    for promise, names in models.items():
        yield Finding(f"{promise}: {', '.join(names)}; MKL_CBWR={numerics.requested()}")


def _executor(settings: Settings) -> Iterator[Finding]:
    """Whether the chosen executor can be used, and which others could be."""
    from lora_exp.executors.choice import executor, torch_device

    executor(settings, torch_device(settings.device.name)).check()
    extras = {"ray": "ray", "slurm": "submitit"}
    absent = [f"{name} needs pip install 'lora-exp[{name}]'" for name, library in extras.items() if not _has(library)]
    yield Finding("; ".join([f"executor={settings.executor.kind} can be used", *absent]))


def _has(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _embedded() -> Iterator[Finding]:
    damaged = damaged_embedded_files()
    for path in damaged:
        yield Finding(f"{path} is not the published file; install lora-exp again", well=False)
    if not damaged:
        yield Finding(f"the {len(MNIST_SHA256)} files in the package are the published ones")


def _data_sets(root: Path) -> Iterator[Finding]:
    """Prepared data sets against the hash that they carry, and the unpacked files of MNIST."""
    for path in damaged_unpacked_files(root):
        yield Finding(f"{path} is damaged; delete it and it is unpacked anew", well=False)
    prepared = [path for name in DATA_SETS if (path := root / f"{name}.safetensors").exists()]
    for path in prepared:
        whole = read_prepared(path) is not None
        yield Finding(f"{path}: {'whole' if whole else 'is damaged; the next run makes it anew'}", whole)
    if not prepared:
        yield Finding(f"{root}: no data set prepared yet; the first run does that")


def _store(store: Store, full: bool) -> Iterator[Finding]:
    found = entries(store)
    broken = 0
    for entry in found:
        reason = None if entry.kind == DAMAGED else damage(store, entry, full)
        if reason is not None:
            broken += 1
            yield Finding(f"{entry.kind} {entry.key}: {reason}; mend: lora-exp store verify", well=False)
    aside = sum(entry.kind == DAMAGED for entry in found)
    tried = "every checksum tried" if full else "checksums not tried (--full does)"
    yield Finding(
        f"{store.root}: {len(found) - aside} entries, {broken} damaged, {aside} set aside; {tried}", not broken
    )


def _leftovers(store: Store) -> Iterator[Finding]:
    """Of killed processes, which hold no lock any more; and how many processes are at work."""
    partial, users = (held_and_abandoned(store.root / name) for name in (PARTIAL, USERS))
    for path in partial[1]:
        yield Finding(f"{path} was left by a killed process; the next run removes it, or delete it", well=False)
    held = held_locks(store)
    yield Finding(f"{len(partial[0])} entries being written, {held} locks held, {len(users[0])} running processes")


def _tracking(settings: Settings) -> Iterator[Finding]:
    yield Finding(state(settings.tracking))


def _place(name: str, path: Path) -> Iterator[Finding]:
    """Whether files can be written there, and for how long."""
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(f"{name}: {there} is no folder that can be written to; mend that, or choose another", well=False)
        return
    free = shutil.disk_usage(there).free / GIB
    mend = "" if free >= LEAST_FREE else "; make room, for instance with lora-exp store prune"
    yield Finding(f"{name}: {free:.1f} GiB free in {path}{mend}", free >= LEAST_FREE)
