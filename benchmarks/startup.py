"""python benchmarks/startup.py DIR [ROUNDS]: how long commands make one wait, as multiples of `import torch`.

In each of ROUNDS rounds (default 5) every command runs once, in turn, and so does `python -c "import torch"`; what is
printed are the medians over the rounds, and of their ratios. DIR (made where absent) holds the data, the trained
bases and the database that all of them find, made before anything is timed.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lora_exp.storage.provenance import processor

APP = [sys.executable, "-m", "lora_exp"]
FOUR_TINY = ["-m", "model=tiny", "data.limit=3000", "base.batch_size=50", "adapter.rank=1,4", "finetune.digit=0,1"]
NEW = "finetune.seed={}"  # a seed that the store has no result of
# Name -> arguments, and the largest multiple of `import torch` that it should take.
COMMANDS = {
    "--help": (["--help"], 0.2),
    "--cfg job": (["--cfg", "job"], 0.2),
    "completion": (["-sc", "query=bash"], 0.2),
    "stored run": (["experiment=reference"], 1.6),
    "new run": (["experiment=reference", NEW], 2.3),
    "4 tiny jobs": ([*FOUR_TINY, NEW], 3.0),
}
SEEDS = itertools.count(time.time_ns() % 10**12)


def command(name: str) -> list[str]:
    return [*APP, *(argument.format(next(SEEDS)) if argument == NEW else argument for argument in COMMANDS[name][0])]


def seconds(arguments: list[str], folder: Path) -> float:
    environment = os.environ | ({"COMP_LINE": "lora-exp model=", "COMP_POINT": "15"} if "-sc" in arguments else {})
    started = time.perf_counter()
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-3000:]}")
    return took


def main() -> None:
    folder, rounds = Path(sys.argv[1]).absolute(), int((sys.argv[2:] or ["5"])[0])
    folder.mkdir(parents=True, exist_ok=True)
    torch_ways = [sys.executable, "-c", "import torch"]
    for name in ("stored run", "4 tiny jobs"):  # data, bases, database
        seconds(command(name), folder)
    taken: dict[str, list[float]] = {"import torch": []}
    for _ in range(rounds):
        taken["import torch"].append(seconds(torch_ways, folder))
        for name in COMMANDS:
            taken.setdefault(name, []).append(seconds(command(name), folder))
    print(f"{os.cpu_count()} cores, {processor()}; median of n={rounds}, in turn; load {os.getloadavg()[0]:.1f}")
    for name, values in taken.items():
        ratio = statistics.median(own / torch for own, torch in zip(values, taken["import torch"], strict=True))
        target = f"  (target {COMMANDS[name][1]})" if name in COMMANDS else ""
        print(f"{name:14s} {statistics.median(values):7.2f} s  {ratio:6.2f}{target}")


if __name__ == "__main__":
    main()
