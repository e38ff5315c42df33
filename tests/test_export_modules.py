"""python -m pytest tests/test_export_modules.py

Adapters over a ResNet of torchvision and over our own transformer, outside of this package: in PEFT, by the code of the
exported README.md, read back, and as registered models. Each with processes of their own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from peft_lab import in_a_process
from places import Place, data_in
from safetensors.torch import load_file, save_file
from session_lab import in_a_session
from torchvision.models import resnet18

from lora_exp import AdaptedClassifier, load_base
from lora_exp.adapters.peft import peft_files, read_folder
from lora_exp.commands.export import export_peft
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.model import data
from lora_exp.model.architecture import LayerShape
from lora_exp.model.base import network
from lora_exp.storage.result import ADAPTER, read

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]
METHODS = ("lora", "rslora", "dora")
KINDS = {
    # In a list, PEFT would take conv1 for the conv1 of every block too.
    "resnet18": (
        (
            *("model=torchvision", "model.name=resnet18", "data.size=32", "data.channels=3"),
            *("base.weights=mine.safetensors", "base.epochs=0", "adapter.layers=[conv1,layer4.*,fc]"),
        ),
        ("++adapter.rank_pattern={conv1:2}",),
    ),
    "vit": (
        ("model=vit_tiny", "model.width=24", "model.patch=4", "base.batch_size=100"),
        ("++adapter.alpha_pattern={head:5}",),
    ),
}
# What a user of PEFT does, who hasn't lora_exp: the code in each folder's README.
LOAD = """
import os, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
images, out, *folders = [Path(argument).absolute() for argument in sys.argv[1:]]
images, said = load_file(images), {}
for folder in folders:
    os.chdir(folder)
    names = {}
    exec(Path("README.md").read_text().split("```python")[1].split("```")[0], names)
    assert "lora_exp" not in sys.modules
    with torch.no_grad():
        said[folder.name] = names["model"].eval()(images[folder.name.partition("-")[0]])
save_file(said, out)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with the weights of a ResNet whose BatchNorms have seen noise."""
    place = Place(tmp_path_factory.mktemp("modules"))
    torch.manual_seed(0)
    module = resnet18(num_classes=10)
    for _ in range(25):
        module(torch.randn(8, 3, 32, 32))
    save_file(module.state_dict(), place.folder / "mine.safetensors")
    return place


@pytest.fixture(scope="module")
def sweeps(place: Place) -> dict[str, Path]:
    """A sweep over the methods for each kind of model, with mixed ranks or alphas."""
    found = {}
    for kind, (model, patterns) in KINDS.items():
        methods = (f"adapter={','.join(METHODS)}", "adapter.rank=3", "adapter.alpha=2.0", *patterns)
        job = ("data=digits", "finetune.digit=3", "finetune.steps=8", "adapter.init=kaiming")
        place.run("-m", *model, *methods, *job, f"hydra.sweep.dir=runs/{kind}")
        found[kind] = place.folder / "runs" / kind
    return found


@pytest.fixture(scope="module")
def images(sweeps: dict[str, Path]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {kind: torch.randn(20, *read(sweep / "0").facts.shape, generator=random) for kind, sweep in sweeps.items()}


@pytest.fixture(scope="module")
def exported(place: Place, sweeps: dict[str, Path], images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What PEFT says of these images, by kind and method; the folders lie in `exported`."""
    save_file(images, place.folder / "images.safetensors")
    folders = []
    for kind, sweep in sweeps.items():
        for job, method in enumerate(METHODS):
            folders.append(place.folder / "exported" / f"{kind}-{method}")
            if job:
                export_peft(sweep / str(job), folders[-1], [f"store.folder={place.folder}/cache/store"])
            else:
                place.run("export", str(sweep / "0"), "--format", "peft", "--out", str(folders[-1]))
    in_a_process(place.folder, "-c", LOAD, "images.safetensors", "said.safetensors", *folders)
    return load_file(place.folder / "said.safetensors")


def adapted(run: Path, place: Place) -> AdaptedClassifier:
    return AdaptedClassifier.load(load_base(run, [f"store.folder={place.folder}/cache/store"]), run / ADAPTER)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_the_readme_says_in_peft_what_the_run_says(
    kind: str,
    method: str,
    place: Place,
    sweeps: dict[str, Path],
    images: dict[str, torch.Tensor],
    exported: dict[str, torch.Tensor],
) -> None:
    run, theirs = sweeps[kind] / str(METHODS.index(method)), exported[f"{kind}-{method}"]
    own = adapted(run, place)
    torch.testing.assert_close(theirs, own.logits(images[kind].flatten(1)), rtol=0, atol=1e-5)
    own.disable()
    assert float((theirs - own.logits(images[kind].flatten(1))).abs().max()) > 1e-3, "the adapter does something"
    result = read(run)
    found = read_folder(place.folder / "exported" / f"{kind}-{method}", network(result.spec.model, result.facts).layers)
    assert found.factors.keys() == own.factors.keys()
    assert all(torch.equal(found.factors[name], factor) for name, factor in own.factors.items())
    assert found.scaling == pytest.approx(own.scaling)


