"""The plan of a sweep that is not run: bases, packs, memory and expected time (`lora-exp -m --plan ...`)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import BaseSpec, DataSpec, RunSpec
from lora_exp.model.base import BaseModel, network, train
from lora_exp.training.laboratory import Laboratory
from lora_exp.training.pack import PlannedJob, frozen_cut, plan_jobs

# Batches of a measurement, and measurements, of which the shortest counts: others had to share the machine.
TRIAL_BATCHES, TRIALS = 25, 3


def plan_text(laboratory: Laboratory, specs: Sequence[RunSpec]) -> str:
    """Return the plan as lines of text. Times are extrapolated from measurements that take about a second."""
    unique = list(dict.fromkeys(specs))
    missing = [spec for spec in unique if not laboratory.store.has("results", laboratory.result_key(spec))]
    lines = [f"{len(specs)} jobs: {len(unique) - len(missing)} in the store already, {len(missing)} to run"]
    if len(unique) < len(specs):
        lines[0] += f", {len(specs) - len(unique)} duplicates"
    rate = _product_rate(laboratory) if missing else 1.0
    total = 0.0
    by_base: dict[str, list[RunSpec]] = {}
    for spec in missing:
        by_base.setdefault(spec.base_spec_key, []).append(spec)
    base_seconds = functools.cache(functools.partial(_base_seconds, laboratory))
    for jobs in by_base.values():
        seconds, more = _base_lines(laboratory, jobs, rate, base_seconds)
        total += seconds
        lines += more
    lines.append(f"expected time: about {_duration(total)}, with {laboratory.executor.workers} packs at a time")
    return "\n".join(lines)


def _base_lines(
    laboratory: Laboratory,
    jobs: list[RunSpec],
    rate: float,
    base_seconds: Callable[[ModelSpec, DataSpec, BaseSpec], float],
) -> tuple[float, list[str]]:
    """The expected seconds for one base and its jobs, and a line for the base and for each pack."""
    first = jobs[0]
    total, state = 0.0, "in the store already"
    if not laboratory.store.has("bases", laboratory.base_key(first)):
        # Bases that differ in seed or learning rate take equally long, so they are measured once.
        alike = BaseSpec(batch_size=first.base.batch_size, classes=first.base.classes)
        total = first.base.epochs * base_seconds(first.model, first.data, alike) if first.base.epochs else 0.0
        state = f"to be trained, about {_duration(total)}" if first.base.epochs else "from its file of weights"
    planned = plan_jobs(jobs, laboratory.data(first.data))
    facts = laboratory.data(first.data).facts
    layers = "-".join(filter(None, (str(facts.pixels), first.model.label, str(len(facts.classes)))))
    lines = [f"base {layers} on {first.data.name}, seed {first.base.seed}: {state}", *_kept_line(laboratory, planned)]
    for number, pack in enumerate(laboratory.packs(jobs, planned), 1):
        sizes = [planned[spec].size for spec in pack]
        methods = ", ".join(sorted({spec.adapter.method for spec in pack}))
        ranks, steps = [spec.adapter.rank for spec in pack], [size.steps for size in sizes]
        seconds = sum(size.cost for size in sizes) / rate
        total += seconds / laboratory.executor.workers
        memory = sum(size.memory for size in sizes) / 2**20
        lines.append(
            f"  pack {number}: {len(pack)} jobs, {methods}, {_range('rank', ranks)}, {_range('steps', steps)}, "
            f"{memory:,.0f} MiB, about {_duration(seconds)}"
        )
    return total, lines


def _kept_line(laboratory: Laboratory, planned: Mapping[RunSpec, PlannedJob]) -> list[str]:
    """What is kept of the frozen part of the base, and how large packs are that keep a core busy."""
    first = next(iter(planned))
    data = laboratory.data(first.data)
    form = network(first.model, data.facts)
    cut = frozen_cut(BaseModel(form, form.initial(0)), data, planned, laboratory.executor.memory or None)
    sizes = sorted({(job.size.full_pack, job.size.rows) for job in planned.values()})
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


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
