"""python benchmarks/search_against_grid.py SWEEP [SEEDS] [SHARE]

What a search finds in a space whose whole grid is known: SWEEP is the folder of a grid over two or more keys, with
validation images; seeds of fine-tuning are averaged. Each sampler tries SHARE (0.25) of the settings from SEEDS (50)
seeds, in batches as `search.batch=null` makes them; nothing is trained, since every result is known. Printed: how often
the lowest setting found lies within the confidence interval (95 %, one-sided, of the validation images' binomial
errors) of the grid's lowest, and by how much it is above it on the mean.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

from lora_exp.config.settings import SearchSettings
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.sweeps.search_space import Choice, Space
from lora_exp.sweeps.study import Study

seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 50
share = float(sys.argv[3]) if len(sys.argv) > 3 else 0.25
sweep = read_sweep(Path(sys.argv[1]))
found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
for job, overrides in zip(sweep.frame["job"], sweep.frame["overrides"], strict=True):
    result = sweep.results[job]
    held = result.outcome.validation_after
    assert held is not None
    target = set(result.target)
    variance = 0.0
    for digit, (rate, count) in enumerate(zip(held.error_rates, held.counts, strict=True)):
        weight = 1 / len(target) if digit in target else 1 / (len(held.counts) - len(target))
        variance += weight**2 * rate * (1 - rate) / count
    setting = tuple(one for one in shlex.split(overrides) if not one.startswith("finetune.seed="))
    found.setdefault(setting, []).append((result.objectives(["both_errors"])[0], variance))
errors = {setting: sum(error for error, _ in own) / len(own) for setting, own in found.items()}
best = min(errors, key=lambda setting: errors[setting])
# The validation images are the same for all seeds, so that averaging over seeds makes their sampling error no smaller.
deviation = math.sqrt(sum(variance for _, variance in found[best]) / len(found[best]))
limit = errors[best] + 1.645 * deviation

values: dict[str, dict[str, None]] = {}
for setting in errors:
    for override in setting:
        key, _, value = override.partition("=")
        values.setdefault(key, {})[value] = None
swept = {key: tuple(own) for key, own in values.items() if len(own) > 1}
fixed = tuple(f"{key}={next(iter(own))}" for key, own in values.items() if len(own) == 1)
space = Space((), tuple(Choice(key, own) for key, own in swept.items()))
of_job = {tuple(sorted(one for one in setting if one not in fixed)): error for setting, error in errors.items()}
trials = round(share * len(errors))
batch = max(1, -(-trials // 5))
good = sum(error <= limit for error in errors.values())
shown = " ".join(one for one in best if one not in fixed)
print(
    f"{len(errors)} settings, {len(next(iter(found.values())))} seeds each; lowest {100 * errors[best]:.2f} %: {shown}"
)
print(f"{good} of {len(errors)} settings are within {100 * (limit - errors[best]):.2f} points of it")
for sampler in ("tpe", "nsga2", "random", "qmc", "grid"):
    hits, above = 0, 0.0
    for seed in range(seeds):
        study = Study(None, space, SearchSettings(trials=trials, batch=batch, sampler=sampler, seed=seed))
        lowest = math.inf
        while (done := study.finished()) < trials:
            for _ in range(min(batch, trials - done)):
                study.ask()
            for job, overrides in list(enumerate(study.jobs()))[done:]:
                error = of_job[tuple(sorted(overrides))]
                study.tell(job, [error])
                lowest = min(lowest, error)
        hits += lowest <= limit
        above += (lowest - errors[best]) / seeds
    print(f"{sampler:>6}: {trials} trials, {batch} at a time: {hits} of {seeds} seeds; {100 * above:.2f} points above")
