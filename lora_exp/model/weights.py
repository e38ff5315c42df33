"""Weights of one's own: a state dict in a safetensors file, checked tensor by tensor against the model's."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from lora_exp.config.images import ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import BaseSpec
from lora_exp.errors import LoraExpError, in_words
from lora_exp.model.architecture import Network
from lora_exp.model.base import network

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
SHOWN = 3  # tensors of each kind of fault, in a message


@functools.lru_cache(maxsize=1)
def read_weights(path: Path, model: ModelSpec, base: BaseSpec, facts: ImageFacts) -> dict[str, torch.Tensor]:
    """Read the weights that training starts from, or that are the base; with `head=new` the last layer is drawn.

    Raises LoraExpError, of one line, for a file that can't be read, is another one than `base.weights` says, does not
    have exactly the tensors of the model, or holds values that are not finite.
    """
    try:
        content = path.read_bytes()
        found = load(content)
    except (OSError, SafetensorError) as error:
        raise LoraExpError(f"base.weights={path}: can't be read ({in_words(error)})") from error
    if hashlib.sha256(content).hexdigest() != base.weights:
        raise LoraExpError(f"base.weights={path}: changed while it was read; try again when it is complete")
    form = network(model, facts)
    head = _head(form) if base.head == "new" else set()
    if faults := _faults(found, form, head):
        advice = "" if head or _faults(found, form, _head(form)) else "; base.head=new gives it a new last layer"
        for prefix in PREFIXES:
            if found and all(own.startswith(prefix) for own in found):
                advice = f"; all names begin with {prefix}: save the state dict of the module inside"
        name = model.label or "this model"
        raise LoraExpError(f"base.weights={path}: are not weights of {name}: {'; '.join(faults)}{advice}")
    state = {name: found[name].to(own.dtype) for name, own in form.state.items() if name not in head}
    if wrong := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise LoraExpError(f"base.weights={path}: {wrong[0]} holds values that are not finite")
    drawn = form.initial(base.seed) if head else {}
    return {name: drawn[name] if name in head else state[name] for name in form.state}


def _head(form: Network) -> set[str]:
    """The tensors of the last layer."""
    last = form.layers[-1]
    return {name for name in (last.weight, last.bias) if name is not None}


def _faults(found: dict[str, torch.Tensor], form: Network, without: set[str]) -> list[str]:
    """In words what is missing, superfluous or misshapen; [] if the tensors, without these, are the network's."""
    found = {name: tensor for name, tensor in found.items() if name not in without}
    found = {name: tensor for name, tensor in found.items() if name not in without}
    wanted = {name: own for name, own in form.state.items() if name not in without}
    shapes = [
        f"{name} is {list(found[name].shape)} and must be {list(own.shape)}"
        for name, own in wanted.items()
        if name in found and tuple(found[name].shape) != own.shape
    ]
    kinds = [
        f"{name} is {str(found[name].dtype).removeprefix('torch.')} and must be a float"
        for name, own in wanted.items()
        if name in found and found[name].is_floating_point() != own.dtype.is_floating_point
    ]
    listed = {
        "missing": [name for name in wanted if name not in found],
        "superfluous": [name for name in found if name not in wanted],
    }
    return [*(f"{what} {_some(names)}" for what, names in listed.items() if names), *_first(shapes), *_first(kinds)]


def _first(faults: Sequence[str]) -> list[str]:
    return [*faults[:SHOWN], *([f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else [])]


def _some(names: Sequence[str]) -> str:
    return ", ".join(_first(names))
