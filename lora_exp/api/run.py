"""A run from Python: its numbers, its predictions, its figures, and its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lora_exp.api.shown import for_notebooks, page
from lora_exp.errors import LoraExpError
from lora_exp.measures.logits import probabilities
from lora_exp.report.gained import HEADINGS, MEASURES, TITLES, run_cells
from lora_exp.storage.result import Outcome, RunResult
from lora_exp.storage.sweep_file import SWEEP, run_command
from lora_exp.storage.sweep_folder import Sweep as Stored
from lora_exp.storage.sweep_folder import read_logits, read_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lora_exp.adapters.adapted import AdaptedClassifier
    from lora_exp.config.spec import RunSpec


def load_run(folder: str | Path) -> Run:
    """Read the run in `folder`, or the job of a sweep whose folder it is. Raises LoraExpError where there is none."""
    place = Path(folder).absolute()
    if (place / SWEEP).is_file():
        raise LoraExpError(f"{folder}: is a sweep; use lora_exp.load_sweep, or name one of its runs: {place / '0'}")
    return Run(read_sweep(place), 0)


@final
class Run:
    """A run, or a job of a sweep, as it was when it was read from its folder.

    `status` is "finished", "diverged", "stopped" (by halving), "failed" or "missing", `error` why a run has no result,
    `command` the command line that makes it again.
    """

    def __init__(self, stored: Stored, job: int) -> None:
        [self._row] = stored.frame.iloc[[job]].to_dict("records")
        self._result = stored.results.get(job)
        self.folder = Path(self._row["folder"]).absolute()
        self.name = str(self._row["name"] or self.folder.name)
        self.status = str(self._row["status"])
        self.error: str | None = self._row["error"]
        self.command = run_command(self._row["overrides"])

    @property
    def result(self) -> RunResult:
        """Spec, outcome, times and provenance. Raises LoraExpError, which says why, for a run without a result."""
        if self._result is None:
            raise LoraExpError(f"{self.folder}: {self.status}{f' ({self.error})' if self.error else ''}; has no result")
        return self._result

    @property
    def spec(self) -> RunSpec:
        """What was run."""
        return self.result.spec

    @property
    def outcome(self) -> Outcome:
        """The numbers of the run."""
        return self.result.outcome

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, in the order of their labels."""
        return self.result.facts.classes

    @property
    def target(self) -> tuple[str, ...]:
        """The names of the classes that it was fine-tuned on."""
        return self.result.facts.named(self.result.target)

    @property
    def measures(self) -> pd.DataFrame:
        """Every measure before and after fine-tuning, shares from 0 to 1, one a row; docs/gains.md defines them.

        `change` has a 95 % interval, `low` to `high`, where one is known. `moved_threshold` is what the base has with
        one constant added to the target's logit that gives it the run's recall: what needs no adapter.
        """
        row, rows = self._row_of_finished(), []
        for own in MEASURES:
            before, after = row[f"{own.column}_before"], row[own.column]
            interval = [row[f"{own.change}_{end}"] if own.change else np.nan for end in ("low", "high")]
            rows.append([before, after, after - before, *interval, own.shifted(row) if own.shifted else np.nan])
        columns = ["before", "after", "change", "low", "high", "moved_threshold"]
        return pd.DataFrame(rows, index=pd.Index(TITLES, name="measure"), columns=columns, dtype="float64")

    def predictions(self) -> pd.DataFrame:
        """One row an image: true class, predicted class before and after fine-tuning, and how confident each is.

        `split` is "test" or, where images were held out, "validation"; `image` counts within the split. Classes are
        names, as a categorical column whose codes are the labels. Raises LoraExpError for a run without predictions.
        """
        self._row_of_finished()
        try:
            test, validation = read_logits(self.folder)
        except ValueError as error:
            raise LoraExpError(f"{self.folder}: {error}") from error
        parts = [
            pd.DataFrame(
                {
                    "split": split,
                    "image": np.arange(len(logits.labels)),
                    "label": self._named(logits.labels),
                    "prediction_before": self._named(logits.before.argmax(axis=1)),
                    "prediction": self._named(logits.after.argmax(axis=1)),
                    "confidence_before": probabilities(logits.before).max(axis=1),
                    "confidence": probabilities(logits.after).max(axis=1),
                }
            )
            for split, logits in (("test", test), ("validation", validation))
            if logits is not None
        ]
        return pd.concat(parts, ignore_index=True)

    def classifier(self, overrides: Sequence[str] = ()) -> AdaptedClassifier:
        """The fine-tuned classifier on the CPU: `predict(images)` names classes, calling it computes logits.

        `overrides` are of the run's settings, such as `store.folder=elsewhere` where the store is not below the working
        folder. Raises LoraExpError when adapter or base can't be read. A run over a torch module of one's own needs a
        session that `run` or `sweep` was given that module in.
        """
        from lora_exp.training.base import load_classifier

        self._row_of_finished()
        return load_classifier(self.folder, overrides)

    def images(self) -> NDArray[np.uint8]:
        """The test images, in the order of `predictions`: [N, H, W] where they are grey, else [N, H, W, C]."""
        pictures, _ = self._pictures()
        return pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1)

    def plot_errors(self) -> Figure:
        """Draw the error rate of every class before and after fine-tuning."""
        from lora_exp.report.figures import error_bars

        self._row_of_finished()
        return for_notebooks(error_bars(self.result))

    def plot_loss(self) -> Figure:
        """Draw the loss by step. Raises LoraExpError for an imported adapter, which has none."""
        from lora_exp.report.figures import loss_curves

        if not self.outcome.loss_curve:
            raise LoraExpError(f"{self.folder}: its adapter was imported, so there is no loss to draw")
        return for_notebooks(loss_curves([self.result]))

    def plot_images(self) -> Figure:
        """Draw test images that fine-tuning mended, broke or left wrong. Raises LoraExpError where they are unknown."""
        from lora_exp.report.figures import wrong_images

        self._row_of_finished()
        try:
            return for_notebooks(wrong_images(self.result, read_logits(self.folder)[0], *self._pictures()))
        except ValueError as error:
            raise LoraExpError(f"{self.folder}: {error}") from error

    def __repr__(self) -> str:
        said = self.status if self._result is None else self._result.summary
        return f"<Run {self.folder}: {said}{f': {self.error}' if self.error else ''}>"

    def _repr_html_(self) -> str:
        said = [f"{self.status}: {self.error}" if self._result is None else self._result.summary, str(self.folder)]
        if self._result is None or self._result.diverged or self._result.outcome.gains is None:
            return page(self.name, said)
        cells = [[title, *own] for title, own in zip(TITLES, run_cells(self._row), strict=True)]
        return page(self.name, said, (list(HEADINGS), cells))

    def _row_of_finished(self) -> dict[Any, Any]:
        """The row of the run. Raises LoraExpError for one without a result, and for one that diverged."""
        if self.result.diverged:
            raise LoraExpError(f"{self.folder}: diverged at step {self.outcome.diverged_at}: its errors mean nothing")
        return self._row

    def _named(self, labels: NDArray[Any]) -> pd.Series[Any]:
        kind = pd.CategoricalDtype(list(self.classes))
        return pd.Series(pd.Categorical.from_codes(labels.astype(int).tolist(), dtype=kind))

    def _pictures(self) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """The test images [N, C, H, W] and their labels. Raises LoraExpError where the data set is gone."""
        from lora_exp.config.compose import saved_settings
        from lora_exp.data.prepared import prepare, test_pictures

        data = saved_settings(str(self.result.provenance["config"]), []).data
        return test_pictures(prepare(self.spec.data, data))
