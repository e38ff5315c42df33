"""One job of the Hydra application: from its config to a result in its folder and a run in MLflow."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.compose import presets_of, read
from lora_exp.config.models import MODULE
from lora_exp.config.spec import OWN_DATA
from lora_exp.data.prepared import prepared_sha256
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.numerics import request_portable_kernels
from lora_exp.storage.keys import only_device, result_key
from lora_exp.storage.result import PREDICTIONS, RESULT, RunResult, from_json, whole_adapter
from lora_exp.storage.result import read as read_result
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import FAILURE, Failure, Stopped, remove_half_written, write_failure, write_whole
from lora_exp.sweeps.recording import recording
from lora_exp.tracking.connection import check as check_tracking

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lora_exp.config.settings import Settings
    from lora_exp.config.spec import RunSpec
    from lora_exp.training.executor import Files
    from lora_exp.training.laboratory import Laboratory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job: its spec, its folder and that of its sweep, if it has one, its overrides and its config as YAML."""

    spec: RunSpec
    folder: Path
    sweep: Path | None
    overrides: list[str]
    config: str


def run(config: DictConfig) -> float:
    """Run one config, which Hydra has composed and given a folder, and return what `finish` does."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from lora_exp.storage.pruning import kept_within

    spec, settings = read(config)
    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
    overrides = [*presets_of(hydra), *hydra.overrides.task]
    job = Job(spec, Path(hydra.runtime.output_dir), sweep, overrides, OmegaConf.to_yaml(config))
    if sweep is None:
        remove_half_written(job.folder)
    # A sweep prunes the store itself, after its last job.
    with kept_within(open_store(settings), settings.store.limit) if sweep is None else nullcontext():
        stored = stored_result(spec, settings) if sweep is None else None  # else halving may have stopped it
        [(_, made)] = [(spec, stored)] if stored is not None else open_laboratory(settings).run([spec])
    return finish(job, settings, made)


def finish(job: Job, settings: Settings, made: Files | Failure | Stopped) -> float:
    """Put what was made of a job into its folder and have it recorded.

    Return its target error, or the error at which halving stopped it. Raises JobsFailed when the run failed or
    diverged; the job's folder and MLflow then record why.
    """
    if isinstance(made, Stopped | Failure):
        write_failure(job.folder, job.spec.name, job.overrides, made)
        recording().record(job.folder, job.sweep)
        if isinstance(made, Stopped):
            return made.error
        raise JobsFailed(f"{job.spec.name}: {made.error}")
    facts: dict[str, Any] = {"overrides": job.overrides, "config": job.config}
    if job.spec.data.name in OWN_DATA:
        facts["data_source"] = settings.data.file or settings.data.root
    result = with_facts(from_json(made[RESULT].decode()), **facts)
    keep(result, made, job.folder)
    alone = job.sweep is None
    log.info("%s", _wrapped(result.summary) if alone and sys.stdout.isatty() else result.summary)
    if alone:
        recording().draw(job.folder, job.spec.data, settings.data)
    recording().record(job.folder, job.sweep)
    if alone:
        print(_end_text(job, settings), flush=True)
    return returned(result)


def _wrapped(summary: str) -> str:
    """The summary on lines that fit a terminal, after the time that stands before a line of the log."""
    indent = " " * len("HH:MM:SS ")
    width = max(shutil.get_terminal_size().columns, 80)
    return textwrap.fill(summary, width, initial_indent=indent, subsequent_indent=indent).lstrip()


def _end_text(job: Job, settings: Settings) -> str:
    """Where a single run is, and what to do next."""
    here, folder = Path.cwd(), job.folder.absolute()
    shown = shlex.quote(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))
    steps = [] if settings.tracking.kind == "off" else ["lora-exp ui  # compare runs in MLflow"]
    if job.spec.model.kind != MODULE:  # which no command can build
        steps.append(f"lora-exp reproduce {shown}")
    lines = (f"{'' if at else 'next':<8} {step}" for at, step in enumerate(steps))
    return "\n".join([f"run      {shown}", *lines])


def returned(result: RunResult) -> float:
    """Return the target error of a job that has this result. Raises JobsFailed when it diverged."""
    if result.diverged:
        raise JobsFailed(f"{result.name}: the loss stopped being finite at step {result.outcome.diverged_at}")
    return result.outcome.target_error


def keep(result: RunResult, files: Files, folder: Path) -> None:
    """Write a result and its files to the job's folder. `result.json` is last, so a folder that has it is complete."""
    for name, content in files.items():
        if name != RESULT:
            write_whole(folder / name, content)
    write_whole(folder / RESULT, (result.to_json() + "\n").encode())
    (folder / FAILURE).unlink(missing_ok=True)  # of an earlier attempt


def finished_run(folder: Path, spec: RunSpec) -> RunResult | None:
    """Return the result of `spec` in a job's folder if it is complete and made by the current code, else None."""
    from lora_exp.storage.provenance import code_version

    try:
        result = read_result(folder)
        whole_adapter(folder, result)
    except (OSError, ValueError, KeyError, TypeError, LoraExpError):
        return None
    is_same = result.spec == spec and result.provenance.get("code") == code_version("results")
    return result if is_same and (folder / PREDICTIONS).is_file() else None


def with_facts(result: RunResult, **facts: Any) -> RunResult:
    """Return the result with more provenance, such as the overrides and the config of its job."""
    return dataclasses.replace(result, provenance=result.provenance | facts)


def check(specs: Sequence[RunSpec], settings: Settings) -> None:
    """Check device, folders, executor, data and tracking of these runs before anything is written.

    Raises LoraExpError, with a one-line message.
    """
    if settings.device.portable:
        request_portable_kernels()
    check_tracking(settings.tracking)
    if not settings.sweep.plan:
        recording().open(settings.tracking)
    eta = settings.halving.eta
    if eta is not None and any(spec.data.validation == 0 for spec in specs):
        needs = "data.validation above 0, such as data.validation=5000"
        raise LoraExpError(f"halving.eta={eta:g}: jobs are judged on validation images, so it needs {needs}")
    if len(specs) == 1 and stored_result(specs[0], settings) is not None:
        return  # nothing will be computed
    laboratory = open_laboratory(settings)
    laboratory.executor.check()
    for spec in {(spec.data, spec.model, spec.base.weights, spec.adapter): spec for spec in specs}.values():
        laboratory.check(spec)


def stored_result(spec: RunSpec, settings: Settings) -> Files | None:
    """Return the files of a result that the store has; None where it has none, or where only a laboratory can tell.

    This needs no torch, whose import takes longer than everything else that a run with a stored result does.
    """
    device = only_device(settings.device.name)
    data_sha256 = prepared_sha256(spec.data, settings.data)
    if device is None or data_sha256 is None:
        return None
    return open_store(settings).get("results", result_key(spec, data_sha256, device))


def open_store(settings: Settings) -> Store:
    """Return the store of these settings."""
    return Store(Path(settings.store.folder).absolute())


@functools.lru_cache(maxsize=1)
def open_laboratory(settings: Settings) -> Laboratory:
    """Return the laboratory of these settings, made once per process."""
    from lora_exp.executors.choice import laboratory

    return laboratory(settings)
