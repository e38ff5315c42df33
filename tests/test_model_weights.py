"""python -m pytest tests/test_model_weights.py

Weights that another program trained: a ResNet of torchvision on enlarged digits in colour.
Used as they are, trained further, with a new head, and refused in words when they don't fit.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forkserver
import pytest
import torch
from places import Place, data_in
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from lora_exp import load_base
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import BaseSpec, DataSpec, from_dict, spec_from
from lora_exp.config.weights import weights_sha256
from lora_exp.errors import LoraExpError
from lora_exp.model import data
from lora_exp.model.data import ImageData
from lora_exp.model.weights import read_weights
from lora_exp.storage.result import RunResult, read

pytestmark = pytest.mark.usefixtures("one_thread")
State = dict[str, torch.Tensor]
DATA = ("data=digits", "data.size=32", "data.channels=3")
MODEL = ("model=torchvision", "model.name=resnet18")
JOB = ("adapter.layers=[fc]", "finetune.digit=3", "finetune.steps=2", "tracking=off")
RESNET, AS_IT_IS = ModelSpec(kind="torchvision", name="resnet18"), BaseSpec(epochs=0)
HEAD = {"fc.weight", "fc.bias"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def theirs(place: Place) -> nn.Module:
    """A ResNet that plain torch trained for a few steps, in the file `mine.safetensors` too."""
    torch.set_num_threads(1)
    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    labels = torch.tensor(found.target)
    torch.manual_seed(0)
    module = resnet18(num_classes=10)
    adam = torch.optim.Adam(module.parameters())
    for at in torch.randint(0, len(labels), (8, 40)):
        adam.zero_grad()
        functional.cross_entropy(module(functional.interpolate(images[at], (32, 32))), labels[at]).backward()
        adam.step()
    save_file(module.state_dict(), place.folder / "mine.safetensors")
    return module.eval()


@pytest.fixture(scope="module")
def run(place: Place, theirs: nn.Module) -> Path:
    """A run over these weights as they are."""
    place.run(*DATA, *MODEL, "base.weights=mine.safetensors", "base.epochs=0", *JOB, "hydra.run.dir=runs/run")
    return place.folder / "runs" / "run"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    spec = DataSpec("digits", size=(32, 32), channels=3)
    return data.load(spec, data_in(tmp_path_factory.mktemp("data"))(spec), torch.device("cpu"))


def written(folder: Path, state: Mapping[str, torch.Tensor], name: str = "own.safetensors") -> tuple[Path, str]:
    """A file of weights, and its hash."""
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return folder / name, weights_sha256(str(folder / name))


def state_in(run: Path, place: Place) -> State:
    return dict(load_base(run, [f"store.folder={place.folder}/cache/store"]).state)


def base_logits(folder: Path, result: RunResult) -> torch.Tensor:
    """What the store holds of a run's base: its logits for the test images."""
    [entry] = [
        path.parent
        for path in folder.glob("cache/store/bases/*/*/sha256.txt")
        if path.read_text() == result.outcome.base_sha256_before
    ]
    return load_file(entry / "predictions.safetensors")["test_logits"]


def test_the_base_says_what_the_module_says_and_has_its_bits(
    run: Path, place: Place, theirs: nn.Module, digits: ImageData
) -> None:
    own = base_logits(place.folder, read(run))
    with torch.no_grad():
        expected = theirs(digits.test.images[:].view(-1, 3, 32, 32))
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    state = state_in(run, place)
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    assert read(run).outcome.base_unchanged and read(run).outcome.adapter_off_equals_base


def test_another_running_mean_is_another_base(run: Path, place: Place, theirs: nn.Module) -> None:
    changed = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    changed["layer2.0.bn1.running_mean"][3] += 1e-3
    written(place.folder, changed, "changed.safetensors")
    command = [*DATA, *MODEL, "base.weights=changed.safetensors", "base.epochs=0", *JOB]
    place.run(*command, "hydra.run.dir=runs/changed")
    before, after = read(run), read(place.folder / "runs" / "changed")
    assert before.outcome.base_sha256_before != after.outcome.base_sha256_before
    assert before.spec.key != after.spec.key and before.spec.base_spec_key != after.spec.base_spec_key


