"""What MLflow loads a registered classifier with: registering copies this file, and two files of data, into the model.

So a model needs torch, safetensors and this file, but neither lora_exp nor a serialised Python object. What the
architecture may consist of stands in KINDS; a file of data names one of these, and never code.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mlflow.models
import torch
from mlflow.pyfunc import PythonModel
from safetensors.torch import load_file
from torch import nn

ARCHITECTURE, WEIGHTS = "architecture", "weights"  # the names of the two files
KINDS = {kind.__name__: kind for kind in (nn.Flatten, nn.Unflatten, nn.Linear, nn.Conv2d, nn.ReLU)}
AT_ONCE = 1000  # images in memory as floats


class DigitClassifier(PythonModel):  # type: ignore[misc]  # mlflow has no types
    """Images [N, 28, 28] uint8, black 0, to the digits [N] int64 that they show."""

    _skip_type_hint_validation = True  # MLflow's hints know no arrays, and without hints it warns

    def load_context(self, context: Any) -> None:
        """Build the classifier from the two files; called by MLflow."""
        about = json.loads(Path(context.artifacts[ARCHITECTURE]).read_text(encoding="utf-8"))
        layers = [(own["name"], KINDS[own["kind"]](*map(_argument, own["arguments"]))) for own in about["layers"]]
        self._module = nn.Sequential(OrderedDict(layers))
        self._module.load_state_dict(load_file(context.artifacts[WEIGHTS]))
        self._mean, self._std = float(about["mean"]), float(about["std"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The digit of each image; called by MLflow, which holds the images against the model's signature."""
        with torch.inference_mode():
            found = [self._digits(part) for part in torch.split(torch.tensor(model_input), AT_ONCE)]
        return torch.cat(found).numpy()

    def _digits(self, images_N: torch.Tensor) -> torch.Tensor:
        pixels = images_N.flatten(1).to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        digits: torch.Tensor = self._module(pixels).argmax(1)
        return digits


def _argument(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


mlflow.models.set_model(DigitClassifier())
