"""`lora-exp resume` and `lora-exp sync`: go on with a sweep, or record in MLflow what is missing there."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_exp.config.compose import compose_settings, saved_settings
from lora_exp.errors import LoraExpError
from lora_exp.storage.ownership import is_own
from lora_exp.storage.sweep_file import SWEEP, alone_in, read_about, start_folder


def main(arguments: Sequence[str]) -> list[str]:
    """Go on with a sweep that was interrupted. Finished jobs are not computed again, failed jobs are tried again.

    Returns the sweep's own arguments, with its folder, to start it with, and changes the working folder to the one that
    it was started in. Raises LoraExpError when the folder is not that of a sweep.
    """
    parser = argparse.ArgumentParser(prog="lora-exp resume", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the sweep: runs/<date>/<time>")
    _add_trust(parser)
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    about = _trusted(folder, options.trust)
    command = about["arguments"]
    # Overrides and flags are no identifiers; sub-commands are.
    if command and str(command[0]).isidentifier():
        raise LoraExpError(f"{folder / SWEEP}: holds no command of a sweep to go on with")
    _enter(start_folder(folder, about))
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*map(str, command), f"hydra.sweep.dir='{quoted}'"]


def sync_main(arguments: Sequence[str]) -> int:
    """Record in MLflow what a sweep or a run has finished and MLflow does not have, each job once."""
    parser = argparse.ArgumentParser(prog="lora-exp sync", description=sync_main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of a sweep or a run")
    _add_trust(parser)
    parser.add_argument("--restore", action="store_true", help="restore runs that were deleted in MLflow")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    from lora_exp.storage.sweep_folder import read_sweep
    from lora_exp.tracking.connection import check
    from lora_exp.tracking.delivery import Delivery

    sweep = read_sweep(folder)
    is_sweep = (folder / SWEEP).is_file()
    if is_sweep:
        _enter(start_folder(folder, _trusted(folder, options.trust)))
    saved = folder / ("multirun.yaml" if is_sweep else ".hydra/config.yaml")
    try:
        tracking = saved_settings(saved.read_text(encoding="utf-8", errors="replace"), []).tracking
    except OSError as error:
        raise LoraExpError(f"{saved}: can't be read ({error.strerror}), so its tracking store is unknown") from error
    if tracking.kind == "off":
        raise LoraExpError(f"{folder}: was run with tracking=off, so it has no tracking store")
    if not is_sweep and not options.trust and tracking != compose_settings([]).tracking:
        raise LoraExpError(
            f"{folder}: its config names a tracking store of its own; to record it there, add --trust. It is "
            f"tracking.uri={tracking.uri}, tracking.artifacts={tracking.artifacts}"
        )
    check(tracking)
    with alone_in(folder) if is_sweep else contextlib.nullcontext():
        delivery, folders = Delivery(tracking), [Path(place) for place in sweep.frame["folder"]]
        deleted = delivery.compare(folders, folder if is_sweep else None, options.restore)
        if deleted is None:
            return 1  # the reason is logged
        parent = delivery.open_parent(folder) if is_sweep else None
        missing = delivery.deliver_all(folders, parent)
        if is_sweep and not missing:
            missing += not delivery.close_parent(folder)
        delivery.end()
    if deleted:
        print(f"{deleted} runs were deleted in MLflow and stay so; lora-exp sync --restore {folder} brings them back")
    whole = "all of it is in MLflow" if not deleted else "all others are in MLflow"
    print(f"{missing} records are still missing in MLflow" if missing else whole)
    return 1 if missing else 0


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="also take what somebody else began")


def _trusted(folder: Path, trust: bool) -> dict[str, Any]:
    """The record of a sweep. Raises LoraExpError for one that this user did not begin here, unless `trust` is given."""
    about = read_about(folder)
    kinds = {"arguments": list, "directory": str, "place": str | None}
    if not all(isinstance(about.get(name), kind) for name, kind in kinds.items()):
        raise LoraExpError(f"{folder / SWEEP}: holds no command of a sweep to go on with")
    if not trust and not is_own(about):
        command = shlex.join(["lora-exp", *map(str, about["arguments"])])
        raise LoraExpError(
            f"{folder}: you did not begin this sweep here; to trust it, add --trust. It would run: {command}"
        )
    return about


def _enter(folder: Path) -> None:
    """Change the working folder to the one that a sweep was started in, where relative paths of its config start."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise LoraExpError(f"{folder}: the sweep was started there, but can't be entered ({error.strerror})") from error
