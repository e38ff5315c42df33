"""Trained bases: taken from the store, or trained once while other processes that want the same one wait."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from lora_exp.base_model import BaseModel, assemble, train
from lora_exp.data import ImageData
from lora_exp.evaluation import Predictions, predict_base
from lora_exp.spec import RunSpec
from lora_exp.store import Store

log = logging.getLogger(__name__)

WEIGHTS, SAID, SECONDS = "base.safetensors", "predictions.safetensors", "seconds.txt"


@dataclass(frozen=True)
class TrainedBase:
    """A base, what it says of the test (and validation) images, and the seconds its training took."""

    model: BaseModel
    test: Predictions
    validation: Predictions | None
    seconds: float


def trained_base(spec: RunSpec, data: ImageData, store: Store, key: str, device: torch.device) -> TrainedBase:
    """The base of `spec`, stored under `key`.

    Raises FloatingPointError when its training diverges.
    """
    with store.lock("bases", key):
        files = store.get("bases", key)
        if files is None:
            files = _train(spec, data)
            store.put("bases", key, files)
    weights = {name: tensor.to(device) for name, tensor in load(files[WEIGHTS]).items()}
    said = load(files[SAID])
    return TrainedBase(
        assemble(spec.model, weights),
        _predictions(said, "test"),
        _predictions(said, "validation") if spec.data.validation else None,
        float(files[SECONDS]),
    )


def _train(spec: RunSpec, data: ImageData) -> dict[str, bytes]:
    log.info("training base %s on %d images", spec.model.label or "without hidden layers", len(data.train.labels))
    started = time.perf_counter()
    model = train(spec.model, spec.base, data.train)
    seconds = time.perf_counter() - started
    said = _tensors(predict_base(model, data.test), "test")
    if data.validation is not None:
        said |= _tensors(predict_base(model, data.validation), "validation")
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.tensors().items()}
    return {WEIGHTS: save(weights), SAID: save(said), SECONDS: repr(seconds).encode()}


def _tensors(said: Predictions, split: str) -> dict[str, torch.Tensor]:
    parts = {"predicted": said.predicted, "confidence": said.confidence, "losses": said.losses}
    return {f"{split}_{name}": tensor for name, tensor in parts.items()}


def _predictions(tensors: dict[str, torch.Tensor], split: str) -> Predictions:
    return Predictions(*(tensors[f"{split}_{part}"] for part in ("predicted", "confidence", "losses")))
