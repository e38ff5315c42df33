"""pytest tests/test_evaluation.py"""

from __future__ import annotations

import random

import pytest
import torch
from conftest import SMALL, MakeJob, TrainPack, constants_of, in_trainer_order
from torch.nn import functional

from lora_exp import numerics
from lora_exp.adapters.initialisation import initial_factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.config.images import MNIST
from lora_exp.config.spec import AdapterSpec, FinetuneSpec
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.model.base import BaseModel, network
from lora_exp.model.data import ImageData, Images, Split
from lora_exp.training import evaluation
from lora_exp.training.evaluation import Predictions, class_errors, predict_base, predict_pack
from lora_exp.training.loop import FineTuned

COUNT = 1003


@pytest.fixture(scope="module")
def split(mnist: ImageData) -> Split:
    """A number of images that no chunk size divides."""
    return mnist.test.where(slice(COUNT))


@pytest.fixture(scope="module")
def tuned(make_job: MakeJob, train_pack: TrainPack) -> FineTuned:
    finetunes = [(1, 9, ("*",)), (4, 2, ("*",)), (12, 0, ("linear1", "linear3")), (3, 5, ("linear2",))]
    jobs = [
        make_job(AdapterSpec(rank=rank, layers=layers), FinetuneSpec(target=(digit,), steps=15))
        for rank, digit, layers in finetunes
    ]
    return train_pack(in_trainer_order(jobs))


def made_up(count: int, seed: int) -> tuple[list[int], list[int], list[float]]:
    draw = random.Random(seed)
    labels = [draw.randrange(10) for _ in range(count)]
    guesses = [label if draw.random() < 0.7 else draw.randrange(10) for label in labels]
    return labels, guesses, [draw.random() for _ in labels]


def errors_of(labels: list[int], guesses: list[int], losses: list[float]) -> ClassErrors:
    logits = functional.one_hot(torch.tensor(guesses), 10).float()
    return class_errors(Predictions(logits, torch.tensor(losses)), torch.tensor(labels))


def same_bits(one: list[Predictions], other: list[Predictions]) -> bool:
    return all(
        torch.equal(getattr(a, part), getattr(b, part))
        for a, b in zip(one, other, strict=True)
        for part in ("logits", "losses")
    )


def kept_of(base: BaseModel, images: Images) -> tuple[torch.Tensor, ...]:
    constants = constants_of(base, images)
    assert constants is not None
    return constants.tensors


@pytest.mark.parametrize("count", [1, 10, 2000])
def test_counts_are_those_of_counting_one_image_after_another(count: int) -> None:
    labels, guesses, losses = made_up(count, seed=count)
    found = errors_of(labels, guesses, losses)
    pairs = list(zip(labels, guesses, strict=True))
    for true in range(10):
        assert found.counts[true] == labels.count(true)
        assert found.errors[true] == sum(label == true != guess for label, guess in pairs)
        rate = found.errors[true] / labels.count(true) if true in labels else 0.0
        assert found.error_rates[true] == rate
        for guessed in range(10):
            assert found.confusion[true][guessed] == pairs.count((true, guessed))
    assert found.accuracy == pytest.approx(sum(a == b for a, b in pairs) / count)
    assert found.loss == pytest.approx(sum(losses) / count)
    for true in set(labels):
        own = [loss for loss, label in zip(losses, labels, strict=True) if label == true]
        assert found.loss_of((true,)) == pytest.approx(sum(own) / len(own))


def test_the_error_of_several_classes_is_the_mean_of_their_rates() -> None:
    found = errors_of([1] * 10 + [2] * 2 + [3] * 4, [1] * 9 + [0] + [0] * 2 + [3] * 3 + [1], [0.0] * 16)
    assert found.error_of((1,)) == 0.1
    assert found.error_of((1, 2)) == pytest.approx((0.1 + 1.0) / 2)
    assert found.error_of((1, 2, 3)) == pytest.approx((0.1 + 1.0 + 0.25) / 3)
    assert found.error_of((7,)) == 0.0


def test_the_other_classes_are_those_not_fine_tuned_on() -> None:
    assert MNIST.others((3,)) == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert MNIST.others((9, 0)) == (1, 2, 3, 4, 5, 6, 7, 8)


def test_the_base_is_evaluated_by_its_logits(small_base: BaseModel, split: Split) -> None:
    predictions = predict_base(small_base, split)
    chances = small_base.forward.logits(split.images[:]).softmax(1)
    assert torch.equal(predictions.predicted, chances.argmax(1))
    expected = functional.nll_loss(chances.log(), split.labels, reduction="none")
    assert torch.allclose(predictions.losses, expected, rtol=1e-4, atol=1e-5)
    assert (predictions.logits.shape, predictions.losses.shape) == ((COUNT, 10), (COUNT,))


def test_without_training_a_pack_predicts_what_its_base_predicts(small_base: BaseModel, mnist: ImageData) -> None:
    plans = [AdapterPlan((LayerPlan("low_rank", rank),) * 3, seed=rank) for rank in (1, 8, 30)]
    first = constants_of(small_base, mnist.test.images)
    base = predict_base(small_base, mnist.test)
    fresh = predict_pack(small_base, AdapterPack.initial(plans, small_base), mnist.test, first)
    [off] = predict_pack(small_base, AdapterPack(()), mnist.test, first)
    assert len(fresh) == 3
    for predictions in (*fresh, off):
        assert torch.equal(predictions.predicted, base.predicted)
        assert torch.allclose(predictions.losses, base.losses, rtol=1e-4, atol=1e-5)


