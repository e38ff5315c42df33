"""pytest tests/test_same_bits.py

Every method, on dense layers and on convolutions: a job has the same bits alone, in any pack, and on any number of
threads, through the whole story of `Laboratory.run`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import CPU, constants_of, need_any_pack
from places import data_in

from lora_exp.config.images import MNIST
from lora_exp.config.methods import METHODS
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.model.base import assemble, network
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, Outcome, from_json
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import Failure
from lora_exp.training import laboratory as experiment
from lora_exp.training.laboratory import Laboratory
from lora_exp.training.packing import JobSize

MLP, CNN, LINEAR = ModelSpec((48, 32)), ModelSpec((20,), channels=(4, 6)), ModelSpec(())
DATA = DataSpec("mnist", validation=500, limit=6000)  # as the fixture
RANKS = (1, 2, 7, 8, 9, 16, 33)
Numbers = dict[RunSpec, tuple[Outcome, bytes, bytes]]
Run = Callable[..., Numbers]


def grid(model: ModelSpec, each: int, batch_size: int = 10) -> list[RunSpec]:
    """`each` jobs of every method that differ in all in which the jobs of a pack may differ."""
    last = network(model, MNIST).layers[-1].name
    ranks, digits = itertools.cycle(RANKS), itertools.cycle((0, 2, 3, 5, 7, 9))
    alphas, lengths, seeds = (
        itertools.cycle((1.0, 16.0, "rank")),
        itertools.cycle((9, 12, 5)),
        itertools.cycle(range(5)),
    )
    dropouts, inits = itertools.cycle((0.0, 0.3, 0.0, 0.6)), itertools.cycle(("gaussian", "kaiming", "orthogonal"))
    layers = itertools.cycle((("*",), ("*",), ("*",), (last,), ("*1",)))
    patterns = itertools.cycle(((), (), (("*1", 3), (last, 12))))
    rates, replays = itertools.cycle((1e-3, 3e-4)), itertools.cycle((0.0, 0.3))
    specs = []
    for method in [method for method in METHODS for _ in range(each)]:
        adapter = AdapterSpec(
            method,
            next(ranks),
            next(alphas),
            rank_pattern=next(patterns),
            layers=("*",) if model == LINEAR else next(layers),
            init=next(inits),
            init_std=0.2,
            dropout=next(dropouts),
        )
        if model == LINEAR:
            adapter = dataclasses.replace(adapter, rank_pattern=())
        how = FinetuneSpec((next(digits),), next(lengths), None, batch_size, next(rates), next(seeds), next(replays))
        specs.append(RunSpec(model, DATA, BaseSpec(), adapter.used(), how))
    return list(dict.fromkeys(specs))


def packs_of(count: int) -> Callable[[Sequence[JobSize], int, int], list[list[int]]]:
    """A plan that puts anything together with anything, in the order that the trainer asks for."""

    def plan(jobs: Sequence[JobSize], workers: int, memory: int) -> list[list[int]]:
        order = sorted(range(len(jobs)), key=lambda job: (jobs[job].shape, -jobs[job].steps, job))
        return [order[start : start + count] for start in range(0, len(order), count)]

    return plan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Run:
    """Run specs in packs of `count` (None: as planned), each time in a store that holds nothing but the bases."""
    fewer = dataclasses.replace(mnist, test=mnist.test.where(slice(1001)))
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()

    def all_of(specs: Sequence[RunSpec], count: int | None = None, threads: int = 1) -> Numbers:
        results = store.root / "results"
        results.rename(tmp_path_factory.mktemp("old") / "results")
        results.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Laboratory, "data", lambda *_: fewer)
            if count is not None:
                patch.setattr(experiment, "plan_packs", packs_of(count))
            found = dict(Laboratory(store, data_in(data_root), CPU, threads, LocalExecutor(threads, 2**31)).run(specs))
        numbers: Numbers = {}
        for spec, files in found.items():
            assert not isinstance(files, Failure), files
            numbers[spec] = from_json(files[RESULT].decode()).outcome, files[ADAPTER], files[PREDICTIONS]
        return numbers

    return all_of


def differing(specs: Sequence[RunSpec], one: Numbers, other: Numbers) -> list[RunSpec]:
    """Jobs with any tensor or number that is not the same in both."""
    return [spec for spec in specs if one[spec] != other[spec]]


@pytest.fixture(scope="module", params=[(MLP, 7), (CNN, 3)], ids=["mlp", "cnn"])
def jobs(request: pytest.FixtureRequest) -> list[RunSpec]:
    model, each = request.param
    return grid(model, each)


@pytest.fixture(scope="module")
def one_pack(run: Run, jobs: list[RunSpec]) -> Numbers:
    return run(jobs, count=1000)


@pytest.fixture(autouse=True)
def promised_in_any_pack() -> None:
    for model in (MLP, CNN, LINEAR):
        need_any_pack(model)


@pytest.mark.parametrize(("count", "threads"), [(7, 1), (7, 2), (1, 2), (None, 2)])
def test_every_method_has_the_same_bits_in_packs_of_any_size_and_on_any_threads(
    run: Run, jobs: list[RunSpec], one_pack: Numbers, count: int | None, threads: int
) -> None:
    assert {spec.adapter.method for spec in jobs} == set(METHODS)
    assert not differing(jobs, run(jobs, count, threads), one_pack)
    losses = {tuple(outcome.loss_curve) for outcome, _, _ in one_pack.values()}
    assert len(losses) > 0.8 * len(jobs)  # jobs do differ


def test_a_job_run_alone_has_the_same_bits(run: Run, jobs: list[RunSpec], one_pack: Numbers) -> None:
    """Alone, a job draws fewer images, so that the first layer's frozen product has other rows."""
    for spec in jobs[::5]:
        assert run([spec]) == {spec: one_pack[spec]}


