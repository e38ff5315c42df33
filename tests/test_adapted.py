"""python -m pytest tests/test_adapted.py"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, MakeJob, TrainPack, constants_of

from lora_exp.adapters.adapted import AdaptedClassifier
from lora_exp.config.images import MNIST, ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, FinetuneSpec
from lora_exp.model.base import BaseModel, network
from lora_exp.model.base import assemble as assemble_base
from lora_exp.model.data import ImageData, Images
from lora_exp.training.evaluation import predict_pack

SPEC = AdapterSpec(rank=3, alpha=2.0, init_std=0.3)
SCALING = {layer.name: 2.0 / 3 for layer in network(SMALL, MNIST).layers}
Trained = tuple[AdaptedClassifier, dict[str, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def trained(make_job: MakeJob, train_pack: TrainPack, small_base: BaseModel, mnist: ImageData) -> Trained:
    """An adapter trained in a pack, and the predictions of the pack for the test images."""
    pack = train_pack([make_job(SPEC, FinetuneSpec((4,), steps=30))]).pack
    [factors] = pack.factors(network(SMALL, MNIST).layers)
    [predictions] = predict_pack(small_base, pack, mnist.test, constants_of(small_base, mnist.test.images))
    return AdaptedClassifier(small_base, factors, SCALING, MNIST), factors, predictions.predicted


def test_it_predicts_what_the_pack_that_trained_it_predicts(trained: Trained, mnist: ImageData) -> None:
    adapted, _, predicted = trained
    assert torch.equal(adapted.logits(mnist.test.images[:]).argmax(1).to(torch.uint8), predicted)


def test_bytes_and_normalised_floats_in_any_order_of_axes_are_classified_alike(
    trained: Trained, mnist: ImageData
) -> None:
    adapted, _, predicted = trained
    pixels, floats = mnist.test.images.pixels[:1500], mnist.test.images[:1500]
    predicted = predicted[:1500]
    names = np.array(MNIST.classes)[predicted.numpy()]
    for form in ((28, 28), (1, 28, 28), (28, 28, 1), (784,)):
        assert (adapted.predict(pixels.view(-1, *form)) == names).all()
        assert (adapted.predict(pixels.view(-1, *form).numpy()) == names).all()
        assert (adapted.predict(floats.view(-1, *form)) == names).all()
    assert torch.equal(adapted(pixels.view(-1, 28, 28)).argmax(1), predicted)
    assert (adapted.predict(floats.double().numpy()) == names).all()
    assert adapted.predict(pixels[:0]).shape == (0,) and adapted(pixels[:0]).shape == (0, 10)


def test_channels_come_first_or_last() -> None:
    facts = ImageFacts((3, 4, 5), ("cat", "dog"), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    spec = ModelSpec(())
    base = assemble_base(spec, facts, network(spec, facts).initial(0))
    adapted = AdaptedClassifier(base, {}, {}, facts)
    pixels = torch.randint(0, 256, (40, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = adapted(pixels)
    assert torch.equal(found, adapted.logits(Images(pixels.flatten(1), facts)[:]))
    assert torch.equal(adapted(pixels.movedim(1, -1)), found)
    assert set(adapted.predict(pixels)) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (np.zeros((28, 28), np.uint8), r"the shape \[28, 28\].* one image is image\[None\]"),
        (np.zeros((2, 27, 28), np.uint8), r"the shape \[2, 27, 28\]; must be \[N, 1, 28, 28\] or .* \[N, 28, 28\]"),
        (np.zeros((2, 28, 28), np.int64), "are int64; must be uint8"),
        (np.full((2, 28, 28), 255.0), "have values of 255; floats must be normalised"),
        (np.full((2, 28, 28), np.nan), "have values of nan; floats must be normalised"),
    ],
)
def test_what_is_no_batch_of_images_is_refused_in_one_line(trained: Trained, given: object, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        trained[0].predict(given)
    assert "\n" not in str(caught.value)


def test_without_the_facts_of_its_images_it_classifies_none(trained: Trained, small_base: BaseModel) -> None:
    with pytest.raises(ValueError, match="facts: missing"):
        AdaptedClassifier(small_base, trained[1], SCALING).predict(np.zeros((2, 28, 28), np.uint8))


def test_disabled_it_is_the_base_and_enabled_it_is_not(
    trained: Trained, small_base: BaseModel, mnist: ImageData
) -> None:
    adapted = trained[0]
    base = small_base.forward.logits(mnist.test.images[:])
    on = adapted.logits(mnist.test.images[:])
    adapted.disable()
    off = adapted.logits(mnist.test.images[:])
    adapted.enable()
    assert torch.equal(off, base)
    assert not torch.equal(on, base)
    assert torch.equal(adapted.logits(mnist.test.images[:]), on)


def test_merging_changes_the_weights_by_the_scaled_product_and_the_logits_hardly(
    trained: Trained, small_base: BaseModel, mnist: ImageData
) -> None:
    adapted, factors, _ = trained
    apart = adapted.logits(mnist.test.images[:])
    merged = adapted.merge()
    assert adapted.merged
    for layer, before in zip(merged.layers, small_base.layers, strict=True):
        update = 2.0 / 3 * factors[f"{layer.name}.B"].double() @ factors[f"{layer.name}.A"].double()
        torch.testing.assert_close(layer.weight.double(), before.weight.double() + update, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapted.logits(mnist.test.images[:]), apart, rtol=1e-3, atol=1e-3)
    adapted.unmerge()
    assert not adapted.merged
    assert torch.equal(adapted.logits(mnist.test.images[:]), apart)


def test_neither_merging_nor_use_changes_the_base(trained: Trained, small_base: BaseModel, mnist: ImageData) -> None:
    before = small_base.sha256()
    trained[0].merge()
    trained[0].logits(mnist.test.images[:])
    trained[0].unmerge()
    assert small_base.sha256() == before


def test_saved_and_loaded_it_gives_the_same_bits_and_the_same_file(
    trained: Trained, small_base: BaseModel, mnist: ImageData, tmp_path: Path
) -> None:
    trained[0].save(tmp_path / "one.safetensors")
    loaded = AdaptedClassifier.load(small_base, tmp_path / "one.safetensors")
    assert torch.equal(loaded.logits(mnist.test.images[:]), trained[0].logits(mnist.test.images[:]))
    loaded.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_an_adapter_of_another_base_is_refused(trained: Trained, tmp_path: Path) -> None:
    trained[0].save(tmp_path / "a.safetensors")
    other = assemble_base(SMALL, MNIST, network(SMALL, MNIST).initial(99))
    with pytest.raises(ValueError, match="another base"):
        AdaptedClassifier.load(other, tmp_path / "a.safetensors")


@pytest.mark.parametrize("damage", ["cut", "empty", "long header", "text"])
def test_a_damaged_file_is_one_line(trained: Trained, small_base: BaseModel, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    trained[0].save(path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-5],
            "empty": b"",
            "long header": struct.pack("<Q", 2**40) + content[8:],
            "text": json.dumps({"a": 1}).encode(),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"a\.safetensors") as caught:
        AdaptedClassifier.load(small_base, path)
    assert "\n" not in str(caught.value)


def test_factors_that_do_not_fit_are_refused(trained: Trained, small_base: BaseModel) -> None:
    _, factors, _ = trained
    a, b = factors["linear1.A"], factors["linear1.B"]
    for bad in (
        {"linear1.A": a},
        {"linear9.A": a, "linear9.B": b},
        {"linear1.A": a.double(), "linear1.B": b},
        {"linear1.A": a[:, :-1], "linear1.B": b},
        {"linear1.A": a, "linear1.B": b[:, :-1]},
        {"linear1.A": a * float("nan"), "linear1.B": b},
    ):
        with pytest.raises(ValueError, match=r"linear\d\.[AB]: "):
            AdaptedClassifier(small_base, bad, {})
