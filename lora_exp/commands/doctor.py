"""`lora-exp doctor`: check everything that runs need. Each check prints a line; a problem comes with its remedy."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_exp import numerics
from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_config, compose_values, config_folder, read, saved_values
from lora_exp.config.images import MNIST
from lora_exp.config.models import LIBRARIES, MODULE
from lora_exp.config.settings import CACHE, Settings
from lora_exp.config.spec import BaseSpec, spec_from
from lora_exp.data.embedded import MNIST_SHA256, damaged_embedded_files, damaged_unpacked_files
from lora_exp.data.prepared import is_damaged
from lora_exp.errors import LoraExpError, installing
from lora_exp.storage.provenance import processor
from lora_exp.storage.pruning import GIB, activity, damage, entries
from lora_exp.storage.result import RESULT, read_run, whole_adapter
from lora_exp.storage.store import DAMAGED, Store
from lora_exp.tracking.connection import status_line

MIN_FREE = 1.0  # GiB


class Finding(NamedTuple):
    """The outcome of one check: a message, which names the remedy when the check is not `ok`."""

    message: str
    ok: bool = True


def main(arguments: Sequence[str]) -> int:
    """Check whether everything that runs need is in order, and print how to mend what is not."""
    parser = argparse.ArgumentParser(prog="lora-exp doctor", description=main.__doc__)
    parser.add_argument("--full", action="store_true", help="check all checksums of the store (reads all of it)")
    add_overrides(parser, "store.folder=elsewhere tracking=server")
    options = parse(parser, arguments)
    config = compose_config(options.overrides)
    ok = True
    for name, check in _checks(read(config)[1], str(config.hydra.run.dir), options.full):
        for finding in _findings(check):
            print(f"{'ok' if finding.ok else 'WRONG':6}{name:11}{finding.message}", flush=True)
            ok &= finding.ok
    return 0 if ok else 1


def _checks(settings: Settings, runs: str, full: bool) -> list[tuple[str, Iterator[Finding]]]:
    store = Store(Path(settings.store.folder).absolute())
    places = {"store": settings.store.folder, "runs": runs, "reports": settings.report.folder}
    places["data"] = settings.data.prepared or settings.data.root or CACHE
    if settings.tracking.kind == "sqlite":
        places["artifacts"] = settings.tracking.artifacts
    return [
        ("python", _libraries()),
        ("device", _device(settings.device.name)),
        ("products", _products(settings.device.name)),
        ("executor", _executor(settings)),
        ("mnist", _embedded()),
        ("data", _data_sets(Path(settings.data.root or CACHE).absolute(), Path(places["data"]).absolute())),
        ("store", _store(store, full)),
        ("leftovers", _leftovers(store)),
        *([("runs", _runs(Path(runs).absolute().parent.parent))] if full else []),
        ("tracking", _tracking(settings)),
        *(("disk", _place(name, Path(place).absolute())) for name, place in places.items()),
    ]


def _findings(check: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a check. An exception in it is a finding too."""
    try:
        yield from check
    except Exception as error:
        yield Finding(" ".join(str(error).split()) or type(error).__name__, ok=False)