def test_training_goes_on_from_the_weights(place: Place, theirs: nn.Module) -> None:
    more = ("base.epochs=1", "base.batch_size=100", "data.limit=200", "hydra.run.dir=runs/further")
    place.run(*DATA, *MODEL, "base.weights=mine.safetensors", *JOB, *more)
    before, after = theirs.state_dict(), state_in(place.folder / "runs" / "further", place)
    assert after["bn1.num_batches_tracked"] == before["bn1.num_batches_tracked"] + 2
    moved = (after["conv1.weight"] - before["conv1.weight"]).abs().max()
    assert 0 < float(moved) < 0.01  # two steps of Adam of 1e-3 each


def config_with(place: Place, **base: Any) -> dict[str, Any]:
    own = {"weights": str(place.folder / "mine.safetensors"), "epochs": 0, **base}
    data = {"name": "digits", "size": 32, "channels": 3}
    model = {"kind": "torchvision", "name": "resnet18"}
    return {"model": model, "data": data, "base": own, "adapter": {}, "finetune": {"target": 3}}


def test_where_the_file_lies_and_how_no_base_is_trained_change_nothing(run: Path, place: Place) -> None:
    made, spec = place.results_made(), read(run).spec
    (place.folder / "elsewhere").mkdir()
    shutil.copy(place.folder / "mine.safetensors", place.folder / "elsewhere" / "renamed.safetensors")
    moved = ("base.weights=elsewhere/renamed.safetensors", "base.epochs=0", "base.seed=7", "base.batch_size=3")
    place.run(*DATA, *MODEL, *moved, *JOB, "hydra.run.dir=runs/moved")
    assert place.results_made() == made and sum(made.values()) >= 1
    assert read(place.folder / "runs" / "moved").spec == spec
    assert spec_from(config_with(place)) == spec_from(config_with(place, seed=7, learning_rate=0.1, trained="head"))
    assert spec_from(config_with(place, epochs=1)) != spec_from(config_with(place, epochs=1, seed=7))
    assert spec.base.weights == weights_sha256(str(place.folder / "mine.safetensors"))
    assert from_dict(json.loads((run / "result.json").read_text())["spec"]) == spec


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


def with_value(name: str, value: torch.Tensor) -> Callable[[State], Any]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (without("layer1.0.bn1.running_var"), "are not weights of resnet18: missing layer1.0.bn1.running_var"),
        (with_value("module.extra", torch.ones(2)), "are not weights of resnet18: superfluous module.extra"),
        (
            with_value("conv1.weight", torch.ones(64, 1, 7, 7)),
            "are not weights of resnet18: conv1.weight is [64, 1, 7, 7] and must be [64, 3, 7, 7]",
        ),
        (
            with_value("bn1.bias", torch.ones(64, dtype=torch.int64)),
            "are not weights of resnet18: bn1.bias is int64 and must be a float",
        ),
        (with_value("bn1.running_mean", torch.full((64,), torch.nan)), "bn1.running_mean holds values that are not"),
        (with_value("fc.bias", torch.full((10,), torch.inf)), "fc.bias holds values that are not finite"),
        (
            lambda state: [state.pop(f"layer{at}.0.conv1.weight") for at in (1, 2, 3, 4)],
            "missing layer1.0.conv1.weight, layer2.0.conv1.weight, layer3.0.conv1.weight, and 1 more",
        ),
        (with_value("fc.weight", torch.ones(7, 512)), "must be [10, 512]; base.head=new gives it a new last layer"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    damage: Callable[[State], Any], line: str, theirs: nn.Module, digits: ImageData, tmp_path: Path
) -> None:
    state = dict(theirs.state_dict())
    damage(state)
    file, sha256 = written(tmp_path, state)
    with pytest.raises(LoraExpError) as refused:
        read_weights(file, RESNET, BaseSpec(epochs=0, weights=sha256), digits.facts)
    assert str(refused.value).startswith(f"base.weights={file}: ") and line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_half_precision_is_widened(theirs: nn.Module, digits: ImageData, tmp_path: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in theirs.state_dict().items()}
    file, sha256 = written(tmp_path, half)
    found = read_weights(file, RESNET, BaseSpec(epochs=0, weights=sha256), digits.facts)
    assert found["conv1.weight"].dtype == torch.float32 and found["bn1.num_batches_tracked"].dtype == torch.int64
    assert all(torch.equal(found[name], tensor.to(found[name].dtype)) for name, tensor in half.items())


