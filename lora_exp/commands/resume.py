"""`lora-exp resume FOLDER` and `lora-exp sync FOLDER`: go on with a sweep, and bring to MLflow what it has not got."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lora_exp.errors import LoraExpError
from lora_exp.storage.sweep_file import SWEEP, read_about

log = logging.getLogger(__name__)


def resume_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line that goes on with a sweep: its own, in its folder; the working folder is changed to its.

    Jobs that are finished are not computed again, jobs that failed are tried again. Raises LoraExpError when that is
    not a sweep's folder.
    """
    parser = argparse.ArgumentParser(prog="lora-exp resume", description="Go on with a sweep that was interrupted.")
    parser.add_argument("folder", type=Path, help="of the sweep: runs/<date>/<time>")
    folder = parser.parse_args(arguments).folder.absolute()
    about = read_about(folder)
    command, place = about.get("arguments"), about.get("directory")
    # Overrides and flags are no identifiers; sub-commands are.
    if not isinstance(command, list) or not isinstance(place, str) or (command and str(command[0]).isidentifier()):
        raise LoraExpError(f"{folder / SWEEP}: keeps no command of a sweep to go on with")
    _enter(Path(place))
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*map(str, command), f"hydra.sweep.dir='{quoted}'"]


def sync(arguments: Sequence[str]) -> int:
    """Bring to MLflow what a sweep or run has finished and MLflow has not got, each once."""
    parser = argparse.ArgumentParser(prog="lora-exp sync", description=sync.__doc__)
    parser.add_argument("folder", type=Path, help="of a sweep or a run")
    folder = parser.parse_args(arguments).folder.absolute()
    from lora_exp.config.compose import saved_settings
    from lora_exp.storage.sweep_folder import read_sweep
    from lora_exp.tracking.delivery import Delivery
    from lora_exp.tracking.recorder import Recorder

    try:
        sweep = read_sweep(folder)
    except ValueError as error:
        raise LoraExpError(str(error)) from error
    is_sweep = (folder / SWEEP).is_file()
    if is_sweep:
        _enter(Path(read_about(folder)["directory"]))
    saved = folder / ("multirun.yaml" if is_sweep else ".hydra/config.yaml")
    try:
        tracking = saved_settings(saved.read_text(encoding="utf-8"), []).tracking
    except OSError as error:
        raise LoraExpError(f"{saved}: can't be read ({error.strerror}), so where runs go is not known") from error
    if tracking.kind == "off":
        raise LoraExpError(f"{folder}: was run with tracking=off, so there is nowhere to bring it")
    delivery = Delivery(Recorder.open(tracking))
    parent = delivery.open_parent(folder) if is_sweep else None
    missing = delivery.deliver_all([Path(place) for place in sweep.frame["folder"]], parent)
    if is_sweep and not missing:
        missing += not delivery.close_parent(folder)
    print(f"{missing} records are still missing" if missing else "all of it is in MLflow")
    return 1 if missing else 0


def _enter(folder: Path) -> None:
    """Relative paths of a sweep's config count from the folder where it was started."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise LoraExpError(
            f"{folder}: the sweep was started there, and it can't be entered ({error.strerror})"
        ) from error
