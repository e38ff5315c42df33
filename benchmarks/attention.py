"""python benchmarks/attention.py DIR [N] [--seconds 3] [--cases 1 2 3 4] [--fused]

Job-steps per second of packs against PEFT on Vision Transformers: LoRA of rank 8 on q, k, v, projection, up and down
of every block, MNIST, Adam at 1e-3, the same batches. The cases are blocks x width, side of a patch, batch:
(1) 2x64, 7, 10; (2) 2x64, 7, 2; (3) 4x128, 7, 10; (4) 4x128, 4, 10. Three tables:

- one thread: one adapter after another with PEFT, against packs of 1, 8 and 25;
- two threads: PEFT, against two packs side by side in forked processes, each as large as the planner makes them;
- one thread, adapters in the last block alone: PEFT, against such a pack with its frozen prefix computed in each step
  and with its outputs kept (which are computed before, and not counted).

PEFT has a process of its own, without the arithmetic that this package asks of MKL, and a plain loop over images that
lie normalised in memory; its Adam is torch's default, or with --fused the fused one. All ways are measured in turn,
N times (default 5) for --seconds each, without set-up and first steps. Medians; ratios are those of the medians, with
the least and the greatest of the N. It takes 10 minutes for N=5. DIR holds the data. The base is untrained, which does
not change its speed. Hardware: two cores that nothing else uses; the first line names the processor.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional

from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.data.prepared import prepare
from lora_exp.executors.local import LocalExecutor
from lora_exp.model.base import BaseModel, network
from lora_exp.model.data import Split, load
from lora_exp.storage.provenance import processor
from lora_exp.training.evaluation import frozen_constants
from lora_exp.training.executor import Files, Pack, PackTask
from lora_exp.training.loop import Job, Progress, TrainingImages, batch_order, fine_tune
from lora_exp.training.packing import job_size, plan_packs

PACKS, CORES, RANK = (1, 8, 25), 2, 8
STEPS = 20_000  # more than any way makes in its time
WARM_UP = 5  # steps that are not counted
PLANNED = 400  # jobs of the sweep whose packs are as large as those of the second and the third table
DATA = DataSpec("mnist", limit=6000)


@dataclass(frozen=True)
class Case:
    """A model and the images of a batch."""

    blocks: int
    width: int
    patch: int
    batch: int

    @property
    def model(self) -> ModelSpec:
        return ModelSpec(kind="vit", blocks=self.blocks, width=self.width, patch=self.patch)

    @functools.cached_property
    def base(self) -> BaseModel:
        form = network(self.model, MNIST)
        return BaseModel(form, form.initial(0))

    def __str__(self) -> str:
        tokens = 1 + (-(-28 // self.patch)) ** 2
        return f"{self.blocks} blocks of {self.width}, {tokens} tokens, batch {self.batch}"


CASES = {1: Case(2, 64, 7, 10), 2: Case(2, 64, 7, 2), 3: Case(4, 128, 7, 10), 4: Case(4, 128, 4, 10)}
LAST_BLOCK = (3, 4)  # the cases of the third table


class Enough(Exception):
    """A measurement has taken its time."""


class Clock:
    """Progress of a pack that counts the job-steps after the first few, and ends training when its time is over."""

    def __init__(self, seconds: float, tell: Progress | None = None, start: Callable[[], object] | None = None) -> None:
        self.seconds, self.tell, self.start = seconds, tell, start
        self.calls = self.job_steps = 0
        self.began = self.ended = 0.0

    def __call__(self, job_steps: int) -> None:
        if self.tell is not None:
            self.tell(job_steps)
        self.calls += 1
        if self.calls < WARM_UP:
            return
        if self.calls == WARM_UP:
            if self.start is not None:
                self.start()
            self.began = time.perf_counter()
            return
        self.job_steps += job_steps
        self.ended = time.perf_counter()
        if self.ended - self.began > self.seconds:
            raise Enough


def data_in(folder: Path) -> Split:
    root = str(folder / "cache" / "data")
    return load(DATA, prepare(DATA, DataFolder(root, None, root)), torch.device("cpu")).train


def order(train: Split, batch: int, seed: int) -> torch.Tensor:
    """The images of each step of a job, which are the same for every way."""
    digit = seed % 10
    how = FinetuneSpec((digit,), steps=STEPS, batch_size=batch, seed=seed)
    target, rest = train.of_classes((digit,)), train.of_classes(MNIST.others((digit,)))
    return batch_order(how, STEPS, (digit,), target, rest)


class Ours:
    """Packs of one case, with adapters in these layers."""

    def __init__(self, case: Case, train: Split, layers: str) -> None:
        self.case, self.train = case, train
        self.adapter = AdapterSpec(rank=RANK, layers=(layers,), init="kaiming")
        plan = adapter_plan(self.adapter, case.base.network.layers, 0, (0,))
        size = job_size(plan, case.base.network, case.batch, STEPS, 10_000)
        self.memory = psutil.virtual_memory().available // 2
        self.planned = len(plan_packs([size] * PLANNED, CORES, self.memory)[0])
        cut = case.base.forward.cut([own.update != "none" for own in plan.layers])
        self.kept = frozen_constants(case.base, train.images, cut)

    def pack(self, jobs: int, first: int = 0) -> Pack:
        seeds = range(first, first + jobs)
        hows = [FinetuneSpec((seed % 10,), steps=STEPS, batch_size=self.case.batch, seed=seed) for seed in seeds]
        return [RunSpec(self.case.model, DATA, BaseSpec(), self.adapter, how) for how in hows]

    def fine_tune(self, pack: Pack, clock: Clock, keeps: bool = True) -> None:
        jobs = []
        for spec in pack:
            seed = spec.finetune.seed
            plan = adapter_plan(spec.adapter, self.case.base.network.layers, seed, (seed % 10,))
            jobs.append(Job(plan, spec.finetune.learning_rate, order(self.train, self.case.batch, seed)))
        images = TrainingImages(self.train.images, self.train.labels, self.kept if keeps else None)
        try:
            fine_tune(self.case.base, jobs, images, clock)
        except Enough:
            return

    def one_pack(self, jobs: int, seconds: float, keeps: bool = True) -> float:
        """Job-steps per second of a pack on one thread."""
        clock = Clock(seconds)
        self.fine_tune(self.pack(jobs), clock, keeps)
        return clock.job_steps / (clock.ended - clock.began)

    def side_by_side(self, seconds: float) -> float:
        """Job-steps per second of packs side by side, each in a forked process."""
        packs = [self.pack(self.planned, core * self.planned) for core in range(CORES)]
        work = Timed(self, packs, seconds)
        for _, why in LocalExecutor(CORES, self.memory).train(deque(packs), work, lambda _: None):
            if why is not None:
                raise SystemExit(why)
        job_steps, began, ended = torch.tensor(work.found[:], dtype=torch.float64).view(-1, 3).unbind(1)
        return float(job_steps.sum() / (ended.max() - began.min()))


class Timed:
    """What an executor runs: packs that begin to count at the same time."""

    def __init__(self, ours: Ours, packs: Sequence[Pack], seconds: float) -> None:
        context = multiprocessing.get_context("fork")
        self.ours, self.packs, self.seconds = ours, packs, seconds
        self.barrier = context.Barrier(len(packs))
        self.found = context.RawArray("d", 3 * len(packs))  # of each pack: job-steps, begin, end

    def run(self, pack: Pack, progress: Progress) -> None:
        clock = Clock(self.seconds, progress, functools.partial(self.barrier.wait, 60))
        self.ours.fine_tune(pack, clock)
        at = 3 * self.packs.index(pack)
        self.found[at : at + 3] = [clock.job_steps, clock.began, clock.ended]

    def task(self, pack: Pack) -> PackTask:
        raise NotImplementedError

    def keep(self, key: str, files: Files) -> None:
        raise NotImplementedError


class Peft:
    """A process in which PEFT trains."""

    def __init__(self, folder: Path, seconds: float, fused: bool) -> None:
        command = [sys.executable, __file__, str(folder), "--seconds", str(seconds), "--as-peft", *["--fused"] * fused]
        # Empty is as if unset, and what is set is not requested.
        environment = os.environ | {"MKL_CBWR": "", "MKL_DISABLE_FAST_MM": ""}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rate(self, number: int, threads: int, only_last: bool = False) -> float:
        """Steps per second of one adapter."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([number, threads, only_last]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the process of PEFT ended")
        return float(answer)

    def end(self) -> None:
        self._process.communicate()


