"""`lora-exp register`: the classifier of a run in MLflow's model registry, as data and one script of this package.

A model holds the merged weights in safetensors, the architecture in JSON, and `served_classifier.py`, which MLflow
runs to load it. Nothing in it is a serialised Python object.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file
from safetensors.torch import save_file

from lora_exp.commands.export import adapted_run
from lora_exp.config.compose import saved_settings
from lora_exp.config.fields import is_name
from lora_exp.config.spec import MEAN, SIDE, STD
from lora_exp.errors import LoraExpError
from lora_exp.executors.choice import laboratory
from lora_exp.model.base import plain_module
from lora_exp.storage.provenance import versions
from lora_exp.storage.result import PREDICTIONS, RunResult, read_run
from lora_exp.tracking.connection import one_line
from lora_exp.tracking.delivery import recorded_run
from lora_exp.tracking.recorder import Recorder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

SCRIPT = Path(__file__).with_name("served_classifier.py")
NEEDED = ("mlflow", "torch", "safetensors", "numpy")
EXAMPLES = 2  # images in the model's input example


def register(folder: Path, name: str | None, overrides: Sequence[str]) -> list[str]:
    """Register the classifier of the run in `folder` as the next version of model `name`; what to tell the user.

    The name is `<data set>-classifier` where none is given. `overrides` are of the run's settings. Raises LoraExpError
    when the run or its base can't be read, or when it diverged; LoraExpError for a name or an override that is not
    allowed; LoraExpError when the store can't be written to.
    """
    result = read_run(folder)
    name = f"{result.spec.data.name}-classifier" if name is None else name
    if not is_name(name) or ":" in name:
        raise LoraExpError(f"--name {name}: must be a name without slashes and colons, of at most 200 bytes")
    if result.diverged:
        raise LoraExpError(f"{folder}: the run diverged at step {result.outcome.diverged_at}: it classifies nothing")
    settings = saved_settings(result.provenance["config"], overrides)
    recorder = Recorder.open(settings.tracking)
    module = plain_module(adapted_run(folder, overrides).merge())
    images, _ = laboratory(settings).test_pictures(result.spec)
    with tempfile.TemporaryDirectory() as place, one_line(recorder.settings.uri):
        model = _saved(module, images[:EXAMPLES], Path(place))
        same = int((model.predict(images) == load_file(folder / PREDICTIONS)["predicted"]).sum())
        agreement = f"{same} of {len(images)} test images classified as in the run"
        version = _registered(recorder, Path(place) / "model", name, result, folder, agreement)
    model_uri = f"models:/{name}/{version}"
    serve = ["mlflow", "models", "serve", "--model-uri", model_uri, "--env-manager", "local", "--host", "127.0.0.1"]
    return [
        f"model    {model_uri}: {agreement}",
        f"serve    MLFLOW_TRACKING_URI={shlex.quote(recorder.settings.uri)} {shlex.join([*serve, '--port', '5001'])}",
    ]


def _saved(module: nn.Sequential, example: NDArray[Any], place: Path) -> Any:
    """Write the model into `place/model`; it, loaded from there by MLflow (a `PyFuncModel`)."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    architecture = {"mean": MEAN, "std": STD, "layers": [_described(*named) for named in module.named_children()]}
    files = {"architecture": place / "architecture.json", "weights": place / "weights.safetensors"}
    files["architecture"].write_text(json.dumps(architecture, indent=1), encoding="utf-8")
    save_file(module.state_dict(), files["weights"])
    mlflow.pyfunc.save_model(
        place / "model",
        python_model=str(SCRIPT),
        artifacts={key: str(path) for key, path in files.items()},
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, SIDE, SIDE))]),
            Schema([TensorSpec(np.dtype(np.int64), (-1,))]),
        ),
        input_example=example,
        pip_requirements=[f"{library}=={versions()[library].partition('+')[0]}" for library in NEEDED],
    )
    return mlflow.pyfunc.load_model(str(place / "model"))


def _described(name: str, module: nn.Module) -> dict[str, Any]:
    """A layer as `served_classifier.py` makes it again: its name, its kind and the arguments of that."""
    from torch import nn

    arguments: list[Any] = []
    if isinstance(module, nn.Linear):
        arguments = [module.in_features, module.out_features]
    elif isinstance(module, nn.Conv2d):
        arguments = [module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding]
    elif isinstance(module, nn.Unflatten):
        arguments = [module.dim, module.unflattened_size]
    return {"name": name, "kind": type(module).__name__, "arguments": arguments}


def _registered(recorder: Recorder, model: Path, name: str, result: RunResult, folder: Path, agreement: str) -> str:
    """Bring the files in `model` to the registry; the new version's number."""
    from mlflow.exceptions import MlflowException

    client, run = recorder.client, recorder.known(recorded_run(folder))
    tags = {"run": result.name, "adapter_sha256": result.outcome.adapter_sha256, "agreement": agreement}
    logged = client.create_logged_model(recorder.experiment_id, name, run, tags, result.parameters())
    client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{logged.model_id}"
    made = client.create_model_version(name, source, run, tags, description=agreement, model_id=logged.model_id)
    return str(made.version)
