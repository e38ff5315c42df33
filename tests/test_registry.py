"""python -m pytest tests/test_registry.py

The classifier of a run in MLflow's model registry: it answers as the run did, loaded and served, and holds no code but
the package's own script.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from made_results import made_run, pictures_and_labels, write_run
from places import QUICK, Place, free_port
from safetensors.numpy import load_file

from lora_exp.commands.register import register
from lora_exp.errors import LoraExpError
from lora_exp.model.data import ImageData
from lora_exp.tracking.registry import SCRIPT

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove, and warns of type hints of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]
PICTURES, LABELS = pictures_and_labels()
IMAGES = PICTURES[:, 0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Place:
    """A run of each kind of classifier, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("a place")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    made = Place(folder)
    made.run(*QUICK, "finetune.digit=3", "hydra.run.dir=mlp")
    made.run("model=cnn_small", *QUICK[1:], "adapter=dora", "finetune.digit=[3,4]", "hydra.run.dir=cnn")
    return made


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_registered_model_classifies_every_test_image_as_the_run_did(
    place: Place, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    from mlflow import MlflowClient

    printed, complaints = place.run("register", kind, "--name", f"digits {kind}")
    assert complaints == ""
    uri, store = f"models:/digits {kind}/1", f"sqlite:///{place.folder}/mlflow.db"
    assert f"model    {uri}: 10000 of 10000 test images classified as in the run" in printed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    model = mlflow.pyfunc.load_model(uri)
    predicted = load_file(place.folder / kind / "predictions.safetensors")["logits"].argmax(axis=1)
    assert (model.predict(IMAGES) == predicted.astype(str)).all()
    with pytest.raises(mlflow.exceptions.MlflowException, match="uint8"):
        model.predict(IMAGES[:2].astype(np.float64) / 255)

    client = MlflowClient(store)
    version = client.get_model_version(f"digits {kind}", "1")
    run = json.loads((place.folder / kind / "mlflow.json").read_text())["run"]
    assert version.run_id == run
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (logged.source_run_id, logged.params["rank"]) == (run, "1")


def test_a_model_holds_data_and_the_packages_own_script_and_nothing_that_runs_when_it_is_read(place: Place) -> None:
    printed = [place.run("register", "mlp")[0].partition(": ")[0] for _ in range(2)]
    assert printed == ["model    models:/mnist-classifier/1", "model    models:/mnist-classifier/2"]
    folders = [path.parent for path in place.folder.glob("mlartifacts/models/*/artifacts/MLmodel")]
    assert len(folders) >= 2
    for folder in folders:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert set(files) - {"registered_model_meta"} == {  # which MLflow puts there when it loads one
            *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"),
            *("input_example.json", "serving_input_example.json"),
            *("artifacts/architecture.json", "artifacts/weights.safetensors", "served_classifier.py"),
        }
        assert files["served_classifier.py"] == SCRIPT.read_bytes()
        for name, content in files.items():
            if name.endswith(".safetensors"):
                load_file(folder / name)
            else:
                content.decode()  # text; a serialised Python object is none
        pinned = files["requirements.txt"].decode().split()
        assert [line.partition("==")[0] for line in pinned] == ["mlflow", "torch", "safetensors", "numpy"]
        assert all(re.fullmatch(r"[a-z]+==[0-9][0-9.]*", line) for line in pinned)


def answer_of(address: str, request: bytes) -> object:
    """What a served model answers."""
    posted = urllib.request.Request(f"{address}/invocations", request, {"Content-Type": "application/json"})
    with urllib.request.urlopen(posted, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.long
def test_a_served_model_answers_a_json_request(place: Place) -> None:
    printed, _ = place.run("register", "mlp", "--name", "served")
    [line] = [line for line in printed.splitlines() if line.startswith("serve ")]
    setting, *command = shlex.split(line.removeprefix("serve "))
    name, _, value = setting.partition("=")
    command[-1] = str(free_port())
    example = next(place.folder.glob("mlartifacts/models/*/artifacts/serving_input_example.json")).read_bytes()
    with (place.folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=place.folder,
            env=os.environ | {name: value, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{command[-1]}"
        for _ in range(600):
            assert server.poll() is None, (place.folder / "serve.log").read_text()
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        found = [answer_of(address, json.dumps({"inputs": IMAGES[:50].tolist()}).encode()), answer_of(address, example)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    predicted = load_file(place.folder / "mlp" / "predictions.safetensors")["logits"].argmax(axis=1)
    assert found == [{"predictions": predicted[:count].astype(str).tolist()} for count in (50, 2)]


def test_what_can_not_be_registered_is_one_line(place: Place, tmp_path: Path) -> None:
    _, err = place.run("register", "mlp", "--name", "a/b", code=2)
    assert err == "lora-exp: --name a/b: must be a name without slashes and colons, of at most 200 bytes\n"
    _, err = place.run("register", "mlp", "tracking.kind='off'", code=2)
    assert err.startswith("lora-exp: tracking.kind=off: keeps no runs") and err.count("\n") == 1
    write_run(tmp_path / "diverged", made_run(LABELS, diverged_at=5))
    with pytest.raises(LoraExpError, match="diverged at step 5"):
        register(tmp_path / "diverged", None, [])
    with pytest.raises(LoraExpError, match=r"holds no result\.json"):
        register(tmp_path, None, [])
    with pytest.raises(LoraExpError, match="--name : must be a name"):
        register(place.folder / "mlp", "", [])