def as_peft(folder: Path, seconds: float, fused: bool) -> None:
    """Answer each line on the standard input with a rate."""
    train = data_in(folder)
    everything = torch.arange(len(train.labels))
    images, labels = train.images[everything].view(-1, *MNIST.shape), train.labels
    for line in sys.stdin:
        number, threads, only_last = json.loads(line)
        torch.set_num_threads(threads)
        print(peft_rate(CASES[number], images, labels, order(train, CASES[number].batch, 0), only_last, seconds, fused))
        sys.stdout.flush()


def peft_rate(
    case: Case,
    images: torch.Tensor,
    labels: torch.Tensor,
    batches: torch.Tensor,
    only_last: bool,
    seconds: float,
    fused: bool,
) -> float:
    """Train a new adapter."""
    from peft import LoraConfig, get_peft_model

    which = case.blocks - 1 if only_last else "[0-9]+"
    targets = rf"blocks\.{which}\.(q|k|v|projection|up|down)"
    module: Any = case.base.network.module(case.base.state)
    model = get_peft_model(module, LoraConfig(r=RANK, lora_alpha=1, target_modules=targets)).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 6 * (1 if only_last else case.blocks)
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=fused or None)
    clock = Clock(seconds)
    try:
        for batch in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            clock(1)
    except Enough:
        pass
    return clock.job_steps / (clock.ended - clock.began)


