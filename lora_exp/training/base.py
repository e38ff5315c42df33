"""Trained bases: read from the store, or trained once while other processes that need the same base wait."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lora_exp.adapters.adapted import AdaptedClassifier
from lora_exp.config.images import ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import RunSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.base import BaseModel, assemble, train
from lora_exp.model.data import ImageData, Split
from lora_exp.model.weights import read_weights
from lora_exp.storage.result import read_run, whole_adapter
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import run_command
from lora_exp.training.evaluation import Predictions, predict_base

log = logging.getLogger(__name__)

WEIGHTS, SHA256, PREDICTIONS, SECONDS = "base.safetensors", "sha256.txt", "predictions.safetensors", "seconds.txt"


@dataclass(frozen=True)
class TrainedBase:
    """A base, its predictions for the test and validation images, and the seconds of its training."""

    model: BaseModel
    test: Predictions
    validation: Predictions | None
    seconds: float


def trained_base(
    spec: RunSpec, data: ImageData, store: Store, key: str, device: torch.device, weights: Path | None
) -> TrainedBase:
    """Return the base of `spec`, stored under `key`; train it when the store has none.

    `weights` is the file from which it is trained, or which it is, where the spec has one. An entry that doesn't hold
    this base is set aside and replaced. Raises FloatingPointError when training diverges.
    """
    with store.lock("bases", key):
        files = store.get("bases", key)
        if files is not None:
            try:
                return read_base(spec, data, files, device)
            except LoraExpError:  # of the model, not of the entry
                raise
            except ValueError as error:
                store.set_aside("bases", key, str(error))
        files = _train(spec, data, weights)
        store.put("bases", key, files)
    return read_base(spec, data, files, device)


def stored_model(spec: ModelSpec, facts: ImageFacts, files: Mapping[str, bytes], device: torch.device) -> BaseModel:
    """Read the model from the files of a base.

    Raises ValueError, in one line, when shapes, types, values or hash of the weights are wrong.
    """
    try:
        weights = {name: tensor.to(device) for name, tensor in load(files[WEIGHTS]).items()}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{WEIGHTS}: holds no weights ({error})") from error
    model = assemble(spec, facts, weights)
    if model.sha256().encode() != files.get(SHA256):
        raise ValueError(f"{WEIGHTS}: holds other weights than {SHA256} says")
    return model


def load_base(folder: str | Path, overrides: Sequence[str] = ()) -> BaseModel:
    """The base of the run in `folder`, on the CPU, found in the run's store by the hash in the run's result.

    So a base that another version of this package or of torch trained is found too. `overrides` are of the run's
    settings, such as `store.folder=elsewhere` where the store has moved. Raises LoraExpError when `folder` holds no
    run, when the store has no such base, and for an override that is not allowed.
    """
    from lora_exp.config.compose import saved_settings  # loads Hydra, which training does not need

    result = read_run(Path(folder))
    settings = saved_settings(result.provenance["config"], overrides)
    store, sha256 = Store(Path(settings.store.folder).absolute()), result.outcome.base_sha256_before
    for key in store.holding("bases", SHA256, sha256.encode()):
        files = store.get("bases", key)
        try:
            if files is not None:
                return stored_model(result.spec.model, result.facts, files, torch.device("cpu"))
        except LoraExpError:  # of the model, not of the entry
            raise
        except ValueError as error:
            log.warning("store entry bases %s: %s", key[:12], error)
    command = run_command(shlex.join(result.provenance["overrides"]))
    raise LoraExpError(
        f"{folder}: its base {sha256[:12]} is not in {store.root}; name the store with store.folder=FOLDER, or make "
        f"run and base again: {command}"
    )


def load_classifier(folder: str | Path, overrides: Sequence[str] = ()) -> AdaptedClassifier:
    """The classifier of the run in `folder`: its base, found as `load_base` does, with its adapter.

    Raises LoraExpError as `load_base` does, and when the adapter can't be read or is damaged.
    """
    base, result = load_base(folder, overrides), read_run(Path(folder))
    path = whole_adapter(Path(folder), result)
    try:
        return AdaptedClassifier.load(base, path, result.facts)
    except ValueError as error:
        raise LoraExpError(str(error)) from error


def read_base(spec: RunSpec, data: ImageData, files: Mapping[str, bytes], device: torch.device) -> TrainedBase:
    """Read a trained base from its files. Raises ValueError, in one line, when they don't fit `spec`."""
    model = stored_model(spec.model, data.facts, files, device)
    try:
        tensors = load(files[PREDICTIONS])
        seconds = float(files[SECONDS])
        test = _predictions(tensors, "test", data.test)
        validation = None if data.validation is None else _predictions(tensors, "validation", data.validation)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{PREDICTIONS}: holds no predictions ({error})") from error
    return TrainedBase(model, test, validation, seconds)


def _train(spec: RunSpec, data: ImageData, weights: Path | None) -> dict[str, bytes]:
    start, name, device = None, spec.model.label or "without hidden layers", data.train.labels.device
    if spec.base.weights is not None:
        if weights is None:
            raise LoraExpError(f"base.weights: names no file, and the store has no base {spec.base.weights[:12]}")
        start = read_weights(weights, spec.model, spec.base, data.facts)
    started = time.perf_counter()
    if spec.base.epochs:
        log.info("training base %s on %d images", name, len(data.train.labels))
        model = train(spec.model, spec.base, data.train, start)
    else:
        assert start is not None, "a spec is checked"
        model = assemble(spec.model, data.facts, {key: tensor.to(device) for key, tensor in start.items()})
    seconds = time.perf_counter() - started
    predictions = _tensors(predict_base(model, data.test), "test")
    if data.validation is not None:
        predictions |= _tensors(predict_base(model, data.validation), "validation")
    held = {name: tensor.cpu().contiguous() for name, tensor in model.state.items()}
    return {
        WEIGHTS: save(held),
        SHA256: model.sha256().encode(),
        PREDICTIONS: save(predictions),
        SECONDS: repr(seconds).encode(),
    }


def _tensors(predictions: Predictions, split: str) -> dict[str, torch.Tensor]:
    return {f"{split}_logits": predictions.logits.contiguous(), f"{split}_losses": predictions.losses}


def _predictions(tensors: dict[str, torch.Tensor], split: str, of: Split) -> Predictions:
    predictions = Predictions(tensors[f"{split}_logits"], tensors[f"{split}_losses"])
    for name, tensor, shape in (
        ("logits", predictions.logits, (len(of.labels), len(of.images.facts.classes))),
        ("losses", predictions.losses, (len(of.labels),)),
    ):
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(f"{PREDICTIONS}: {split}_{name} must be a float32 tensor of shape {shape}")
    return predictions
