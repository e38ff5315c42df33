"""What is kept of runs besides their folders: runs in MLflow, figures, and the report of a sweep.

All of it is made from what lies on disk. The methods are the requests that the launching process makes of two
processes: see `recording.py`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_exp.storage.sweep_folder import Sweep


class Tracking:
    """The runs of a process in MLflow. A store that fails is no error: see `tracking/delivery.py`."""

    def load(self) -> None:
        """Import MLflow."""
        from lora_exp.tracking.connection import load_library

        load_library()

    def open(self, tracking: Mapping[str, Any], directory: str) -> None:
        """Record in the store of these settings; their relative paths start at `directory`."""
        from lora_exp.config.settings import TrackingSettings
        from lora_exp.tracking.delivery import Delivery

        os.chdir(directory)
        self._delivery = Delivery(TrackingSettings(**tracking))

    def begin(self, sweep: str, resumed: bool) -> None:
        """Open the parent run of the sweep in that folder."""
        if resumed:
            self._delivery.compare(_job_folders(Path(sweep)), Path(sweep))
            self._delivery.reopen_parent(Path(sweep))
        self._delivery.open_parent(Path(sweep))

    def record(self, folder: str, sweep: str | None) -> None:
        """Record what a job's folder holds, below the parent run of its sweep, if any."""
        self._delivery.deliver(Path(folder), None if sweep is None else self._delivery.open_parent(Path(sweep)))
        if sweep is None:
            self._delivery.end()

    def complete(self, sweep: str) -> bool:
        """Record every job that is missing and close the parent run; return whether nothing is missing."""
        folder, parent = Path(sweep), self._delivery.open_parent(Path(sweep))
        is_whole = self._delivery.deliver_all(_job_folders(folder), parent) == 0 and self._delivery.close_parent(folder)
        self._delivery.end()
        return is_whole

    def close(self, sweep: str) -> None:
        """Close the parent run of an interrupted sweep."""
        self._delivery.close_parent(Path(sweep))
        self._delivery.end()


class Reports:
    """The figures and reports of a process's runs. Each raises LoraExpError when it can't be written."""

    def load(self) -> None:
        """Import what they need, also the libraries that they load on use."""
        for name in ("report.write", "report.terminal", "report.next_steps", "report.search_section", "data.prepared"):
            importlib.import_module(f"lora_exp.{name}")
        for name in ("pyarrow.parquet", "plotly.offline", "PIL.PngImagePlugin", "matplotlib.backends.backend_agg"):
            importlib.import_module(name)

    def expect(self) -> None:
        """Import what the report of a sweep needs besides, while its jobs train."""
        importlib.import_module("sklearn.ensemble")

    def draw(self, folder: str, data: Mapping[str, Any], places: Mapping[str, Any]) -> None:
        """Draw the figures of the run in a folder, whose data set is `data`."""
        from lora_exp.report.figures import run_figures
        from lora_exp.storage.sweep_folder import read_sweep

        run = read_sweep(Path(folder))  # as a sweep of one job
        pictures, labels = _test_pictures(data, places)
        run_figures(run.results[0], run.logits(0), pictures, labels, run.folder / "figures")

    def report(
        self,
        sweep: str,
        out: str,
        claim: str | None,
        data: Mapping[str, Any],
        places: Mapping[str, Any],
        terminal: bool,
        width: int,
    ) -> str:
        """Write the report of a sweep into `out`; return what to print: table, verdict, recommendation, next steps."""
        from lora_exp.report import write
        from lora_exp.report.next_steps import next_text
        from lora_exp.report.search_section import search_verdict
        from lora_exp.report.terminal import paragraph, recommended_text, sweep_text
        from lora_exp.report.verdict import verdict
        from lora_exp.storage.sweep_folder import read_sweep

        done = read_sweep(Path(sweep))
        if done.contest is not None:
            return _contest_text(done, Path(out), *_test_pictures(data, places), terminal=terminal, width=width)
        judged = write.judged_claim(done, claim)
        write.write_report(done, Path(out), *_test_pictures(data, places), judged)
        sentences = [verdict(done.frame)]
        if judged is not None:
            sentences.append(judged.sentence)
        if done.search is not None:
            sentences.append(search_verdict(done, done.search))
        parts = [
            sweep_text(done.frame, terminal, width),
            *(paragraph(sentence, terminal, width) for sentence in sentences),
            recommended_text(done.frame, terminal, width),
            f"report   {Path(out) / 'report.html'}\nruns     {sweep}\n",
            next_text(done, width),
        ]
        return "".join(parts)


def _contest_text(done: Sweep, out: Path, pictures: Any, labels: Any, terminal: bool, width: int) -> str:
    """Write the verdict of a contest with the report of its runs; return what to print of it."""
    from lora_exp.contest.next_steps import next_steps
    from lora_exp.contest.words import terminal_text
    from lora_exp.contest.write import write_with_verdict
    from lora_exp.report.next_steps import steps_text

    verdict = write_with_verdict(done, out, pictures, labels)
    places = f"verdict  {out / 'contest.html'}\nreport   {out / 'report.html'}\nruns     {done.folder}\n"
    return terminal_text(verdict, terminal, width) + "\n" + places + steps_text(next_steps(verdict), width)


def _job_folders(sweep: Path) -> list[Path]:
    from lora_exp.storage.sweep_file import read_about

    return [sweep / str(job) for job in range(len(read_about(sweep)["jobs"]))]


def _test_pictures(data: Mapping[str, Any], places: Mapping[str, Any]) -> tuple[Any, Any]:
    """The test pictures [N, C, H, W] of a data set, and their labels [N]."""
    from lora_exp.config.settings import DataFolder
    from lora_exp.config.spec import DataSpec
    from lora_exp.data.prepared import prepare, test_pictures

    return test_pictures(prepare(DataSpec(**data), DataFolder(**places)))