def test_a_name_that_ends_other_names_is_written_as_a_pattern(
    place: Place, sweeps: dict[str, Path], exported: dict[str, torch.Tensor]
) -> None:
    def written(kind: str) -> tuple[dict[str, Any], set[str]]:
        config = json.loads((place.folder / "exported" / f"{kind}-lora" / "adapter_config.json").read_text())
        factors = adapted(sweeps[kind] / "0", place).factors
        return config, {name.removesuffix(".A") for name in factors if name.endswith(".A")}

    config, layers = written("resnet18")
    targets = config["target_modules"].split("|")
    assert targets[0] == "conv1" and {name.replace(r"\.", ".") for name in targets} == layers
    assert "layer1.0.conv1" not in layers and config["rank_pattern"] == {"^conv1": 2}
    config, layers = written("vit")
    assert set(config["target_modules"]) == layers and config["alpha_pattern"] == {"head": 5.0}
    assert (place.folder / "exported" / "vit-lora" / "vit.py").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_registered_model_agrees_with_the_run(
    kind: str, place: Place, sweeps: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    swept = sweeps[kind]
    told = place.run("register", str(swept / "2"), "--name", swept.name)[0]
    result = read(swept / "2")
    pixels = data.load(result.spec.data, data_in(tmp_path)(result.spec.data), torch.device("cpu")).test.images
    count = len(pixels)
    assert f"{count} of {count} test images classified as in the run" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.folder}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{swept.name}/1")
    some = pixels.pixels[:50].view(-1, *result.facts.shape)
    given = some[:, 0] if result.facts.shape[0] == 1 else some.movedim(1, -1)
    expected = adapted(swept / "2", place).logits(pixels[:50]).argmax(1)
    assert model.predict(given.numpy()).tolist() == [result.facts.classes[label] for label in expected]


def test_products_of_torchs_attention_are_refused_by_name_and_other_layers_are_not() -> None:
    facts = replace(MNIST, shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    layers = network(ModelSpec(kind="torchvision", name="vit_b_32"), facts).layers
    block = "encoder.layers.encoder_layer_3"
    attention, others = [
        [layer for layer in layers if layer.name.startswith(block) and layer.in_attention is inside]
        for inside in (True, False)
    ]
    products = [f"{block}.self_attention.{name}" for name in ("q", "k", "v", "out_proj")]
    assert [layer.name for layer in attention] == products and [layer.name for layer in others] == [
        f"{block}.mlp.0",
        f"{block}.mlp.3",
    ]

    def files(adapted: list[LayerShape]) -> dict[str, bytes]:
        factors = {f"{layer.name}.A": torch.ones(2, layer.inputs) for layer in adapted}
        factors |= {f"{layer.name}.B": torch.ones(layer.outputs, 2) for layer in adapted}
        return peft_files(factors, dict.fromkeys((layer.name for layer in adapted), 0.5), layers, 0.0)

    assert json.loads(files(others)["adapter_config.json"])["target_modules"] == [layer.name for layer in others]
    for layer in attention:
        with pytest.raises(ValueError, match=f"^{layer.name}: is one product of an nn.MultiheadAttention, which PEFT"):
            files([*others, layer])


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, str]]:
    """What exporting a run over a module of a session says, in that session and in another process."""
    place = Place(tmp_path_factory.mktemp("attending"))
    return place, in_a_session(place, ATTENTION)[0]


def test_a_run_that_adapts_attention_is_refused_with_the_command_that_merges_it(
    attending: tuple[Place, dict[str, str]],
) -> None:
    _, told = attending
    of_attention = "attention.q: is one product of an nn.MultiheadAttention, which PEFT adapts only as a whole"
    assert told["all"] == f"{told['run']}: {of_attention}; use lora-exp merge {told['run']}"


def test_another_process_does_not_know_the_module_of_a_session(attending: tuple[Place, dict[str, str]]) -> None:
    place, told = attending
    for command in ("export", "merge", "register"):
        err = place.run(command, told["run"], code=2)[1]
        assert err.startswith("lora-exp: model.name=Attending-") and err.count("\n") == 1
        assert err.endswith(": is a module of a Python session; run lora_exp.sweep(module=...) with it again\n")
    assert place.run("store", "verify")


ATTENTION = """
from lora_exp.commands.export import export_peft

class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        rows = x.flatten(1, 2)
        return self.head(self.attention(rows, rows, rows)[0].flatten(1))

told["run"] = str(Path(lora_exp.sweep(Attending(), **base).frame["folder"][0]))
try:
    export_peft(Path(told["run"]), None, [])
except LoraExpError as error:
    told["all"] = str(error)
print(json.dumps(told))
"""
