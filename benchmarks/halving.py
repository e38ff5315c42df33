"""python benchmarks/halving.py DIR [OVERRIDE ...]: what successive halving finds beside the whole grid, and saves.

Runs `experiment=rank_by_digit` with three learning rates on the reference model, whole and halved, in DIR. Of both, the
job of each digit with the lowest error on validation images is taken, and its error on test images is printed, with the
lowest of the whole grid on test images beside it (which nobody could have chosen without looking at them).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from lora_exp.storage.sweep_folder import Sweep, read_sweep

GRID = ("experiment=rank_by_digit", "finetune.learning_rate=0.0003,0.001,0.003", "data.validation=5000", "tracking=off")
HALVING = ("halving.eta=3", "halving.first=10", "halving.objective=target_error")


def main() -> None:
    place, given = Path(sys.argv[1]), sys.argv[2:]
    place.mkdir(parents=True, exist_ok=True)
    for name, more in (("whole", ()), ("halved", HALVING)):
        if not (place / name).exists():
            command = [sys.executable, "-m", "lora_exp", "-m", *GRID, *given, *more, f"hydra.sweep.dir={name}"]
            subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    whole, halved = read_sweep(place / "whole"), read_sweep(place / "halved")
    rows = []
    for digit in whole.frame["target"].unique():
        grid, found = _chosen(whole, digit), _chosen(halved, digit)
        lowest = whole.frame[whole.frame["target"] == digit]["target_error"].min()
        images = whole.results[grid].outcome.after.counts[int(digit)]
        _, high = proportion_confint(round(lowest * images), images, method="wilson")
        errors = [whole.frame["target_error"][grid], halved.frame["target_error"][found]]
        rows.append([digit, *(f"{100 * error:.2f}" for error in (*errors, lowest)), errors[1] <= high])
    names = ["target", "grid (%)", "halving (%)", "lowest of the grid (%)", "within its Wilson interval"]
    print(pd.DataFrame(rows, columns=names).to_string(index=False))
    steps = sum(result.outcome.steps for result in whole.results.values())
    made = sum(result.outcome.steps for result in halved.results.values())
    made += sum(stopped.step for stopped in halved.stopped.values())
    print(f"job-steps: {made:,} of {steps:,} ({100 * made / steps:.1f} %), {len(whole.frame)} jobs")


def _chosen(sweep: Sweep, digit: str) -> int:
    """The job of a digit with the lowest error on the target's validation images, the first of equals."""
    errors = {}
    for job, result in sweep.results.items():
        if sweep.frame["target"][job] == digit:
            [errors[job]] = result.objectives(["target_error"])
    return min(errors, key=lambda job: (errors[job], job))


if __name__ == "__main__":
    main()
