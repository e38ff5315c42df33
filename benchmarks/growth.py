"""python benchmarks/growth.py DIR: how a job's cost grows with model and rank, and what many workers would make of it.

Measured: for each model and rank a sweep over the ten digits (100 steps, batch 10, without MLflow), the seconds of
fine-tuning and evaluation that its results tell of a job, as medians over the jobs. Simulated from the reference
model's: packs of 25 handed to the first worker that is free, each worker with a start-up, while a job takes DRIVER
seconds to record; both go on at the same time, so the slower of the two is what counts.
"""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from lora_exp.storage.provenance import processor
from lora_exp.storage.sweep_folder import read_sweep

MODELS, RANKS = ("tiny", "small", "medium", "reference"), (1, 8, 64)
# docs/performance.md: seconds a job of the slower of two processes beside each other, of which one launches (0.010) and
# one writes to MLflow.
DRIVER = 0.026
START = 10.0  # of a worker: libraries and data
PACK = 25


def main() -> None:
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in MODELS:
        for rank in RANKS:
            folder = place / f"{model}-{rank}"
            if not folder.exists():
                given = [f"model={model}", f"adapter.rank={rank}", "finetune.digit=range(0,10)", "tracking=off"]
                command = [sys.executable, "-m", "lora_exp", "-m", *given, f"hydra.sweep.dir={folder.name}"]
                subprocess.run(command, cwd=place, check=True, capture_output=True)
            runs = read_sweep(folder).frame
            tuning, judging = runs["seconds_fine_tuning"].median(), runs["seconds_evaluation"].median()
            parameters = int(runs["parameters_base"].iloc[0])
            rows.append([model, f"{parameters:,}", rank, f"{tuning:.3f}", f"{judging:.3f}", tuning + judging])
    print(f"{os.cpu_count()} cores, {processor()}; 10 jobs a row, two packs at a time")
    names = ["model", "parameters", "rank", "fine-tuning (s)", "evaluation (s)", "together (s)"]
    print(pd.DataFrame(rows, columns=names).round(3).to_string(index=False))
    job = next(row[-1] for row in rows if row[0] == "reference" and row[2] == 8)
    workers = (2, 16, 128, 1024)
    table = [[f"{jobs:,}", *(_told(jobs, count, job) for count in workers)] for jobs in (1000, 10_000, 100_000)]
    print(f"\nsimulated, {job:.2f} s a job on a worker:")
    print(pd.DataFrame(table, columns=["jobs", *(f"{count} workers" for count in workers)]).to_string(index=False))


def _told(jobs: int, workers: int, job: float) -> str:
    training, recording = simulated(jobs, workers, job), jobs * DRIVER
    bound = "training" if training > recording else "recording"
    return f"{max(training, recording) / 60:,.1f} min ({bound})"


def simulated(jobs: int, workers: int, job: float) -> float:
    """Seconds until the last pack is done, each pack going to the worker that is free first."""
    free = [START] * workers
    last = 0.0
    for start in range(0, jobs, PACK):
        done = heapq.heappop(free) + min(PACK, jobs - start) * job
        heapq.heappush(free, done)
        last = max(last, done)
    return last


if __name__ == "__main__":
    main()
