"""Per-class errors, confusion and forgetting, for the base and for a whole pack.

Shapes: P jobs of the pack, N test images, c images of a chunk, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from lora_exp.adapters.pack import AdapterPack
from lora_exp.config.fields import CLASSES
from lora_exp.model.base import BaseModel, plain_logits
from lora_exp.model.data import Split
from lora_exp.numerics import LEAST_ROWS, frozen_product, on_threads
from lora_exp.training.loop import pack_logits

CHUNK_ROWS = 2000  # rows of one matrix product: enough to run at full speed, few enough to stay in cache


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of N images: class [N] uint8, its probability [N] and the true class's loss [N]."""

    predicted: torch.Tensor
    confidence: torch.Tensor
    losses: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """Counts on a labelled split; `confusion[true][predicted]`. Every other figure follows from them."""

    confusion: tuple[tuple[int, ...], ...]
    loss: float

    @property
    def counts(self) -> list[int]:
        """Images of each class."""
        return [sum(row) for row in self.confusion]

    @property
    def errors(self) -> list[int]:
        """Wrongly predicted images of each class."""
        return [sum(row) - row[digit] for digit, row in enumerate(self.confusion)]

    @property
    def error_rates(self) -> list[float]:
        """Share of each class's images that is predicted wrongly; 0 for a class without images."""
        return [wrong / count if count else 0.0 for wrong, count in zip(self.errors, self.counts, strict=True)]

    @property
    def accuracy(self) -> float:
        """Share of all images that is predicted rightly."""
        images = sum(self.counts)
        return (images - sum(self.errors)) / images

    def error_of(self, digits: tuple[int, ...]) -> float:
        """Mean error rate of the classes in `digits`, each class weighing the same."""
        return sum(self.error_rates[digit] for digit in digits) / len(digits)


def others(digits: tuple[int, ...]) -> tuple[int, ...]:
    """The classes that are not in `digits`."""
    return tuple(digit for digit in range(CLASSES) if digit not in digits)


def summarise(predictions: Predictions, labels: torch.Tensor) -> Evaluation:
    """Confusion counts and mean loss of predictions against labels [N]."""
    cells = labels.cpu() * CLASSES + predictions.predicted.to(torch.int64)
    table = torch.bincount(cells, minlength=CLASSES * CLASSES).view(CLASSES, CLASSES)
    return Evaluation(tuple(tuple(row) for row in table.tolist()), float(predictions.losses.double().mean()))


def frozen_first_layer(base: BaseModel, images: torch.Tensor) -> torch.Tensor | None:
    """The first layer's frozen product [N, O]: a constant of base and data, shared by every job.

    None for a convolution, whose product with one-channel images costs less than the memory to keep it.
    """
    layer = base.layers[0]
    if layer.shape.convolution is not None:
        return None
    with torch.no_grad(), on_threads(1):  # a job alone has few images, whose bits on two threads may be others
        return frozen_product(images, layer.weight, layer.bias)


def predict_base(base: BaseModel, split: Split) -> Predictions:
    """What the classifier says without adapters."""
    with torch.no_grad():
        logits_NC = torch.cat([plain_logits(base, split.images[at]) for at in _chunks(base, split, 1)])
        return _judged(logits_NC, split.labels)


def predict_pack(
    base: BaseModel,
    adapters: AdapterPack,
    split: Split,
    first_NO: torch.Tensor | None,
    progress: Callable[[int], object] | None = None,
) -> list[Predictions]:
    """What each adapted classifier of the pack says; a pack without adapters is the base, as one row.

    `progress` is told of images judged, all jobs together.
    """
    jobs = len(adapters.jobs) or 1
    logits_PNC = torch.empty(jobs, len(split.labels), CLASSES, device=split.images.device)
    with torch.no_grad():
        for at in _chunks(base, split, jobs):
            images_PcI = split.images[at].expand(jobs, -1, -1)
            first_PcO = first_NO[at].repeat(jobs, 1, 1) if first_NO is not None and adapters.shares(0) else None
            logits_PNC[:, at] = pack_logits(base, adapters, images_PcI, first_PcO)
            if progress is not None:
                progress(jobs * (at.stop - at.start))
        return [_judged(logits_NC, split.labels) for logits_NC in logits_PNC]


def _chunks(base: BaseModel, split: Split, jobs: int) -> list[slice]:
    """Slices that cover the split; few images would take other kernels, so a short rest joins its neighbour."""
    places = max(layer.shape.places for layer in base.layers)
    size = max(LEAST_ROWS, CHUNK_ROWS // (jobs * places))
    count = len(split.labels)
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] < LEAST_ROWS:
        del starts[-1]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def _judged(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> Predictions:
    logs = functional.log_softmax(logits_NC, dim=1)
    best = logs.max(dim=1)
    loss = -logs.gather(1, labels_N[:, None]).squeeze(1)
    return Predictions(best.indices.to(torch.uint8).cpu(), best.values.exp().cpu(), loss.cpu())
