"""One job of the Hydra application: config in, a result in the job's folder and a record in MLflow out."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config import read
from lora_exp.result import RESULT, RunResult, from_json
from lora_exp.sweep_files import failure_of, parent_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lora_exp.experiment import Laboratory
    from lora_exp.records import Recorder
    from lora_exp.settings import Settings
    from lora_exp.spec import RunSpec

log = logging.getLogger(__name__)


class JobsFailed(Exception):
    """Jobs ended without a sound result; the message is one line, and the exit code is 1."""


def run_job(config: DictConfig) -> float:
    """Run one config and return its target error.

    Raises SpecError for bad input, and JobsFailed when the run failed or diverged; either way what there is
    to keep is in the job's folder and in MLflow.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from lora_exp.experiment import Failure

    spec, settings = read(config)
    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    sweep_folder = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
    parent = None if sweep_folder is None else parent_run(sweep_folder)
    recorder = open_recorder(settings)
    laboratory = open_laboratory(settings)
    text = _saved_config(folder / (hydra.output_subdir or "")) or OmegaConf.to_yaml(config)
    [(_, files)] = laboratory.run([spec])
    if isinstance(files, Failure):
        failure_of(folder, files.error, overrides)
        _record(recorder, lambda to: to.record_failure(spec.name, overrides, files.error, folder, parent), folder)
        raise JobsFailed(f"{spec.name}: {files.error}")
    result = _with_config(from_json(files[RESULT].decode()), overrides, text)
    for name, content in (files | {RESULT: (result.to_json() + "\n").encode()}).items():
        _write(folder / name, content)
    if sweep_folder is None:
        _draw(result, laboratory, folder)
    _record(recorder, lambda to: to.record_run(result, folder, overrides, text, parent), folder)
    log.info("%s", summary_line(result))
    if result.diverged:
        raise JobsFailed(f"{spec.name}: the loss stopped being finite at step {result.outcome.diverged_at}")
    return result.outcome.target_error


def check(specs: Sequence[RunSpec], settings: Settings) -> None:
    """Find out before anything is written whether these runs can be made here: device, folders, data, tracking.

    Raises SpecError, StoreError or TrackingError, of one line.
    """
    open_recorder(settings)
    laboratory = open_laboratory(settings)
    for spec in {(spec.data, spec.model, spec.adapter): spec for spec in specs}.values():
        laboratory.check(spec)


@functools.lru_cache(maxsize=1)
def open_laboratory(settings: Settings) -> Laboratory:
    """The laboratory of these settings, made once a process."""
    return settings.laboratory()


@functools.lru_cache(maxsize=1)
def open_recorder(settings: Settings) -> Recorder | None:
    """The MLflow recorder of these settings, made once a process; None when tracking is off.

    Raises TrackingError when the store or server can't be reached.
    """
    if settings.tracking.kind == "off":
        return None
    from lora_exp.records import Recorder

    return Recorder.open(settings.tracking)


def summary_line(result: RunResult) -> str:
    """What a run gained, and beside it what that cost."""
    out, digits = result.outcome, ",".join(str(digit) for digit in result.spec.finetune.digit)
    adapter = result.spec.adapter
    head = f"digit {digits} {adapter.method}{'' if adapter.scaling is None else f' rank {adapter.rank}'}"
    if result.diverged:
        return f"{head}: diverged at step {out.diverged_at}; a lower finetune.learning_rate may help"
    return (
        f"{head}: target error {100 * out.target_error_before:.2f} % -> {100 * out.target_error:.2f} %, "
        f"other digits {100 * out.other_error_before:.2f} % -> {100 * out.other_error:.2f} %, "
        f"{out.parameters_adapter:,} parameters (+{out.overhead_percent:.3f} %)"
    )


def _record(recorder: Recorder | None, write: Callable[[Recorder], object], folder: Path) -> None:
    """Record what lies in `folder`; a tracking store that went away costs the record, never the result."""
    from lora_exp.records import TrackingError

    if recorder is None:
        return
    try:
        write(recorder)
    except TrackingError as error:
        log.warning("%s; the result is kept in %s", error, folder)


def _saved_config(folder: Path) -> str | None:
    """What Hydra saved of the job's config; composing the text anew takes 3 ms a job."""
    try:
        return (folder / "config.yaml").read_text(encoding="utf-8")
    except OSError:
        return None


def _with_config(result: RunResult, overrides: list[str], config: str) -> RunResult:
    facts: dict[str, Any] = {"overrides": overrides, "config": config}
    return dataclasses.replace(result, provenance=result.provenance | facts)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _draw(result: RunResult, laboratory: Laboratory, folder: Path) -> None:
    from safetensors.numpy import load_file

    from lora_exp.figures import run_figures
    from lora_exp.result import PREDICTIONS

    pictures, labels = laboratory.test_pictures(result.spec)
    run_figures(result, load_file(folder / PREDICTIONS), pictures, labels, folder / "figures")
