"""pytest tests/test_model_base.py"""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import SMALL
from torch import nn
from torch.nn import functional

from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import BaseSpec
from lora_exp.model.base import BaseModel, assemble, layer_table, network, train
from lora_exp.model.data import ImageData, Split
from lora_exp.numerics import generator

REFERENCE = ModelSpec((1000, 2000))
HOW = BaseSpec(batch_size=10, seed=3)


@pytest.fixture(scope="module")
def some(mnist: ImageData) -> Split:
    """405 images: the last batch of ten is half full."""
    return mnist.train.where(slice(405))


def sequential(model: BaseModel) -> nn.Sequential:
    """The same classifier as any PyTorch user would write it."""
    parts: list[nn.Module] = []
    for layer in model.layers:
        linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
        linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*(parts if model.network.is_rectified(len(model.layers) - 1) else parts[:-1]))


def test_the_reference_model_has_2807010_parameters() -> None:
    model = assemble(REFERENCE, MNIST, network(REFERENCE, MNIST).initial(0))
    assert model.parameters == 2_807_010
    assert [tuple(layer.weight.shape) for layer in model.layers] == [(1000, 784), (2000, 1000), (10, 2000)]
    assert [layer.name for layer in model.layers] == ["linear1", "linear2", "linear3"]


def test_a_model_without_hidden_layers_is_one_layer() -> None:
    spec = ModelSpec(())
    model = assemble(spec, MNIST, network(spec, MNIST).initial(0))
    assert model.parameters == 7850
    assert model.forward.logits(torch.zeros(3, 784)).shape == (3, 10)


def test_the_layer_table_counts_base_and_adapter() -> None:
    model = assemble(REFERENCE, MNIST, network(REFERENCE, MNIST).initial(0))
    table = layer_table(model, [1784, 3000, 2010])
    assert [(row["layer"], row["shape"], row["base"], row["adapter"]) for row in table] == [
        ("linear1", [1000, 784], 785_000, 1784),
        ("linear2", [2000, 1000], 2_002_000, 3000),
        ("linear3", [10, 2000], 20_010, 2010),
    ]
    assert table[2]["overhead_percent"] == 100 * 2010 / 20_010


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("linear1.weight", torch.zeros(784, 96), "must be a float32 tensor of shape (96, 784)"),
        ("linear2.bias", torch.zeros(64, 1), "must be a float32 tensor of shape (64,)"),
        ("linear3.bias", torch.zeros(10, dtype=torch.float64), "must be a float32 tensor of shape (10,)"),
        ("linear3.weight", torch.zeros(10, 64).half(), "must be a float32 tensor of shape (10, 64)"),
        ("linear2.weight", torch.full((64, 96), torch.nan), "holds values that are not finite"),
        ("linear1.bias", torch.full((96,), -torch.inf), "holds values that are not finite"),
        ("linear2.weight", None, "must be a float32 tensor of shape (64, 96)"),
    ],
)
def test_wrong_weights_are_refused(part: str, wrong: torch.Tensor | None, message: str) -> None:
    tensors = network(SMALL, MNIST).initial(0)
    if wrong is None:
        del tensors[part]
    else:
        tensors[part] = wrong
    with pytest.raises(ValueError, match="^" + re.escape(f"{part} {message}") + "$"):
        assemble(SMALL, MNIST, tensors)


def test_initial_weights_are_uniform_in_the_range_of_linear_layers() -> None:
    drawn = network(REFERENCE, MNIST).initial(0)
    random_before = torch.get_rng_state()
    for name, inputs in (("linear1", 784), ("linear2", 1000), ("linear3", 2000)):
        outputs = len(drawn[f"{name}.bias"])
        torchs = nn.Linear(inputs, outputs)
        bound = 1 / math.sqrt(inputs)
        for part in ("weight", "bias"):
            ours, theirs = drawn[f"{name}.{part}"], getattr(torchs, part).detach()
            assert ours.shape == theirs.shape
            assert float(ours.abs().max()) <= bound * (1 + 1e-6)
            if ours.numel() >= 1000:
                assert float(ours.abs().max()) > 0.99 * bound
                assert abs(float(ours.mean())) < 5 * bound / math.sqrt(3 * ours.numel())
                assert float(ours.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
                assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.05)
    torch.set_rng_state(random_before)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = network(SMALL, MNIST).initial(0)
    torch.manual_seed(2)
    same, other = network(SMALL, MNIST).initial(0), network(SMALL, MNIST).initial(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("rectify", [False, True])
def test_plain_logits_are_those_of_a_sequential(mnist: ImageData, rectify: bool) -> None:
    spec = ModelSpec((96, 64), rectify_logits=rectify)
    model = assemble(spec, MNIST, network(spec, MNIST).initial(0))
    images = mnist.test.images[:50]
    kept = images.clone()
    with torch.no_grad():
        assert torch.equal(model.forward.logits(images), sequential(model)(images))
    assert torch.equal(images, kept)
    assert bool((model.forward.logits(images) < 0).any()) is not rectify


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("rectify", [False, True])
def test_training_gives_the_bits_of_a_plain_torch_loop(some: Split, rectify: bool) -> None:
    spec = ModelSpec((96, 64), rectify_logits=rectify)
    how = BaseSpec(epochs=2, batch_size=10, learning_rate=2e-3, seed=3)
    plain = sequential(assemble(spec, MNIST, network(spec, MNIST).initial(how.seed)))
    optimizer = torch.optim.Adam(plain.parameters(), lr=2e-3, fused=True)
    order = generator("base order", how.seed)
    for _ in range(2):
        shuffled = torch.randperm(405, generator=order)
        for start in range(0, 405, 10):
            batch = shuffled[start : start + 10]
            optimizer.zero_grad()
            functional.cross_entropy(plain(some.images[batch]), some.labels[batch]).backward()
            optimizer.step()
    trained = train(spec, how, some)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(trained.state.values(), plain.state_dict().values(), strict=True)
    )
    assert not any(tensor.requires_grad for tensor in trained.state.values())


def test_two_trainings_give_the_same_bits_and_another_seed_gives_others(some: Split) -> None:
    first = train(SMALL, HOW, some).sha256()
    assert train(SMALL, HOW, some).sha256() == first
    assert train(SMALL, BaseSpec(batch_size=10, seed=4), some).sha256() != first


def test_one_or_two_threads_give_the_same_base_where_batches_are_full(some: Split) -> None:
    before = torch.get_num_threads()
    hashes = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        hashes.add(train(SMALL, HOW, some.where(slice(400))).sha256())
    torch.set_num_threads(before)
    assert len(hashes) == 1


def test_the_small_base_has_learned(mnist: ImageData, small_base: BaseModel) -> None:
    guessed = small_base.forward.logits(mnist.test.images[:]).argmax(1)
    assert float((guessed == mnist.test.labels).double().mean()) > 0.85


def test_the_hash_tells_any_change_of_any_weight(small_base: BaseModel) -> None:
    hashes = {small_base.sha256()}
    for name, tensor in small_base.state.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1e-3
        hashes.add(assemble(SMALL, MNIST, {**small_base.state, name: changed}).sha256())
    assert len(hashes) == 1 + 6
    assert assemble(SMALL, MNIST, small_base.state).sha256() in hashes


def test_a_base_that_diverges_is_an_error_that_names_the_key(some: Split) -> None:
    with pytest.raises(FloatingPointError, match=r"lower base\.learning_rate"):
        train(SMALL, BaseSpec(learning_rate=1e30), some)
