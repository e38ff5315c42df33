"""python benchmarks/frozen_products.py DIR [RUNS]

Share of the machine's sgemm peak that the frozen products reach while packs fine-tune: floating-point operations of
the frozen products (two a weight, forward and backward, without the first layer, whose product is cached) over the
whole time of a step, against plain 2048 x 2048 products on the same threads, measured in turn.
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

from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import AdapterSpec, DataSpec, FinetuneSpec
from lora_exp.data.prepared import prepare
from lora_exp.model.base import assemble, network
from lora_exp.model.data import load
from lora_exp.training.evaluation import frozen_constants
from lora_exp.training.loop import Job, TrainingImages, batch_order, fine_tune

STEPS, JOBS, BATCH = 100, 25, 10
runs = int(sys.argv[2]) if len(sys.argv) > 2 else 7
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
    how = FinetuneSpec((number % 10,), steps=STEPS, seed=number)
    plan = adapter_plan(AdapterSpec(rank=(1, 2, 4, 8, 16)[number // 5]), network(model, MNIST).layers, number, (0,))
    target, rest = train.of_classes(how.target), train.of_classes(MNIST.others(how.target))
    jobs.append(Job(plan, how.learning_rate, batch_order(how, STEPS, how.target, target, rest)))
square = torch.randn(2048, 2048)


def pack(_: int) -> None:
    fine_tune(base, jobs, images)


def products(_: int) -> None:
    for _ in range(10):
        square @ square


def seconds(work: Callable[[int], None]) -> float:
    started = time.perf_counter()
    list(pool.map(work, range(threads)))
    return time.perf_counter() - started


with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
    seconds(pack)
    shares, rates = [], []
    for _ in range(runs):
        peak = threads * 10 * 2 * 2048**3 / seconds(products)
        took = seconds(pack)
        frozen = threads * JOBS * STEPS * BATCH * 2 * 2 * (1000 * 2000 + 2000 * 10)
        shares.append(frozen / took / peak)
        rates.append(threads * JOBS * STEPS / took)
print(f"{threads} packs of {JOBS} jobs at a time: median of n={runs}")
print(f"job-steps/s {statistics.median(rates):.0f} (from {min(rates):.0f} to {max(rates):.0f})")
print(f"share of sgemm peak {statistics.median(shares):.2f} (from {min(shares):.2f} to {max(shares):.2f})")
