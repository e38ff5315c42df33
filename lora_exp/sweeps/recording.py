"""What is recorded of runs beside their folders, by two processes beside the launching one: see `records.py`.

Only one of them writes to MLflow. The other draws figures and writes reports.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.errors import LoraExpError
from lora_exp.sweeps.background import Background

if TYPE_CHECKING:
    from lora_exp.config.settings import DataFolder, TrackingSettings
    from lora_exp.config.spec import DataSpec

log = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0  # to wait for the end of an interrupted sweep in MLflow


class Recording:
    """The records of a process's runs."""

    def __init__(self) -> None:
        self._tracking = Background("lora_exp.sweeps.records:Tracking", "mlflow")
        self._reports = Background("lora_exp.sweeps.records:Reports", "matplotlib")
        self._is_off = True

    def start(self, with_mlflow: bool) -> None:
        """Start the processes, which import their libraries; the one that writes to MLflow only if it is needed."""
        if with_mlflow:
            self._tracking.start()
        self._reports.start()

    def open(self, settings: TrackingSettings) -> None:
        """Record in this tracking store from now on."""
        self._is_off = settings.kind == "off"
        if not self._is_off:
            self._tracking.ask_first("open", tracking=vars(settings), directory=str(Path.cwd()))

    def begin(self, sweep: Path, resumed: bool) -> None:
        """Open the MLflow parent run of the sweep in that folder, and expect its report."""
        self._reports.ask("expect")
        if not self._is_off:
            self._tracking.ask("begin", sweep=str(sweep.absolute()), resumed=resumed)

    def record(self, folder: Path, sweep: Path | None) -> None:
        """Record what a job's folder holds; wait for it if there is no sweep, whose end waits for all of its jobs."""
        if not self._is_off:
            own = None if sweep is None else str(sweep.absolute())
            self._tracking.ask("record", folder=str(folder.absolute()), sweep=own)
            if sweep is None:
                self._tracking.finish()

    def draw(self, folder: Path, data: DataSpec, places: DataFolder) -> None:
        """Draw the figures of the run in a folder, whose data set is `data`; wait for it.

        Raises LoraExpError when they can't be written.
        """
        self._reports.ask("draw", folder=str(folder.absolute()), **_images(data, places))
        self._reports.finish()

    def finish(self) -> None:
        """Wait until everything is recorded, as far as the tracking store answers."""
        self._tracking.finish()

    def report(self, sweep: Path, out: Path, claim: str | None, data: DataSpec, places: DataFolder) -> str:
        """Write the report of a sweep, whose data set is `data`, into `out`.

        Returns what to print of it, in colour on a terminal.

        Raises LoraExpError when it can't be written.
        """
        where = {"sweep": str(sweep.absolute()), "out": str(out), **_images(data, places)}
        is_terminal, width = sys.stdout.isatty(), shutil.get_terminal_size().columns
        self._reports.ask("report", **where, claim=claim, terminal=is_terminal, width=width)
        return str(self._reports.finish())

    def complete(self, sweep: Path) -> str:
        """Record what is still missing of a sweep that ended, and close its parent run; return what the user can do."""
        if self._is_off:
            return ""
        try:
            self._tracking.finish()
        except LoraExpError as error:  # it is tried again
            log.warning("%s", error)
        self._tracking.ask("complete", sweep=str(sweep.absolute()))
        if self._tracking.finish():
            return ""
        command = shlex.join(["lora-exp", "sync", str(sweep.absolute())])
        return f"MLflow lacks some of these runs; when it can be reached again: {command}\n"

    def close(self, sweep: Path) -> None:
        """Close the parent run of an interrupted sweep, within seconds; give up what is not recorded yet."""
        if not self._is_off:
            self._tracking.ask("close", sweep=str(sweep.absolute()))
            try:
                self._tracking.finish(CLOSE_SECONDS)
            except LoraExpError as error:
                log.warning("%s", error)
        self._tracking.stop()


@functools.cache
def recording() -> Recording:
    """The records of this process."""
    return Recording()


def _images(data: DataSpec, places: DataFolder) -> dict[str, Any]:
    """A data set and where it is, as a request holds them."""
    return {"data": dataclasses.asdict(data), "places": dataclasses.asdict(places.below(Path.cwd(), data.name))}
