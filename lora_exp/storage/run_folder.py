"""A run's folder, read back: its result, its settings, and the base that its adapter belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.config.compose import saved_settings
from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT, RunResult, read

if TYPE_CHECKING:
    from lora_exp.config.settings import Settings
    from lora_exp.model.base import BaseModel


def read_run(folder: Path) -> RunResult:
    """The result of the run (or the job of a sweep) in `folder`.

    Raises LoraExpError when it holds none.
    """
    try:
        return read(folder)
    except FileNotFoundError as error:
        raise LoraExpError(f"{folder}: holds no {RESULT}, so it is not the folder of a finished run") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoraExpError(f"{folder / RESULT}: can't be read ({' '.join(repr(error).split())})") from error


def run_settings(result: RunResult, overrides: Sequence[str] = ()) -> Settings:
    """The settings that a run had, with overrides of them. Raises LoraExpError for one that is not allowed."""
    return saved_settings(result.provenance["config"], overrides)


def load_base(folder: str | Path, overrides: Sequence[str] = ()) -> BaseModel:
    """The base of the run in `folder`, on the CPU, from the store that the run used.

    `overrides` are of the run's settings, such as `store.folder=elsewhere` where that has moved. Raises LoraExpError
    when the store has no such base, LoraExpError for an override that is not allowed.
    """
    import torch

    from lora_exp.executors.choice import laboratory as laboratory_of
    from lora_exp.storage.sweep_folder import run_command
    from lora_exp.training.base import stored_model

    result = read_run(Path(folder))
    laboratory = laboratory_of(run_settings(result, overrides))
    files = laboratory.store.get("bases", laboratory.base_key(result.spec))
    try:
        base = None if files is None else stored_model(result.spec.model, files, torch.device("cpu"))
    except ValueError:
        base = None
    if base is None or base.sha256() != result.outcome.base_sha256_before:
        command = run_command(shlex.join(result.provenance["overrides"]))
        raise LoraExpError(
            f"{folder}: its base is not in {laboratory.store.root} as this code, torch and processor make it; "
            f"to make run and base again: {command}"
        )
    return base