def test_weights_for_other_classes_work_with_a_new_head_and_nothing_else_changes(
    place: Place, theirs: nn.Module, digits: ImageData
) -> None:
    seven = {**theirs.state_dict(), "fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}
    written(place.folder, seven, "seven.safetensors")
    command = [*DATA, *MODEL, "base.weights=seven.safetensors", *JOB]
    err = place.run(*command, "base.epochs=0", code=2)[1]
    assert err.count("\n") == 1 and err.endswith("must be [10]; base.head=new gives it a new last layer\n")
    err = place.run(*command, "base.epochs=0", "base.head=new", code=2)[1]
    advice = "the new head must be trained; use base.epochs=1, base.trained=head"
    assert err == f"lora-exp: base.head=new: {advice}\n"
    told = ("base.head=new", "base.epochs=1", "base.trained=head", "base.batch_size=100")
    place.run(*command, *told, "hydra.run.dir=runs/seven")
    found = state_in(place.folder / "runs" / "seven", place)
    assert found["fc.weight"].shape == (10, 512)
    assert all(torch.equal(found[name], tensor) for name, tensor in seven.items() if name not in HEAD)
    file = place.folder / "seven.safetensors"
    heads = [
        read_weights(file, RESNET, BaseSpec(weights=weights_sha256(str(file)), head="new", seed=seed), digits.facts)
        for seed in (0, 1)
    ]
    assert torch.equal(heads[0]["conv1.weight"], heads[1]["conv1.weight"])
    assert not torch.equal(heads[0]["fc.weight"], heads[1]["fc.weight"])


@pytest.mark.parametrize("name", ["mine.pt", "it's my $HOME.pth"])
def test_a_pickled_state_dict_is_refused_with_a_command_that_converts_it(
    name: str, theirs: nn.Module, place: Place, tmp_path: Path
) -> None:
    torch.save(theirs.state_dict(), tmp_path / name)
    overrides = [*DATA, *MODEL, f'base.weights="{name}"', "base.epochs=0", *JOB]
    done = forkserver.run(overrides, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"lora-exp: base.weights={name}: is in a format that can run code")
    command = done.stderr[done.stderr.index("python -c ") :]
    script = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; {command}'
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    [made] = tmp_path.glob("*.safetensors")
    assert made.stem == Path(name).stem
    assert weights_sha256(str(made)) == weights_sha256(str(place.folder / "mine.safetensors"))


def test_what_is_no_file_of_weights_is_refused(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    text = str(tmp_path / "text.safetensors")
    with pytest.raises(LoraExpError, match=r"text\.safetensors: can't be read \("):
        read_weights(Path(text), RESNET, BaseSpec(epochs=0, weights=weights_sha256(text)), digits.facts)
    for name, says in {
        "none.safetensors": r"none\.safetensors: can't be read \(No such file or directory\)$",
        "mine.npz": r"mine\.npz: must be a \.safetensors file that holds a state dict$",
        "": "must be a .safetensors file",
    }.items():
        with pytest.raises(LoraExpError, match=says):
            weights_sha256(str(tmp_path / name))


def test_a_base_that_is_not_trained_needs_weights() -> None:
    with pytest.raises(LoraExpError, match=r"^base\.epochs=0: needs weights, as base\.weights=FILE\.safetensors$"):
        AS_IT_IS.check()
    with pytest.raises(LoraExpError, match=r"^base\.head=new: needs weights, as base\.weights=FILE\.safetensors$"):
        BaseSpec(head="new").check()
