"""Predictions of the base and of a whole pack, and the errors per class.

Shapes: P jobs of the pack, N test images, c images of a chunk, C classes.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass

import torch
from torch.nn import functional

from lora_exp.adapters.pack import AdapterPack
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.model.architecture import Constants, Cut
from lora_exp.model.base import BaseModel
from lora_exp.model.data import Images, Split
from lora_exp.numerics import MIN_ROWS, ROW_MULTIPLE, least_rows, on_threads

MAPPED_BYTES = 2**28
CHUNK_ROWS = 2000  # rows of one matrix product: enough to run at full speed, few enough to stay in cache


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images, on the CPU: logits [N, C], and the true class's loss [N]."""

    logits: torch.Tensor
    losses: torch.Tensor

    @property
    def predicted(self) -> torch.Tensor:
        """The predicted classes, [N] int64."""
        return self.logits.argmax(dim=1)


def class_errors(predictions: Predictions, labels: torch.Tensor) -> ClassErrors:
    """Count confusions and average the losses of predictions for labels [N]."""
    own, losses, classes = labels.cpu(), predictions.losses.double(), predictions.logits.shape[1]
    table = torch.bincount(own * classes + predictions.predicted, minlength=classes**2).view(classes, classes)
    sums = torch.bincount(own, losses, minlength=classes)
    return ClassErrors.of(table.tolist(), float(losses.mean()), (sums / table.sum(1).clamp_min(1)).tolist())


def frozen_constants(base: BaseModel, images: Images, cut: Cut | None) -> Constants | None:
    """Compute what the frozen part of a base, which ends at `cut`, makes of images: all jobs share it.

    On one thread, the calling one: on two the bits of few images could differ, and processes that are forked after
    threads of a pool have used MKL hung in its memory manager, 3 of 364 in a trial. What is large lies in a
    file without a name, so that the system can take its memory back. None without a cut.
    """
    if cut is None:
        return None
    kept = [_memory((len(images), *shape), images.pixels.device) for _, shape in cut.kept]
    with torch.no_grad(), on_threads(1):
        for at in _cut(len(images), max(MIN_ROWS, CHUNK_ROWS // _positions(base))):
            for whole, part in zip(kept, base.forward.constants(images[at], cut), strict=True):
                whole[at] = part
    return Constants(cut, tuple(kept))


def _memory(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A float32 tensor, mapped to a temporary file if it is large. Raises OSError where the disk has no room for it."""
    numbers = math.prod(shape)
    if device.type != "cpu" or 4 * numbers < MAPPED_BYTES:
        return torch.empty(shape, device=device)
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, 4 * numbers)  # else a full disk would end the process later
        return torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=numbers).view(shape)


def _positions(base: BaseModel) -> int:
    """Rows of the largest product for one image."""
    return max(layer.positions for layer in base.network.layers)


def predict_base(base: BaseModel, split: Split) -> Predictions:
    """Predict with the base alone, on one thread: on two, narrow products and MKL's `exp` can have other bits."""
    with torch.no_grad(), on_threads(1):
        logits_NC = torch.cat([base.forward.logits(split.images[at]) for at in _chunks(base, split, 1)])
        return _predictions(logits_NC, split.labels)


def predict_pack(
    base: BaseModel, adapters: AdapterPack, split: Split, constants: Constants | None
) -> list[Predictions]:
    """Predict with every adapted classifier of a pack; an empty pack gives the base's predictions, as one entry.

    `constants` is the result of `frozen_constants` for the images of `split`.
    """
    jobs = len(adapters.jobs) or 1
    classes, device = len(split.images.facts.classes), split.labels.device
    logits_PNC = torch.empty(jobs, len(split.labels), classes, device=device)
    with torch.no_grad():
        for at in _chunks(base, split, jobs):
            images_PcI = split.images[at].expand(jobs, -1, -1)
            known = None if constants is None else constants.shared(at, jobs)
            logits_PNC[:, at] = adapters.logits(base, images_PcI, known)
        return [_predictions(logits_NC, split.labels) for logits_NC in logits_PNC]


def _chunks(base: BaseModel, split: Split, jobs: int) -> list[slice]:
    """Cut the split into slices of about CHUNK_ROWS rows of a product, and of whole multiples but for the last."""
    least = least_rows([(layer.outputs, layer.inputs) for layer in base.network.layers])
    least += -least % ROW_MULTIPLE
    images = CHUNK_ROWS // (jobs * _positions(base))
    return _cut(len(split.labels), max(least, images - images % ROW_MULTIPLE), least)


def _cut(count: int, size: int, least: int = MIN_ROWS) -> list[slice]:
    """Cut into slices. A rest of fewer than `least` joins its neighbour: products of few rows use other kernels."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] < least:
        del starts[-1]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def _predictions(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> Predictions:
    logs = functional.log_softmax(logits_NC, dim=1)
    return Predictions(logits_NC.cpu(), -logs.gather(1, labels_N[:, None]).squeeze(1).cpu())
