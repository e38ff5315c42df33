"""Predictions of the base and of a whole pack, and the errors per class.

Shapes: P jobs of the pack, N test images, c images of a chunk, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lora_exp.adapters.pack import AdapterPack
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.model.base import BaseModel, plain_logits
from lora_exp.model.data import Images, Split
from lora_exp.numerics import MIN_ROWS, ROW_MULTIPLE, frozen_product, least_rows, on_threads

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


def frozen_first_layer(base: BaseModel, images: Images | torch.Tensor) -> torch.Tensor | None:
    """Compute the frozen product of the first layer [N, O], a constant of base and data that all jobs share.

    None for a convolution: on one-channel images its product is cheaper than the memory to store it. On one thread, the
    calling one: on two the bits of few images could differ, and processes that are forked after threads of a pool have
    used MKL hung in its memory manager, 3 of 364 in a trial.
    """
    layer = base.layers[0]
    if layer.shape.convolution is not None:
        return None
    product_NO = layer.weight.new_empty(len(images), len(layer.weight))
    with torch.no_grad(), on_threads(1):
        for at in _cut(len(images), CHUNK_ROWS):
            product_NO[at] = frozen_product(images[at], layer.weight, layer.bias)
    return product_NO


def predict_base(base: BaseModel, split: Split) -> Predictions:
    """Predict with the base alone, on one thread: on two, narrow products and MKL's `exp` can have other bits."""
    with torch.no_grad(), on_threads(1):
        logits_NC = torch.cat([plain_logits(base, split.images[at]) for at in _chunks(base, split, 1)])
        return _predictions(logits_NC, split.labels)


def predict_pack(
    base: BaseModel, adapters: AdapterPack, split: Split, first_NO: torch.Tensor | None
) -> list[Predictions]:
    """Predict with every adapted classifier of a pack; an empty pack gives the base's predictions, as one entry.

    `first_NO` is the result of `frozen_first_layer` for the images of `split`.
    """
    jobs = len(adapters.jobs) or 1
    classes, device = len(split.images.facts.classes), split.labels.device
    logits_PNC = torch.empty(jobs, len(split.labels), classes, device=device)
    with torch.no_grad():
        for at in _chunks(base, split, jobs):
            images_PcI = split.images[at].expand(jobs, -1, -1)
            first_PcO = first_NO[at].repeat(jobs, 1, 1) if first_NO is not None and adapters.shares(0) else None
            logits_PNC[:, at] = adapters.logits(base, images_PcI, first_PcO)
        return [_predictions(logits_NC, split.labels) for logits_NC in logits_PNC]


def _chunks(base: BaseModel, split: Split, jobs: int) -> list[slice]:
    """Cut the split into slices of about CHUNK_ROWS rows of a product, and of whole multiples but for the last."""
    positions = max(layer.shape.positions for layer in base.layers)
    least = least_rows([(layer.shape.outputs, layer.shape.inputs) for layer in base.layers])
    least += -least % ROW_MULTIPLE
    images = CHUNK_ROWS // (jobs * positions)
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
