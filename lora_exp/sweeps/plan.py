"""The plan of a sweep that is not run: bases, packs, memory and expected time (`lora-exp -m --plan ...`)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import BaseSpec, DataSpec, RunSpec
from lora_exp.model.base import BaseModel, network, train
from lora_exp.training.laboratory import Laboratory
from lora_exp.training.pack import PlannedJob, frozen_cut, plan_jobs

# Batches of a measurement, and measurements, of which the shortest counts: others had to share the machine.
TRIAL_BATCHES, TRIALS = 25, 3


@dataclass(frozen=True)
class Plan:
    """What jobs would take: how many there are, are different, and are not in the store yet; a line for each base and
    pack; the seconds in all, and those of training bases; and the bytes of the packs that train at a time."""

    jobs: int
    different: int
    missing: int
    lines: list[str]
    seconds: float
    base_seconds: float
    memory: float

    @property
    def counts(self) -> str:
        """`40 jobs: 10 in the store already, 30 to run`."""
        text = f"{self.jobs:,} jobs: {self.different - self.missing:,} in the store already, {self.missing:,} to run"
        duplicates = self.jobs - self.different
        return f"{text}, {duplicates:,} duplicates" if duplicates else text


def plan_text(laboratory: Laboratory, specs: Sequence[RunSpec]) -> str:
    """The plan of these jobs as lines of text."""
    plan = planned(laboratory, specs)
    expected = f"expected time: about {duration(plan.seconds)}, with {laboratory.executor.workers} packs at a time"
    return "\n".join([plan.counts, *plan.lines, expected])


def planned(laboratory: Laboratory, specs: Sequence[RunSpec]) -> Plan:
    """What these jobs would take. Times are extrapolated from measurements that take about a second."""
    unique = list(dict.fromkeys(specs))
    missing = [spec for spec in unique if not laboratory.store.has("results", laboratory.result_key(spec))]
    rate = _product_rate(laboratory) if missing else 1.0
    by_base: dict[str, list[RunSpec]] = {}
    for spec in missing:
        by_base.setdefault(spec.base_spec_key, []).append(spec)
    base_seconds = functools.cache(functools.partial(_base_seconds, laboratory))
    parts = [_of_base(laboratory, jobs, rate, base_seconds) for jobs in by_base.values()]
    largest = sorted(memory for part in parts for memory in part.memories)[-laboratory.executor.workers :]
    of_bases = sum(part.base_seconds for part in parts)
    return Plan(
        jobs=len(specs),
        different=len(unique),
        missing=len(missing),
        lines=[line for part in parts for line in part.lines],
        seconds=of_bases + sum(part.pack_seconds for part in parts),
        base_seconds=of_bases,
        memory=sum(largest),
    )


@dataclass(frozen=True)
class _OfBase:
    """The plan of the jobs of a base: lines for it and for each pack, seconds, and the bytes of each pack."""

    lines: list[str]
    base_seconds: float
    pack_seconds: float
    memories: list[float]


def _of_base(
    laboratory: Laboratory,
    jobs: list[RunSpec],
    rate: float,
    base_seconds: Callable[[ModelSpec, DataSpec, BaseSpec], float],
) -> _OfBase:
    """Plan the jobs of a base; `rate` is that of products, and `base_seconds` measures an epoch of a base."""
    first = jobs[0]
    training, state = 0.0, "in the store already"
    if not laboratory.store.has("bases", laboratory.base_key(first)):
        # Bases that differ in seed or learning rate take equally long, so they are measured once.
        alike = BaseSpec(batch_size=first.base.batch_size, classes=first.base.classes)
        training = first.base.epochs * base_seconds(first.model, first.data, alike) if first.base.epochs else 0.0
        state = f"to be trained, about {duration(training)}" if first.base.epochs else "from its file of weights"
    own = plan_jobs(jobs, laboratory.data(first.data))
    facts = laboratory.data(first.data).facts
    layers = "-".join(filter(None, (str(facts.pixels), first.model.label, str(len(facts.classes)))))
    lines = [f"base {layers} on {first.data.name}, seed {first.base.seed}: {state}", *_kept_line(laboratory, own)]
    memories: list[float] = []
    of_packs = 0.0
    for number, pack in enumerate(laboratory.packs(jobs, own), 1):
        sizes = [own[spec].size for spec in pack]
        methods = ", ".join(sorted({spec.adapter.method for spec in pack}))
        ranks, steps = [spec.adapter.rank for spec in pack], [size.steps for size in sizes]
        seconds = sum(size.cost for size in sizes) / rate
        of_packs += seconds / laboratory.executor.workers
        memories.append(sum(size.memory for size in sizes))
        lines.append(
            f"  pack {number}: {len(pack)} jobs, {methods}, {_range('rank', ranks)}, {_range('steps', steps)}, "
            f"{memories[-1] / 2**20:,.0f} MiB, about {duration(seconds)}"
        )
    return _OfBase(lines, training, of_packs, memories)


def _kept_line(laboratory: Laboratory, jobs: Mapping[RunSpec, PlannedJob]) -> list[str]:
    """What is kept of the frozen part of the base, and how large packs are that keep a core busy."""
    first = next(iter(jobs))
    data = laboratory.data(first.data)
    form = network(first.model, data.facts)
    cut = frozen_cut(BaseModel(form, form.initial(0)), data, jobs, laboratory.executor.memory or None)
    sizes = sorted({(job.size.full_pack, job.size.rows) for job in jobs.values()})
    packs = ", ".join(f"of up to {full} jobs ({rows} rows a job and product)" for full, rows in sizes)
    images = sum(len(split.labels) for split in (data.train, data.validation, data.test) if split is not None)
    kept = (
        "nothing"
        if cut is None
        else f"{', '.join(name for name, _ in cut.kept)}, {cut.bytes * images / 2**20:,.0f} MiB"
    )
    return [f"  packs {packs}; kept of the frozen part: {kept}"]


def _product_rate(laboratory: Laboratory) -> float:
    """Measure the floating-point operations per second of one thread while as many run as train packs."""
    a, b = torch.ones(500, 1000, device=laboratory.device), torch.ones(1000, 2000, device=laboratory.device)

    def products(repeats: int) -> float:
        torch.set_num_threads(1)
        started = time.perf_counter()
        for _ in range(repeats):
            last = a @ b
        float(last[0, 0])  # waits until an accelerator has finished
        return repeats * 2.0 * 500 * 1000 * 2000 / (time.perf_counter() - started)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(laboratory.threads) as threads:
            list(threads.map(products, [2] * laboratory.threads))
            return min(threads.map(products, [10] * laboratory.threads))
    finally:
        torch.set_num_threads(before)


def _base_seconds(laboratory: Laboratory, model: ModelSpec, images: DataSpec, how: BaseSpec) -> float:
    """Estimate the seconds of an epoch of base training from a few batches."""
    data = laboratory.data(images).train
    few = min(len(data.labels), TRIAL_BATCHES * how.batch_size)
    trial = data.where(slice(few))
    train(model, how, trial.where(slice(1)))  # warm up
    measured = []
    for _ in range(TRIALS):
        started = time.perf_counter()
        train(model, how, trial)
        measured.append(time.perf_counter() - started)
    return min(measured) * len(data.labels) / few


def _range(name: str, values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{name} {low}" if low == high else f"{name} {low} to {high}"


def duration(seconds: float) -> str:
    """`4.2 s`, `90 s` or `12 min`."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
