"""The script with which MLflow loads a registered classifier.

Registering copies this file and two data files into the model. A model needs mlflow, torch and safetensors, but not
lora_exp, and holds no serialised Python object. The architecture file may name only the layer kinds in KINDS, our
Vision Transformer, whose file the model then holds too, or a model of torchvision or timm.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mlflow.models
import numpy
import torch
from mlflow.pyfunc import PythonModel
from safetensors.torch import load_file
from torch import nn

ARCHITECTURE, WEIGHTS = "architecture", "weights"  # names of the data files
KINDS = {kind.__name__: kind for kind in (nn.Flatten, nn.Unflatten, nn.Linear, nn.Conv2d, nn.ReLU)}
# Kind of a model of a library -> the module and the function that build it; `vit.py` lies in the registered model.
MODELS = {
    "vit": ("vit", "VisionTransformer"),
    "torchvision": ("torchvision.models", "get_model"),
    "timm": ("timm", "create_model"),
}
BATCH = 1000  # images in memory as floats


class ImageClassifier(PythonModel):  # type: ignore[misc]  # mlflow has no types
    """Classify images uint8, [N, H, W] where they are grey, else [N, H, W, C], by name: [N] text."""

    _skip_type_hint_validation = True  # without type hints MLflow warns, and its hints have no arrays

    def load_context(self, context: Any) -> None:
        """Build the classifier from the two data files. MLflow calls this."""
        architecture = json.loads(Path(context.artifacts[ARCHITECTURE]).read_text(encoding="utf-8"))
        self._module = _built(architecture).eval()
        self._shape = architecture["shape"]
        self._module.load_state_dict(load_file(context.artifacts[WEIGHTS]))
        self._classes = numpy.array(architecture["classes"])
        mean, std = architecture["mean"], architecture["std"]
        self._mean, self._std = (torch.tensor(one, dtype=torch.float32)[:, None] for one in (mean, std))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The name of each image's class. MLflow calls this, after it has checked the images against the signature."""
        with torch.inference_mode():
            found = [self._labels(part) for part in torch.split(torch.tensor(model_input), BATCH)]
        return self._classes[torch.cat(found).numpy()]

    def _labels(self, images_N: torch.Tensor) -> torch.Tensor:
        channels_last = images_N if images_N.dim() == 4 else images_N[..., None]
        pixels = channels_last.movedim(-1, 1).flatten(2).to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        labels: torch.Tensor = self._module(pixels.view(-1, *self._shape)).argmax(1)
        return labels


def _built(architecture: dict[str, Any]) -> nn.Module:
    """The classifier, with weights of any value: a sequence of layers, or a model of a library."""
    if "layers" in architecture:
        layers = [
            (layer["name"], KINDS[layer["kind"]](*map(_argument, layer["arguments"])))
            for layer in architecture["layers"]
        ]
        return nn.Sequential(OrderedDict(layers))
    place, name = MODELS[architecture["kind"]]
    arguments = {key: _argument(own) for key, own in architecture["arguments"].items()}
    module: nn.Module = getattr(importlib.import_module(place), name)(**arguments)
    return module


def _argument(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


mlflow.models.set_model(ImageClassifier())
