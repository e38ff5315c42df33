"""python -m pytest tests/test_model_builders.py

Models of torchvision and timm by name, and our own Vision Transformer: looked up, built for the images at hand, refused
in words where that can't be, and built again from their recipe. No test reaches the network.
"""

from __future__ import annotations

import importlib
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import forkserver
import pytest
import torch
from torch import nn

from lora_exp.config.images import MNIST, ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.base import network
from lora_exp.model.builders import build, recipe

pytestmark = pytest.mark.usefixtures("offline", "one_thread")
# Kind of a model -> the module and the function that others build it with.
BUILDERS = {
    "vit": ("lora_exp.model.vit", "VisionTransformer"),
    "torchvision": ("torchvision.models", "get_model"),
    "timm": ("timm", "create_model"),
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection can be opened, and torch's own function for weights of others fails."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("asked for something from the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)


def images_of(shape: tuple[int, int, int], classes: int = 10) -> ImageFacts:
    channels = (0.5,) * shape[0]
    return replace(MNIST, shape=shape, classes=tuple(map(str, range(classes))), mean=channels, std=channels)


def says(kind: str, name: str, shape: tuple[int, int, int]) -> str:
    """What is said, in one line, of a model that can't be had."""
    with pytest.raises(LoraExpError) as refused:
        network(ModelSpec(kind=kind, name=name), images_of(shape))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("torchvision", "resnet8", "resnet18"),
        ("torchvision", "ResNet18", "resnet18"),
        ("timm", "vit_tiny_patch16_22", "vit_tiny_patch16_224"),
        ("timm", "resnet18.a1_in1k", "resnet18"),  # the name of weights that would be downloaded
    ],
)
def test_a_name_that_is_unknown_gets_its_neighbours(kind: str, name: str, meant: str) -> None:
    line = says(kind, name, (3, 32, 32))
    assert line.startswith(f"model.name={name}: no such model; did you mean ") and meant in line


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["hf_hub:x/y", "hf-hub:timm/resnet18.a1_in1k", "local-dir:/models/x", "os.system"])
def test_what_is_not_in_the_registry_is_refused_and_never_called(kind: str, name: str) -> None:
    assert says(kind, name, (3, 32, 32)).startswith(f"model.name={name}: no such model; ")


@pytest.mark.parametrize("name", ["fcn_resnet50", "quantized_resnet18", "raft_small"])
def test_models_of_torchvision_that_classify_no_images_are_unknown(name: str) -> None:
    assert says("torchvision", name, (3, 32, 32)).startswith(f"model.name={name}: no such model")


def test_torchvision_wants_three_channels_and_says_which_key_makes_them() -> None:
    assert says("torchvision", "resnet18", MNIST.shape) == (
        "model.name=resnet18: takes images of 3 channels, and these have 1; use data.channels=3"
    )


def test_transformers_of_torchvision_want_square_images() -> None:
    line = says("torchvision", "vit_b_16", (3, 32, 48))
    assert line == "model.name=vit_b_16: takes square images, and these are 32 x 48; use data.size"
    kind, arguments = recipe(ModelSpec(kind="torchvision", name="vit_b_16"), images_of((3, 32, 32), 7))
    assert kind == "torchvision"
    assert arguments == {"name": "vit_b_16", "weights": None, "num_classes": 7, "image_size": 32}


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("torchvision", "inception_v3", (3, 32, 32)),
        ("torchvision", "squeezenet1_1", (3, 8, 8)),
        ("timm", "convnext_atto", (1, 8, 8)),
        ("timm", "vit_tiny_patch16_224", (1, 8, 8)),
    ],
)
def test_images_too_small_for_a_model_are_refused_with_the_key_that_enlarges_them(
    kind: str, name: str, shape: tuple[int, int, int]
) -> None:
    line, (channels, height, width) = says(kind, name, shape), shape
    shown = f"{height} x {width} with {channels} channel{'s' if channels > 1 else ''}"
    assert line.startswith(f"model.name={name}: can't take images of {shown} (")
    assert line.endswith("data.size and data.channels change the images")


