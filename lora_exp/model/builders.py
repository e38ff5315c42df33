"""Modules of a `ModelSpec`: our own Vision Transformer, models of torchvision and timm, and modules of a session.

A name is looked up in the library's registry of classifiers. Nothing else is imported or called, and nothing is
downloaded: weights come from a file, or are drawn.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lora_exp.config.images import ImageFacts
from lora_exp.config.models import MODULE, VIT, ModelSpec
from lora_exp.errors import LoraExpError, in_words, installing

if TYPE_CHECKING:
    from torch import nn

# Modules that `lora_exp.sweep` was given in this process, by `model.name`; forked processes have them too.
GIVEN: dict[str, nn.Module] = {}
RGB = 3


def build(spec: ModelSpec, facts: ImageFacts) -> nn.Module:
    """Build the module of a spec for images and classes like these, with weights from torch's global generator.

    Raises LoraExpError for a name that the registry does not have, and for images that the model can't take.
    """
    if spec.kind == MODULE:
        if spec.name not in GIVEN:
            raise LoraExpError(
                f"model.name={spec.name}: is a module of a Python session; run lora_exp.sweep(module=...) with it again"
            )
        return copy.deepcopy(GIVEN[spec.name])
    try:
        kind, arguments = recipe(spec, facts)
        module: nn.Module = _builder(kind)(**arguments)
        return module
    except LoraExpError:
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoraExpError(
            f"model.name={spec.label}: can't be built for images of {shown_shape(facts)} ({in_words(error)}); "
            "data.size and data.channels change the images"
        ) from error


def recipe(spec: ModelSpec, facts: ImageFacts) -> tuple[str, dict[str, Any]]:
    """What builds a model that is no stack and no given module: the kind, and the arguments of its builder.

    Raises LoraExpError as `build` does.
    """
    if spec.kind == VIT:
        own = {"patch": spec.patch, "width": spec.width, "blocks": spec.blocks, "heads": spec.heads}
        return VIT, {"shape": facts.shape, "classes": len(facts.classes), **own}
    assert spec.name is not None, "a spec is checked"
    return spec.kind, _of_torchvision(spec.name, facts) if spec.kind == "torchvision" else _of_timm(spec.name, facts)


def _builder(kind: str) -> Callable[..., Any]:
    if kind == "torchvision":
        from torchvision.models import get_model

        found: Callable[..., Any] = get_model
        return found
    if kind == "timm":
        from timm import create_model

        return create_model
    from lora_exp.model.vit import VisionTransformer

    return VisionTransformer


def shown_shape(facts: ImageFacts) -> str:
    """`28 x 28 with 1 channel`."""
    channels, height, width = facts.shape
    return f"{height} x {width} with {channels} channel{'s' if channels > 1 else ''}"


def _of_torchvision(name: str, facts: ImageFacts) -> dict[str, Any]:
    from torchvision import models

    _check_name(name, models.list_models(module=models))
    channels, height, width = facts.shape
    if channels != RGB:
        raise LoraExpError(
            f"model.name={name}: takes images of 3 channels, and these have {channels}; use data.channels=3"
        )
    arguments: dict[str, Any] = {"name": name, "weights": None, "num_classes": len(facts.classes)}
    if name.startswith("vit_"):
        if height != width:
            sides = f"{height} x {width}"
            raise LoraExpError(f"model.name={name}: takes square images, and these are {sides}; use data.size")
        arguments["image_size"] = height
    elif name.startswith("maxvit"):
        arguments["input_size"] = (height, width)
    if name in ("googlenet", "inception_v3"):  # whose auxiliary heads want large images
        arguments |= {"aux_logits": False, "init_weights": True}
    return arguments


def _of_timm(name: str, facts: ImageFacts) -> dict[str, Any]:
    if importlib.util.find_spec("timm") is None:
        raise LoraExpError(f"model=timm: needs the library; {installing('timm')}")
    import timm

    _check_name(name, timm.list_models())
    channels, height, width = facts.shape
    arguments: dict[str, Any] = {
        "model_name": name,
        "pretrained": False,
        "in_chans": channels,
        "num_classes": len(facts.classes),
    }
    try:
        timm.create_model(**arguments, img_size=(height, width))
    except TypeError:  # it takes images of any size
        return arguments
    return {**arguments, "img_size": (height, width)}


def _check_name(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 3)
    guess = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known[:10])}, ..."
    raise LoraExpError(f"model.name={name}: no such model; {guess}")


def give(module: nn.Module) -> str:
    """Make a module known to this process and its forks, and return its name, which holds a hash of its code.

    Raises LoraExpError for a module that can't be copied, or whose state is not made of tensors.
    """
    import torch

    from lora_exp.model.fingerprint import fingerprint

    kind = type(module).__name__
    if not isinstance(module, torch.nn.Module):
        raise LoraExpError(f"module: must be a torch.nn.Module, and its type is {kind}")
    if hasattr(module, "_orig_mod"):
        raise LoraExpError(
            "module: is compiled; give the module itself, module._orig_mod, to a session that compiles none"
        )
    for key, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise LoraExpError(f"{kind}: {key} of its state is a {type(value).__name__}, and must be a tensor")
    try:
        copied = copy.deepcopy(module).cpu()
    except Exception as error:
        raise LoraExpError(f"{kind}: can't be copied ({in_words(error)})") from error
    name = f"{kind}-{fingerprint(module)[:12]}"
    GIVEN[name] = copied
    return name