def test_a_pack_is_evaluated_with_the_adapters_merged_into_the_weights(
    small_base: BaseModel, split: Split, tuned: FineTuned
) -> None:
    predictions = predict_pack(small_base, tuned.pack, split, constants_of(small_base, split.images))
    plans = [plan for group in tuned.pack.groups for plan in group.plans]
    for one, plan, named in zip(predictions, plans, tuned.pack.factors(network(SMALL, MNIST).layers), strict=True):
        hidden = split.images[:].double()
        for at, layer in enumerate(small_base.layers):
            weight = layer.weight.double()
            if plan.layers[at].rank:
                a, b = named[f"{layer.name}.A"], named[f"{layer.name}.B"]
                weight = weight + plan.layers[at].scaling * b.double() @ a.double()
            hidden = functional.linear(hidden, weight, layer.bias.double())
            hidden = hidden.relu() if at < 2 else hidden
        losses = functional.cross_entropy(hidden, split.labels, reduction="none")
        assert torch.allclose(one.losses.double(), losses, rtol=1e-3, atol=1e-4)
        assert torch.equal(one.predicted, hidden.argmax(1))


def test_dropout_is_off_while_a_pack_is_judged(small_base: BaseModel, split: Split) -> None:
    found = []
    for dropout in (0.0, 0.5):
        plan = AdapterPlan((LayerPlan("low_rank", 4),) * 3, init_std=0.1, dropout=dropout)
        factors = {name: value + 0.1 for name, value in initial_factors(plan, small_base).items()}
        pack = AdapterPack.of([plan], [factors], small_base)
        found.append(predict_pack(small_base, pack, split, constants_of(small_base, split.images)))
    assert same_bits(*found)
    assert not torch.equal(found[0][0].losses, predict_base(small_base, split).losses)


@pytest.mark.usefixtures("one_thread", "any_pack")
@pytest.mark.parametrize("rows", [1, 20, 68, 100, 334, 501, 10_000])
def test_the_size_of_a_chunk_changes_no_bit(
    rows: int, small_base: BaseModel, split: Split, tuned: FineTuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = constants_of(small_base, split.images)
    usual = predict_pack(small_base, tuned.pack, split, first)
    monkeypatch.setattr(evaluation, "CHUNK_ROWS", rows)
    assert same_bits(predict_pack(small_base, tuned.pack, split, first), usual)


@pytest.mark.usefixtures("any_pack")
@pytest.mark.skipif(
    numerics.requested() == "COMPATIBLE", reason="on two threads these kernels have other bits; packs have one"
)
def test_one_or_two_threads_give_the_same_predictions(small_base: BaseModel, split: Split, tuned: FineTuned) -> None:
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(predict_pack(small_base, tuned.pack, split, constants_of(small_base, split.images)))
    torch.set_num_threads(before)
    assert same_bits(*found)


@pytest.mark.usefixtures("any_pack")
def test_an_image_has_the_same_first_product_whatever_images_are_beside_it(small_base: BaseModel, split: Split) -> None:
    """A pack of few jobs draws few images, and their products may not depend on that, nor on threads."""
    before = torch.get_num_threads()
    [whole] = kept_of(small_base, split.images)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in (1, 2, 3, 5, 9, 10, 17, 100, 999):
            [product] = kept_of(small_base, split.where(slice(-count, None)).images)
            assert torch.equal(product, whole[-count:])
    torch.set_num_threads(before)


def test_predicting_leaves_the_frozen_product_as_it_is(small_base: BaseModel, split: Split, tuned: FineTuned) -> None:
    first = constants_of(small_base, split.images)
    assert first is not None
    kept = [tensor.clone() for tensor in first.tensors]
    predict_pack(small_base, tuned.pack, split, first)
    assert len(kept) == 1 and torch.equal(first.tensors[0], kept[0])


def test_the_first_layers_products_are_those_of_one_product_whatever_threads_the_process_has(
    small_base: BaseModel, mnist: ImageData, any_pack: None
) -> None:
    count = 2 * evaluation.CHUNK_ROWS + numerics.MIN_ROWS - 1  # the last chunk is long, not short
    images = mnist.train.where(slice(count)).images
    layer = small_base.layers[0]
    with numerics.on_threads(1):
        whole = numerics.frozen_product(images[:], layer.weight, layer.bias)
    for threads in (1, 2):
        with numerics.on_threads(threads):
            [product] = kept_of(small_base, images)
            assert torch.equal(product, whole)


def test_the_base_predicts_on_one_thread_whatever_the_process_has(
    small_base: BaseModel, mnist: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKL's first `exp` on two threads once had 12 right bits on the second: 227 of 10,000 confidences differed."""
    found, as_before = [], evaluation._predictions

    def predictions(*given: torch.Tensor) -> evaluation.Predictions:
        found.append(torch.get_num_threads())
        return as_before(*given)

    monkeypatch.setattr(evaluation, "_predictions", predictions)
    with numerics.on_threads(2):
        predict_base(small_base, mnist.test)
        found.append(torch.get_num_threads())
    assert found == [1, 2]