def times(rates: Sequence[float], others: Sequence[float]) -> str:
    """The ratio of the medians, and the least and the greatest of those measured one after the other."""
    ratios = [rate / other for rate, other in zip(rates, others, strict=True)]
    return f"**{statistics.median(rates) / statistics.median(others):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    print()
    for cells in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(cells) + " |")


def shown(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("repeats", type=int, nargs="?", default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--cases", type=int, nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--fused", action="store_true", help="PEFT with fused Adam")
    parser.add_argument("--as-peft", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.seconds
    if options.as_peft:
        as_peft(options.folder, seconds, options.fused)
        return
    torch.set_num_threads(1)
    train = data_in(options.folder)
    every = {number: Ours(CASES[number], train, "blocks.*") for number in options.cases}
    numbers = [number for number in options.cases if number in LAST_BLOCK]
    last = {number: Ours(CASES[number], train, f"blocks.{CASES[number].blocks - 1}.*") for number in numbers}
    peft = Peft(options.folder, seconds, options.fused)
    ways: dict[tuple[int, str], Callable[[], float]] = {}
    for number, ours in every.items():
        ways[number, "peft"] = functools.partial(peft.rate, number, 1)
        for jobs in PACKS:
            ways[number, f"pack of {jobs}"] = functools.partial(ours.one_pack, jobs, seconds)
        ways[number, "peft on two"] = functools.partial(peft.rate, number, CORES)
        ways[number, "side by side"] = functools.partial(ours.side_by_side, seconds)
    for number, ours in last.items():
        ways[number, "last: peft"] = functools.partial(peft.rate, number, 1, True)
        for keeps, name in ((False, "computed"), (True, "kept")):
            ways[number, f"last: {name}"] = functools.partial(ours.one_pack, ours.planned, seconds, keeps)
    rates: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for (number, name), measure in ways.items():
            rates[number, name].append(measure())
            print(f"  {repeat + 1}: ({number}) {name} {rates[number, name][-1]:,.0f}, load {os.getloadavg()[0]:.1f}")
            sys.stdout.flush()
    peft.end()
    print(f"\n{os.cpu_count()} cores of {processor()}, torch {torch.__version__}, ", end="")
    adam = "fused Adam" if options.fused else "default Adam"
    print(f"peft {importlib.metadata.version('peft')} ({adam}). Job-steps/s, medians of n={options.repeats}.")
    rows = []
    for number in every:
        row = [f"({number}) {CASES[number]}", shown(rates[number, "peft"])]
        for jobs in PACKS:
            own = rates[number, f"pack of {jobs}"]
            row += [shown(own), times(own, rates[number, "peft"])]
        rows.append(row)
    packs = [cell for jobs in PACKS for cell in (f"pack of {jobs}", "times PEFT")]
    table(["one thread", "PEFT", *packs], rows)
    rows = []
    for number, ours in every.items():
        own, other = rates[number, "side by side"], rates[number, "peft on two"]
        name = f"({number}) {CASES[number]}"
        rows.append([name, shown(other), f"2 x {ours.planned}", shown(own), times(own, other)])
    table(["two threads", "PEFT", "packs", "packs side by side", "times PEFT"], rows)
    rows = []
    for number, ours in last.items():
        own, computed = rates[number, "last: kept"], rates[number, "last: computed"]
        row = [f"({number}) {CASES[number]}", shown(rates[number, "last: peft"]), str(ours.planned), shown(computed)]
        rows.append([*row, shown(own), times(own, computed), times(own, rates[number, "last: peft"])])
    columns = ["one thread, last block", "PEFT", "pack of", "prefix computed", "prefix kept"]
    table([*columns, "times computed", "times PEFT"], rows)


if __name__ == "__main__":
    main()