def test_a_size_that_a_model_can_not_be_built_for_is_refused_in_the_same_words() -> None:
    line = says("torchvision", "maxvit_t", (3, 32, 32))
    assert line.startswith("model.name=maxvit_t: can't be built for images of 32 x 32 with 3 channels (Input size")
    assert line.endswith("data.size and data.channels change the images")


@pytest.mark.parametrize(
    ("name", "shape", "is_told_the_size"),
    [
        ("resnet18", (1, 20, 31), False),
        ("convnext_atto", (2, 33, 32), False),
        ("vit_tiny_patch16_224", (1, 32, 48), True),
        ("vit_tiny_patch16_224", (1, 17, 40), True),
    ],
)
def test_timm_takes_grey_images_of_any_size(name: str, shape: tuple[int, int, int], is_told_the_size: bool) -> None:
    spec, facts = ModelSpec(kind="timm", name=name), images_of(shape, 4)
    _, arguments = recipe(spec, facts)
    assert arguments["pretrained"] is False and arguments["in_chans"] == shape[0] and arguments["num_classes"] == 4
    assert arguments.get("img_size") == (shape[1:] if is_told_the_size else None)
    form = network(spec, facts)
    assert form.layers[-1].outputs == 4 and form.layers[0].torch_shape[1] == shape[0]
    with torch.no_grad():
        assert form.module(form.initial(0))(torch.rand(3, *shape)).shape == (3, 4)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (ModelSpec(kind="vit"), (1, 28, 28)),
        (ModelSpec(kind="vit", patch=5, width=12, blocks=1, heads=3), (3, 9, 14)),
        (ModelSpec(kind="torchvision", name="resnet18"), (3, 32, 32)),
        (ModelSpec(kind="torchvision", name="googlenet"), (3, 32, 32)),
        (ModelSpec(kind="timm", name="resnet18"), (1, 20, 31)),
        (ModelSpec(kind="timm", name="vit_tiny_patch16_224"), (1, 32, 48)),
    ],
    ids=lambda given: given.label if isinstance(given, ModelSpec) else "",
)
def test_a_recipe_builds_the_same_architecture_again(spec: ModelSpec, shape: tuple[int, int, int]) -> None:
    facts = images_of(shape, 6)
    kind, arguments = recipe(spec, facts)
    place, builder = BUILDERS[kind]
    again = getattr(importlib.import_module(place), builder)(**arguments)
    assert shapes_of(again) == shapes_of(build(spec, facts))
    form = network(spec, facts)
    assert {name: tuple(shape) for name, shape in shapes_of(again).items()} == {
        name: own.shape for name, own in form.state.items()
    }
    again.load_state_dict(form.initial(1))
    images = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), form.module(form.initial(1))(images))


def test_our_transformer_has_each_product_as_a_layer_of_its_own() -> None:
    names = [layer.name for layer in network(ModelSpec(kind="vit"), MNIST).layers]
    block = ("q", "k", "v", "projection", "up", "down")
    assert names == ["patches", *(f"blocks.{at}.{name}" for at in (0, 1) for name in block), "head"]


def test_without_timm_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        LoraExpError, match=r"^model=timm: needs the library; in the checkout of lora-exp: pip install -e '\.\[timm\]'$"
    ):
        build(ModelSpec(kind="timm", name="resnet18"), MNIST)


def test_a_command_with_such_a_model_ends_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # commands run in forks of a server, to which this process connects
    for model, line in {
        ("model=torchvision", "model.name=resnet8", "data.channels=3"): "model.name=resnet8: no such model; did you",
        ("model=torchvision", "model.name=resnet18"): "model.name=resnet18: takes images of 3 channels",
        ("model=timm", "model.name='hf_hub:x/y'"): "model.name=hf_hub:x/y: ",
    }.items():
        done = forkserver.run(["data=digits", *model, "tracking=off"], tmp_path)
        assert done.returncode == 2 and done.stderr.startswith(f"lora-exp: {line}"), done
        assert done.stderr.count("\n") == 1 and not [*tmp_path.glob("runs/*/*/*")]
