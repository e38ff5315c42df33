"""Put a classifier into MLflow's model registry as plain data and one script of this package.

A model holds weights in safetensors, the architecture in JSON, and a copy of `served_classifier.py`, which MLflow runs
to load the model. It holds no serialised Python object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.models import LIBRARIES
from lora_exp.storage.result import RunResult
from lora_exp.tracking.connection import translated_errors
from lora_exp.tracking.recorder import Recorder

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCRIPT = Path(__file__).with_name("served_classifier.py")
REQUIREMENTS = ("mlflow", "torch", "safetensors", "numpy")


def save_model(
    folder: Path, architecture: Mapping[str, Any], weights: bytes, example: NDArray[Any], code: Sequence[Path] = ()
) -> Any:
    """Write a model into `folder`/model; return it as MLflow loads it from there (an `mlflow.pyfunc.PyFuncModel`).

    `architecture` holds `classes`, `shape`, `mean` and `std` by channel, and either the `layers`, each with `name`,
    `kind` and `arguments` (see `served_classifier.KINDS`), or the `kind` and `arguments` of a model of a library.
    `weights` is a state dict in safetensors, `example` are images uint8, [N, H, W] or [N, H, W, C]; `code` are files
    that the model needs.
    """
    needed = [*REQUIREMENTS, *(kind for kind in LIBRARIES if kind == architecture.get("kind"))]
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    files = {"architecture": folder / "architecture.json", "weights": folder / "weights.safetensors"}
    files["architecture"].write_text(json.dumps(architecture, indent=1), encoding="utf-8")
    files["weights"].write_bytes(weights)
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=str(SCRIPT),
        artifacts={key: str(path) for key, path in files.items()},
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))]),
            Schema([TensorSpec(np.dtype(np.str_), (-1,))]),
        ),
        input_example=example,
        code_paths=list(map(str, code)) or None,
        pip_requirements=[f"{library}=={version(library).partition('+')[0]}" for library in needed],
    )
    return mlflow.pyfunc.load_model(str(folder / "model"))


def register_model(
    recorder: Recorder, folder: Path, name: str, result: RunResult, run: str | None, agreement: str
) -> str:
    """Upload the model that `save_model` wrote into `folder` as the next version of `name`; return the version.

    `run` is the id of the recorded run of `result`, if known. Raises LoraExpError when the store can't be written to.
    """
    from mlflow.exceptions import MlflowException

    client, source_run = recorder.client, run if run and recorder.has(run) else None
    with translated_errors(recorder.settings.uri):
        tags = {"run": result.name, "adapter_sha256": result.outcome.adapter_sha256, "agreement": agreement}
        logged = client.create_logged_model(recorder.experiment_id, name, source_run, tags, result.parameters())
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
        client.finalize_logged_model(logged.model_id, "READY")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"models:/{logged.model_id}"
        made = client.create_model_version(
            name, source, source_run, tags, description=agreement, model_id=logged.model_id
        )
    return str(made.version)