def _libraries() -> Iterator[Finding]:
    """Python and all libraries have versions that the installed package requires."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    required, python = importlib.metadata.metadata("lora-exp")["Requires-Python"], platform.python_version()
    ok = python in SpecifierSet(required)
    yield Finding(f"{python}, {required} is needed" + ("" if ok else "; make .venv anew with such a Python"), ok)
    needed = [Requirement(line) for line in importlib.metadata.requires("lora-exp") or ()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    whole = True
    for one in needed:
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            found = "is absent"
        if found == "is absent" or not one.specifier.contains(found, prereleases=True):
            whole = False
            yield Finding(f"{one.name} {found}; mend: pip install '{one.name}{one.specifier}'", ok=False)
    if whole:
        version = importlib.metadata.version("lora-exp")
        yield Finding(f"{len(needed)} libraries, all of versions that lora-exp {version} works with")


def _device(name: str) -> Iterator[Finding]:
    import torch

    from lora_exp.executors.choice import torch_device

    device = torch_device(name)
    if float(torch.ones(8, device=device).sum()) != 8:
        yield Finding(f"{device} can't add; use device=cpu", ok=False)
    present = [f"{os.cpu_count()} cores of {processor()}"]
    present += [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    present += ["mps"] if torch.backends.mps.is_available() else []
    yield Finding(f"device={name} is {device}; here: {', '.join(present)}; torch {torch.__version__}")


def _products(device: str) -> Iterator[Finding]:
    """Which bits are promised to be equal, for every model."""
    from lora_exp.executors.choice import torch_device
    from lora_exp.model.base import BaseModel, network
    from lora_exp.training.probe import promise_of

    models: dict[str, list[str]] = {}
    values = compose_values([])
    for path in sorted((config_folder() / "model").glob("*.yaml")):
        own = saved_values(path.read_text())
        if own.get("kind") in (*LIBRARIES, MODULE):  # a run tries the model that it names
            continue
        form = network(spec_from(values | {"model": own}).model, MNIST)
        promise = promise_of(BaseModel(form, form.initial(0)), [BaseSpec().batch_size], torch_device(device))
        models.setdefault(promise, []).append(path.stem)
    for promise, names in models.items():
        yield Finding(f"{promise}: {', '.join(names)}; kernels {numerics.kernels()}")


def _executor(settings: Settings) -> Iterator[Finding]:
    """The chosen executor can be used; lists the extras that others need."""
    from lora_exp.executors.choice import executor, torch_device

    executor(settings, torch_device(settings.device.name)).check()
    extras = {"ray": "ray", "slurm": "submitit"}
    absent = [name for name, library in extras.items() if importlib.util.find_spec(library) is None]
    hints = [f"{name} is not installed; {installing(name)}" for name in absent]
    yield Finding("; ".join([f"executor={settings.executor.kind} can be used", *hints]))


def _embedded() -> Iterator[Finding]:
    """The package holds the published files of MNIST."""
    damaged = damaged_embedded_files()
    for path in damaged:
        yield Finding(f"{path} is not the published file; install lora-exp again", ok=False)
    if not damaged:
        yield Finding(f"the {len(MNIST_SHA256)} files in the package are the published ones")


def _data_sets(root: Path, folder: Path) -> Iterator[Finding]:
    """The unpacked files of MNIST are the published ones, and prepared data sets match their hashes."""
    for path in damaged_unpacked_files(root):
        yield Finding(f"{path} is damaged; delete it, and the next run unpacks it again", ok=False)
    prepared = sorted(folder.glob("*.safetensors"))
    for path in prepared:
        ok = not is_damaged(path)
        yield Finding(f"{path}: {'intact' if ok else 'is damaged; the next run makes it anew'}", ok)
    if not prepared:
        yield Finding(f"{folder}: no data set is prepared yet; the first run does that")


def _store(store: Store, full: bool) -> Iterator[Finding]:
    """No entry of the store is damaged."""
    found, damaged = entries(store), 0
    for entry in found:
        if entry.kind != DAMAGED and (reason := damage(store, entry, full)) is not None:
            damaged += 1
            yield Finding(f"{entry.kind} {entry.key}: {reason}; mend: lora-exp store verify", ok=False)
    aside = sum(entry.kind == DAMAGED for entry in found)
    depth = "all checksums checked" if full else "checksums not checked (--full does)"
    counts = f"{len(found) - aside} entries, {damaged} damaged, {aside} set aside"
    yield Finding(f"{store.root}: {counts}; {depth}", not damaged)


def _runs(root: Path) -> Iterator[Finding]:
    """The adapter of every run below `root`, by date and time, is the one that its result was measured with."""
    found = sorted(root.rglob(RESULT))
    damaged = 0
    for path in found:
        try:
            whole_adapter(path.parent, read_run(path.parent))
        except LoraExpError as error:
            damaged += 1
            yield Finding(f"{error}; mend: run its sweep again with lora-exp resume", ok=False)
    yield Finding(f"{root}: {len(found)} finished runs, {damaged} damaged", not damaged)


def _leftovers(store: Store) -> Iterator[Finding]:
    """No killed process left a half-written entry; counts the processes that use the store."""
    now = activity(store)
    for path in now.left:
        yield Finding(f"{path} was left by a killed process; the next run removes it, or delete it", ok=False)
    counts = f"{now.writing} entries being written, {now.locks} locks held, {now.processes} running processes"
    yield Finding(counts)


def _tracking(settings: Settings) -> Iterator[Finding]:
    yield Finding(status_line(settings.tracking))


def _place(name: str, path: Path) -> Iterator[Finding]:
    """Files can be written to a folder, or to the first parent that exists, and the disk has room."""
    existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(f"{name}: {existing} is not a writable folder; mend that, or choose another", ok=False)
        return
    free = shutil.disk_usage(existing).free / GIB
    remedy = "" if free >= MIN_FREE else "; make room, for instance with lora-exp store prune"
    yield Finding(f"{name}: {free:.1f} GiB free in {path}{remedy}", free >= MIN_FREE)
