"""What is kept of runs besides their folders: runs in MLflow, figures, and the report of a sweep.

All of it is made from what lies on disk. `recording.py` has it done by a process of its own.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_exp.config.settings import TrackingSettings
from lora_exp.storage.sweep_file import end_sweep, read_about
from lora_exp.tracking.delivery import Delivery


def load_tracking() -> None:
    """Import MLflow and its store."""
    from lora_exp.tracking.connection import load_library

    load_library()


def load_report() -> None:
    """Import what reports and figures need."""
    from lora_exp.report import write

    del write


class Records:
    """The records of a process's runs. Each method is one request of the process that launches jobs.

    All of them raise LoraExpError for what the user can mend. A tracking store that fails later on is no error:
    see `tracking/delivery.py`.
    """

    def __init__(self) -> None:
        self._delivery = Delivery(TrackingSettings(kind="off"))

    def open(self, tracking: Mapping[str, Any], directory: str) -> None:
        """Open the tracking store of these settings; relative paths, also those of later requests, start there."""
        os.chdir(directory)
        self._delivery = Delivery(TrackingSettings(**tracking))

    def begin(self, sweep: str, resumed: bool) -> None:
        """Open the MLflow parent run of the sweep in that folder."""
        if resumed:
            self._delivery.reopen_parent(Path(sweep))
        self._delivery.open_parent(Path(sweep))

    def record(self, folder: str, sweep: str | None, pictures: tuple[str, str] | None) -> None:
        """Record what a job's folder holds, below the parent run of its sweep, if any.

        `pictures`, the name and the root folder of its data set, asks for the figures of the run first.
        """
        if pictures is not None:
            _draw(Path(folder), *pictures)
        self._delivery.deliver(Path(folder), None if sweep is None else self._delivery.open_parent(Path(sweep)))

    def report(
        self, sweep: str, status: str, out: str, claim: str | None, pictures: tuple[str, str], terminal: bool
    ) -> str:
        """Write the report of a sweep that ended as `status`, record what is missing in MLflow, and close its parent.

        Returns what to print: the table, the verdict, and where everything is; in colour for a `terminal`.
        """
        from lora_exp.model.data import test_pictures
        from lora_exp.report import write
        from lora_exp.report.search_section import search_verdict
        from lora_exp.report.terminal import next_text, sweep_text
        from lora_exp.storage.sweep_folder import read_sweep

        folder, delivery = Path(sweep), self._delivery
        if not read_about(folder)["jobs"]:  # a search that failed before its first job
            end_sweep(folder, status, None)
            delivery.close_parent(folder)
            return ""
        done = read_sweep(folder)
        judged = write.judged_claim(done, claim)
        write.write_report(done, Path(out), *test_pictures(pictures[0], Path(pictures[1])), judged)
        end_sweep(folder, status, Path(out))
        missing = delivery.deliver_all([Path(place) for place in done.frame["folder"]], delivery.open_parent(folder))
        text = f"{sweep_text(done.frame, terminal)}{write.verdict(done.frame)}\n"
        if judged is not None:
            text += f"{judged.sentence}\n"
        if done.search is not None:
            text += f"{search_verdict(done, done.search)}\n"
        text += f"report   {Path(out) / 'report.html'}\nruns     {folder.absolute()}\n{next_text(done)}"
        if missing or not delivery.close_parent(folder):
            command = shlex.join(["lora-exp", "sync", str(folder.absolute())])
            text += f"MLflow lacks some of these runs; when it can be reached again: {command}\n"
        return text

    def close(self, sweep: str) -> None:
        """Close the parent run of an interrupted sweep."""
        self._delivery.close_parent(Path(sweep))


def _draw(folder: Path, data: str, root: str) -> None:
    """Draw the figures of the run in `folder`."""
    from safetensors.numpy import load_file

    from lora_exp.model.data import test_pictures
    from lora_exp.report.figures import run_figures
    from lora_exp.storage.result import PREDICTIONS, read

    run_figures(read(folder), load_file(folder / PREDICTIONS), *test_pictures(data, Path(root)), folder / "figures")
