"""`lora-exp register`: put the classifier of a run into MLflow's model registry."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.commands.arguments import add_overrides, add_run, parse
from lora_exp.commands.export import VIT_FILE, settings_with_kernels
from lora_exp.config.fields import is_name
from lora_exp.config.images import ImageFacts
from lora_exp.config.models import MODULE, STACK, VIT, ModelSpec
from lora_exp.errors import LoraExpError, in_words
from lora_exp.storage.result import PREDICTIONS, read_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

EXAMPLES = 2  # images in the model's input example
# Kind of layer -> its attributes that hold the arguments with which it was made.
ARGUMENTS = {
    "Linear": ("in_features", "out_features"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    "Unflatten": ("dim", "unflattened_size"),
}


def main(arguments: Sequence[str]) -> int:
    """Register the classifier of a run, its adapter merged into the weights, in MLflow's model registry."""
    parser = argparse.ArgumentParser(prog="lora-exp register", description=main.__doc__)
    add_run(parser)
    parser.add_argument("--name", help="name of the model, which gets one more version (default DATA-classifier)")
    add_overrides(parser, "store.folder=elsewhere")
    options = parse(parser, arguments)
    print("\n".join(register(options.run, options.name, options.overrides)))
    return 0


def register(folder: Path, name: str | None, overrides: Sequence[str]) -> list[str]:
    """Register the classifier of the run in `folder` as the next version of model `name`; return lines to print.

    `overrides` apply to the run's settings. Raises LoraExpError for a run or a base that can't be used, for a name or
    an override that is not allowed, and when the tracking store can't be written to.
    """
    result = read_run(folder)
    name = f"{result.spec.data.name}-classifier" if name is None else name
    if not is_name(name) or ":" in name:
        raise LoraExpError(f"--name {name}: must be a name without slashes and colons, of at most 200 bytes")
    if result.diverged:
        raise LoraExpError(f"{folder}: the run diverged at step {result.outcome.diverged_at}: it classifies nothing")
    settings = settings_with_kernels(result, overrides)
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from safetensors.torch import save

    from lora_exp.data.prepared import prepare, test_pictures
    from lora_exp.model.base import plain_module
    from lora_exp.tracking.connection import translated_errors
    from lora_exp.tracking.delivery import recorded_run
    from lora_exp.tracking.recorder import Recorder
    from lora_exp.tracking.registry import register_model, save_model
    from lora_exp.training.base import load_classifier

    try:
        stored = load_file(folder / PREDICTIONS)
    except (OSError, SafetensorError) as error:
        raise LoraExpError(f"{folder / PREDICTIONS}: can't be read ({in_words(error)})") from error
    module = plain_module(load_classifier(folder, overrides).merge())
    recorder = Recorder.open(settings.tracking)
    made_of = _made_of(result.spec.model, result.facts, module)
    images, _ = test_pictures(prepare(result.spec.data, settings.data))
    images, facts = _served(images), result.facts
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        with translated_errors(recorder.settings.uri):
            shape = [facts.pixels] if result.spec.model.kind == STACK else facts.shape
            names = {"classes": facts.classes, "mean": facts.mean, "std": facts.std, "shape": shape}
            code = [VIT_FILE] if result.spec.model.kind == VIT else []
            model = save_model(place, {**names, **made_of}, save(module.state_dict()), images[:EXAMPLES], code)
            # An older version wrote the predicted classes instead of logits.
            from lora_exp.measures.logits import AFTER

            predicted = stored["predicted"] if "predicted" in stored else stored[AFTER].argmax(axis=1)
            same = int((model.predict(images) == np.array(facts.classes)[predicted]).sum())
        agreement = f"{same} of {len(images)} test images classified as in the run"
        version = register_model(recorder, place, name, result, recorded_run(folder), agreement)
    model_uri = f"models:/{name}/{version}"
    serve = ["mlflow", "models", "serve", "--model-uri", model_uri, "--env-manager", "local", "--host", "127.0.0.1"]
    return [
        f"model    {model_uri}: {agreement}",
        f"serve    MLFLOW_TRACKING_URI={shlex.quote(recorder.settings.uri)} {shlex.join([*serve, '--port', '5001'])}",
    ]


def _served(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures [N, C, H, W] as the model takes them: [N, H, W] where they are grey, else [N, H, W, C]."""
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)


def _made_of(spec: ModelSpec, facts: ImageFacts, module: nn.Module) -> dict[str, Any]:
    """The module as `served_classifier.py` builds it: its layers, or the model of a library."""
    from lora_exp.model.builders import recipe

    if spec.kind == STACK:
        return {"layers": [_description(*named) for named in module.named_children()]}
    if spec.kind == MODULE:
        raise LoraExpError(f"{spec.name}: is a module of a Python session, which a registered model does not have")
    kind, arguments = recipe(spec, facts)
    return {"kind": kind, "arguments": arguments}


def _description(name: str, module: nn.Module) -> dict[str, Any]:
    """A layer as `served_classifier.py` builds it: its name, its kind and the arguments of that kind."""
    kind = type(module).__name__
    return {"name": name, "kind": kind, "arguments": [getattr(module, own) for own in ARGUMENTS.get(kind, ())]}
