"""python benchmarks/executors.py DIR [--repeats 3] [--steps 3000] [--executors local,processes,ray]

How much faster two workers of one thread each are than one, on two cores: 40 jobs on the reference model (rank 1, 2,
4, 8 x digits 0 to 9, batch 10; packs of 20 either way), base in the store, whole commands without MLflow. In turn for
each executor: one worker, two workers, and two workers with one step a job, which is what a command takes besides
training (start-up, evaluation, report). The medians, the ratio of whole commands, and the machine's load before each
command, since others slow down both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

import torch

from lora_exp.storage.provenance import processor

JOBS = ("adapter.rank=1,2,4,8", "finetune.digit=range(0,10)", "tracking=off", "store.folder=store")


def sweep(folder: Path, executor: str, workers: int, steps: int) -> float:
    """Seconds of a whole command; results of earlier ones are moved out of the store."""
    results = folder / "store" / "results"
    if results.exists():
        results.rename(folder / f"results-{uuid.uuid4().hex}")
    many = f"device.threads={workers}" if executor == "local" else f"executor.workers={workers}"
    chosen = [f"executor={executor}", *(["executor.cluster=local"] if executor == "slurm" else []), many]
    command = [sys.executable, "-m", "lora_exp", "-m", *JOBS, f"finetune.steps={steps}", *chosen]
    load = os.getloadavg()[0]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    print(f"  {executor} workers {workers} steps {steps}: {seconds:.1f} s, load before {load:.1f}", flush=True)
    return seconds


parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--executors", default="local,processes,ray")
given = parser.parse_args()
given.folder.mkdir(parents=True, exist_ok=True)
print(f"{os.cpu_count()} cores of {processor()}, torch {torch.__version__}, n={given.repeats}")
sweep(given.folder, "local", 2, 1)  # prepares data and base
for executor in given.executors.split(","):
    ways = {"one": (1, given.steps), "two": (2, given.steps), "besides": (2, 1)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, (workers, steps) in ways.items():
            taken[name].append(sweep(given.folder, executor, workers, steps))
    one, two, besides = (statistics.median(taken[name]) for name in ways)
    print(
        f"{executor}: one worker {one:.1f} s, two {two:.1f} s, {one / two:.2f} times as fast; "
        f"besides training {besides:.1f} s",
        flush=True,
    )
