"""pytest tests/test_loop.py"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, MakeJob, TrainPack, constants_of, in_trainer_order
from torch import nn
from torch.nn import functional

from lora_exp.config.images import MNIST
from lora_exp.config.spec import AdapterSpec, FinetuneSpec
from lora_exp.model.base import BaseModel, network
from lora_exp.model.data import ImageData
from lora_exp.numerics import generator
from lora_exp.training.evaluation import Predictions, predict_pack
from lora_exp.training.loop import Job, TrainingImages, batch_order, step_count

Bits = tuple[dict[str, torch.Tensor], torch.Tensor, Predictions]


def mixed_jobs(make_job: MakeJob, count: int, batch_size: int, most_steps: int) -> list[Job]:
    """Jobs that differ in everything in which the jobs of a pack may differ."""
    draw = random.Random(batch_size)
    jobs = []
    for number in range(count):
        adapter = AdapterSpec(
            rank=[1, 2, 3, 4, 7, 8, 9, 16, 33, 64][number % 10],
            alpha=draw.choice([0.5, 1.0, 16.0, "rank"]),
            init_std=draw.choice([0.02, 1.0]),
            layers=draw.choice([("*",), ("*",), ("linear1",), ("linear2", "linear3"), ("linear3",)]),
        )
        finetune = FinetuneSpec(
            target=draw.choice([(number % 10,), (number % 10,), (1, 5, 7)]),
            steps=draw.choice([most_steps, most_steps // 2, 1]),
            batch_size=batch_size,
            learning_rate=draw.choice([1e-4, 1e-3, 1e-2]),
            seed=draw.randrange(5),
            replay=draw.choice([0.0, 0.0, 0.25, 0.9]),
        )
        jobs.append(make_job(adapter, finetune))
    return in_trainer_order(jobs)


def all_bits(jobs: Sequence[Job], size: int, train_pack: TrainPack, base: BaseModel, data: ImageData) -> list[Bits]:
    """Factors, losses and predictions of every job, trained and evaluated in packs of `size`."""
    first = constants_of(base, data.test.images)
    found: list[Bits] = []
    for start in range(0, len(jobs), size):
        tuned = train_pack(jobs[start : start + size])
        predictions = predict_pack(base, tuned.pack, data.test, first)
        found += zip(tuned.pack.factors(network(SMALL, MNIST).layers), tuned.losses, predictions, strict=True)
    return found


def differing(one: Bits, other: Bits) -> list[str]:
    """What is not the same bit for bit."""
    assert one[0].keys() == other[0].keys()
    pairs = {name: (one[0][name], other[0][name]) for name in one[0]} | {"losses": (one[1], other[1])}
    for part in ("logits", "losses"):
        pairs[f"test {part}"] = (getattr(one[2], part), getattr(other[2], part))
    return [name for name, (a, b) in pairs.items() if a.numpy().tobytes() != b.numpy().tobytes()]


@pytest.mark.usefixtures("one_thread", "any_pack")
@pytest.mark.parametrize(("batch_size", "count", "most_steps"), [(10, 40, 24), (3, 14, 8), (1, 14, 8)])
def test_a_pack_of_many_equals_packs_of_seven_and_of_one_bit_for_bit(
    batch_size: int,
    count: int,
    most_steps: int,
    make_job: MakeJob,
    train_pack: TrainPack,
    small_base: BaseModel,
    mnist: ImageData,
) -> None:
    fewer = replace(mnist, test=mnist.test.where(slice(1001)))
    jobs = mixed_jobs(make_job, count, batch_size, most_steps)
    together = all_bits(jobs, count, train_pack, small_base, fewer)
    for size in (7, 1):
        apart = all_bits(jobs, size, train_pack, small_base, fewer)
        assert [differing(*pair) for pair in zip(together, apart, strict=True)] == [[]] * count
    assert len({tuple(bits[1].tolist()) for bits in together}) > count * 0.9  # jobs do differ


@pytest.mark.usefixtures("one_thread")
def test_two_runs_of_the_same_pack_give_the_same_bits(
    make_job: MakeJob, train_pack: TrainPack, small_base: BaseModel, mnist: ImageData
) -> None:
    jobs = mixed_jobs(make_job, 5, 10, 10)
    runs = [all_bits(jobs, 5, train_pack, small_base, mnist) for _ in range(2)]
    assert not any(differing(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("learning_rate", [1e30, 1e38])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_diverging_job_leaves_the_bits_of_other_jobs_unchanged(
    at: int,
    learning_rate: float,
    make_job: MakeJob,
    train_pack: TrainPack,
    small_base: BaseModel,
    mnist: ImageData,
) -> None:
    sound = [make_job(AdapterSpec(rank=r), FinetuneSpec(target=(r,), steps=12, seed=r)) for r in (3, 4, 5)]
    one_diverges = [replace(job, learning_rate=learning_rate) if n == at else job for n, job in enumerate(sound)]
    expected = all_bits(sound, 3, train_pack, small_base, mnist)
    found = all_bits(one_diverges, 3, train_pack, small_base, mnist)
    for number in {0, 1, 2} - {at}:
        assert not differing(expected[number], found[number])
    losses = found[at][1]
    assert bool(losses[0].isfinite())
    assert not bool(losses[-1].isfinite())


def test_a_diverged_job_stays_diverged(make_job: MakeJob, train_pack: TrainPack) -> None:
    job = make_job(AdapterSpec(), FinetuneSpec(target=(1,), steps=20, learning_rate=1e38))
    finite = train_pack([job]).losses[0].isfinite().tolist()
    assert finite == sorted(finite, reverse=True)


def test_fine_tuning_is_that_of_a_plain_pytorch_loop(
    make_job: MakeJob, train_pack: TrainPack, small_base: BaseModel, images: TrainingImages
) -> None:
    """One adapter at a time, W + s B A formed anew in each step, torch.optim.Adam, float64."""
    finetunes = [
        (AdapterSpec(rank=1), FinetuneSpec(target=(9,), steps=30)),
        (AdapterSpec(rank=6, alpha=12.0, init_std=0.1), FinetuneSpec(target=(2,), steps=25, learning_rate=5e-3)),
        (AdapterSpec(rank=8, layers=("linear2",)), FinetuneSpec(target=(0, 4), steps=30, replay=0.5, seed=1)),
    ]
    jobs = in_trainer_order([make_job(*both) for both in finetunes])
    tuned = train_pack(jobs)
    for job, losses, factors in zip(jobs, tuned.losses, tuned.pack.factors(network(SMALL, MNIST).layers), strict=True):
        plan, parameters = job.plan, nn.ParameterDict()
        for at, layer in enumerate(small_base.layers):
            if rank := plan.layers[at].rank:
                outs, inputs = layer.weight.shape
                drawn = torch.randn(rank, inputs, generator=generator("adapter initialisation", plan.seed, at))
                parameters[f"{layer.name}_A"] = drawn.double() * plan.init_std
                parameters[f"{layer.name}_B"] = torch.zeros(outs, rank, dtype=torch.float64)
        optimizer = torch.optim.Adam(parameters.parameters(), lr=job.learning_rate)
        expected = []
        for batch in job.order:
            hidden = images.images[batch].double()
            for at, layer in enumerate(small_base.layers):
                weight = layer.weight.double()
                if plan.layers[at].rank:
                    a, b = parameters[f"{layer.name}_A"], parameters[f"{layer.name}_B"]
                    weight = weight + plan.layers[at].scaling * b @ a
                hidden = functional.linear(hidden, weight, layer.bias.double())
                hidden = hidden.relu() if at < 2 else hidden
            loss = functional.cross_entropy(hidden, images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
        assert losses.tolist() == pytest.approx(expected, rel=2e-3, abs=1e-4)
        for name, factor in factors.items():
            own = parameters[name.replace(".", "_")].detach()
            assert float((factor - own).norm() / own.norm()) < 2e-3, name


def test_losses_of_a_target_digit_fall(make_job: MakeJob, train_pack: TrainPack) -> None:
    job = make_job(AdapterSpec(rank=4), FinetuneSpec(target=(9,), steps=60))
    [losses] = train_pack([job]).losses
    assert losses.shape == (60,)
    assert float(losses[-10:].mean()) < 0.5 * float(losses[:10].mean())


@pytest.mark.parametrize(
    ("share", "batch_size", "steps"), [(0.0, 10, 7), (0.5, 10, 7), (0.25, 10, 10), (0.1, 1, 100), (0.9, 3, 40)]
)
def test_replay_is_an_exact_share_of_all_places(share: float, batch_size: int, steps: int) -> None:
    how = FinetuneSpec(target=(3,), batch_size=batch_size, replay=share)
    order = batch_order(how, steps, how.target, torch.arange(50), torch.arange(1000, 2000))
    assert (order.shape, order.dtype) == ((steps, batch_size), torch.int64)
    replayed = (order >= 1000).flatten()
    assert int(replayed.sum()) == int(share * steps * batch_size + 1e-9)
    running, places = replayed.cumsum(0).double(), torch.arange(1, len(replayed) + 1).double()
    assert float((running - share * places).abs().max()) <= 1  # evenly spread


def test_no_image_comes_twice_within_a_pass_and_passes_go_on_in_another_order() -> None:
    how = FinetuneSpec(target=(3,), batch_size=10, replay=0.5)
    target, other = torch.arange(100, 137), torch.arange(1000, 1059)
    order = batch_order(how, 40, how.target, target, other).flatten()
    for pool in (target, other):
        drawn = order[torch.isin(order, pool)]
        passes = drawn.split(len(pool))
        assert len(passes) > 3
        for whole in passes[:-1]:
            assert torch.equal(whole.sort().values, pool)
        assert len(passes[-1].unique()) == len(passes[-1])
        assert not torch.equal(passes[0], passes[1])
        assert not torch.equal(passes[0], pool)


def test_the_order_depends_on_seed_and_digits_only(make_job: MakeJob) -> None:
    how = FinetuneSpec(target=(3,), steps=20, seed=1)
    order = make_job(AdapterSpec(rank=1), how).order
    for adapter in (AdapterSpec(rank=64), AdapterSpec(alpha=7.0, layers=("linear1",), init_std=0.1)):
        assert torch.equal(make_job(adapter, replace(how, learning_rate=0.1)).order, order)
    longer = make_job(AdapterSpec(), replace(how, steps=30)).order
    assert torch.equal(longer[:20], order)
    assert not torch.equal(make_job(AdapterSpec(), replace(how, seed=2)).order, order)
    pools = torch.arange(100), torch.arange(100, 200)
    assert not torch.equal(batch_order(how, 9, how.target, *pools), batch_order(how, 9, (4,), *pools))


def test_only_images_of_the_digit_are_drawn_without_replay(make_job: MakeJob, images: TrainingImages) -> None:
    job = make_job(AdapterSpec(), FinetuneSpec(target=(4, 8), steps=50))
    assert set(images.labels[job.order].unique().tolist()) == {4, 8}


@pytest.mark.parametrize(
    ("epochs", "batch_size", "replay", "target_images", "steps"),
    [
        (None, 10, 0.0, 5000, 100),
        (1.0, 10, 0.0, 5000, 500),
        (1.0, 10, 0.0, 5001, 501),
        (0.5, 10, 0.0, 5000, 250),
        (2.0, 7, 0.0, 10, 3),
        (1.0, 10, 0.5, 5000, 1000),
        (1.0, 10, 0.9, 100, 100),
        (0.1, 10, 0.0, 700, 7),
        (0.3, 10, 0.0, 1000, 30),
        (1e-6, 10, 0.0, 5000, 1),
    ],
)
def test_epochs_count_passes_over_the_target_images(
    epochs: float | None, batch_size: int, replay: float, target_images: int, steps: int
) -> None:
    how = FinetuneSpec(target=(1,), epochs=epochs, batch_size=batch_size, replay=replay)
    assert step_count(how, target_images) == steps


@pytest.mark.parametrize("replay", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_a_whole_pass_shows_every_target_image(replay: float) -> None:
    how = FinetuneSpec(target=(1,), epochs=1.0, batch_size=10, replay=replay)
    for images in (70, 73, 542):
        order = batch_order(how, step_count(how, images), how.target, torch.arange(images), torch.arange(1000, 2000))
        assert set(range(images)) <= set(order.flatten().tolist())
