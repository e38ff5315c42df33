"""python benchmarks/full_fine_tuning.py DIR [RUNS [STEPS]]

Jobs of full fine-tuning (reference model, batch 10, digits in turn): packs of 1, 2, 4 and 8 jobs, two packs side by
side on one thread each, against a tight PyTorch loop (tensors in memory, fused Adam, `F.cross_entropy`), one job after
another on all threads, and such loops side by side on one thread each. All in turn in each run.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import AdapterSpec, DataSpec, FinetuneSpec
from lora_exp.data.prepared import prepare
from lora_exp.model.base import BaseModel, assemble, network
from lora_exp.model.data import load
from lora_exp.training.evaluation import frozen_constants
from lora_exp.training.loop import Job, TrainingImages, batch_order, fine_tune

BATCH, JOBS, PACKS = 10, 16, (1, 2, 4, 8)
runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 100
threads = os.cpu_count() or 1
cpu = torch.device("cpu")
model = ModelSpec((1000, 2000))
base = assemble(model, MNIST, network(model, MNIST).initial(0))
mnist, root = DataSpec("mnist"), str(Path(sys.argv[1]) / "cache" / "data")
train = load(mnist, prepare(mnist, DataFolder(root, None, root)), cpu).train
constants = frozen_constants(base, train.images, base.forward.cut([True] * len(base.layers)))
images = TrainingImages(train.images, train.labels, constants)
jobs = []
for number in range(JOBS):
    how = FinetuneSpec((number % 10,), steps=steps, batch_size=BATCH, seed=number)
    plan = adapter_plan(AdapterSpec("full"), network(model, MNIST).layers, number, (0,))
    target, rest = train.of_classes(how.target), train.of_classes(MNIST.others(how.target))
    jobs.append(Job(plan, how.learning_rate, batch_order(how, steps, how.target, target, rest)))


def tight_loop(job: Job) -> None:
    net = in_torch(base)
    optimizer = torch.optim.Adam(net.parameters(), lr=job.learning_rate, fused=True)
    for batch in job.order:
        optimizer.zero_grad()
        functional.cross_entropy(net(train.images[batch]), train.labels[batch]).backward()
        optimizer.step()


def in_torch(start: BaseModel) -> nn.Sequential:
    parts: list[nn.Module] = []
    for layer in start.layers:
        linear = nn.Linear(*layer.weight.T.shape)
        linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def one_after_another() -> None:
    for job in jobs:
        tight_loop(job)


def side_by_side() -> None:
    list(pool.map(tight_loop, jobs))


def packs_of(size: int) -> Callable[[], None]:
    packs = [jobs[start : start + size] for start in range(0, JOBS, size)]
    return lambda: list(pool.map(lambda pack: fine_tune(base, pack, images), packs)) and None


ways: dict[str, Callable[[], None]] = {f"packs of {size}": packs_of(size) for size in PACKS}
ways |= {f"tight loop, {threads} threads": one_after_another, "tight loops side by side": side_by_side}
rates: dict[str, list[float]] = {way: [] for way in ways}
busy: dict[str, list[float]] = {way: [] for way in ways}
with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
    side_by_side()  # the first use of everything is slower
    for _ in range(runs):
        for way, work in ways.items():
            started, before = time.perf_counter(), time.process_time()
            work()
            rates[way].append(JOBS / (time.perf_counter() - started))
            busy[way].append(1000 * (time.process_time() - before) / JOBS / steps)
print(f"{JOBS} jobs of {steps} steps, {threads} threads: median (least to most) of n={runs}")
for way, found in rates.items():
    spent = statistics.median(busy[way])
    print(f"{way:26} {statistics.median(found):6.3f} ({min(found):.3f} to {max(found):.3f}) jobs/s", end="")
    print(f" {spent:6.2f} ({min(busy[way]):.2f} to {max(busy[way]):.2f}) ms of processor time a step")