@pytest.mark.parametrize("batch_size", [1, 3, 70])
@pytest.mark.parametrize("model", [MLP, LINEAR, CNN], ids=["mlp", "one layer", "cnn"])
def test_small_and_large_batches_have_the_same_bits_too(run: Run, model: ModelSpec, batch_size: int) -> None:
    specs = grid(model, 2, batch_size)
    whole = run(specs, count=1000)
    assert not differing(specs, run(specs, count=1, threads=2), whole)


@pytest.mark.parametrize("width", [10, 17, 48])
def test_the_first_layers_product_has_the_same_bits_for_few_images_and_many(mnist: ImageData, width: int) -> None:
    """Made once for all jobs, outside the packs and their one thread: 16 rows of 17 outputs differ on two threads."""
    spec = ModelSpec((width,))
    base = assemble(spec, MNIST, network(spec, MNIST).initial(0))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    whole, *parts = (constants_of(base, mnist.train.where(slice(count)).images) for count in (None, 1, 5, 16, 20, 100))
    torch.set_num_threads(before)
    assert whole is not None
    for count, part in zip((1, 5, 16, 20, 100), parts, strict=True):
        assert part is not None and torch.equal(part.tensors[0], whole.tensors[0][:count])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none"}))
def test_a_diverging_job_of_any_method_leaves_other_jobs_unchanged(
    run: Run, jobs: list[RunSpec], one_pack: Numbers, method: str
) -> None:
    chosen = next(spec for spec in jobs if spec.adapter.method == method and spec.finetune.steps > 5)
    wild = dataclasses.replace(chosen, finetune=dataclasses.replace(chosen.finetune, learning_rate=3e38))
    sound = [spec for spec in jobs if spec.adapter.method == method or spec in jobs[::6]]
    found = run([*sound[:2], wild, *sound[2:]], count=1000)
    diverged_at = found[wild][0].diverged_at
    assert diverged_at is not None and diverged_at > 1
    assert not differing(sound, found, one_pack)
