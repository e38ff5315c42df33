"""Which settings a trial tries: the samplers of `search.sampler`, each a function of what was asked and told before.

A sampler is made anew for each job, from a seed of its own, and keeps nothing: a search that goes on in another process
asks what it would have asked in the first. Optuna's own samplers of CMA-ES and of quasi-random points don't serve:
the one keeps its state in the study as bytes that are code when they are read, the other draws a whole first batch at
random.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_exp.config.settings import SearchSettings
from lora_exp.config.spec import digest
from lora_exp.errors import LoraExpError
from lora_exp.sweeps.search_space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def check_sampler(settings: SearchSettings, space: Space) -> None:
    """Raise LoraExpError, of one line, when the sampler can't search this space or for these objectives."""
    name = f"search.sampler={settings.sampler}"
    if settings.sampler == "grid" and space.size is None:
        raise LoraExpError(f"{name}: needs a choice or a range for each key, since an interval can't be listed")
    if settings.sampler == "cmaes":
        if len(settings.objectives) > 1:
            raise LoraExpError(f"{name}: takes one of search.objectives; several go with tpe, nsga2, random, grid, qmc")
        if not any(dimension.is_ordered for dimension in space.dimensions):
            raise LoraExpError(f"{name}: needs an interval or a range, since choices have no order")


def optuna_sampler(settings: SearchSettings, job: int) -> BaseSampler:
    """The Optuna sampler that asks job number `job`."""
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    seed = _seed(settings, job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of this experimental
        if settings.sampler == "tpe":
            # The liar keeps the trials of one batch apart, since none of them knows what came of the others.
            return TPESampler(multivariate=True, constant_liar=True, seed=seed)
        if settings.sampler == "nsga2":
            return NSGAIISampler(population_size=max(settings.batch or 2, 2), seed=seed)
        return RandomSampler(seed=seed)


def proposal(
    settings: SearchSettings, space: Space, job: int, told: Mapping[int, tuple[Mapping[str, Any], float | None]]
) -> dict[str, Any] | None:
    """The values by key that job number `job` is to try; None leaves it to `optuna_sampler`.

    `told` holds, by job, what was tried and what came of it (None for a job without a sound result).
    """
    if settings.sampler == "grid":
        units = _grid_point(settings, space, job)
    elif settings.sampler == "qmc":
        units = _quasi_random_point(settings, space, job)
    elif settings.sampler == "cmaes":
        units = _evolved_point(settings, space, job, told)
    else:
        return None
    return {one.key: one.at(unit) for one, unit in zip(space.dimensions, units, strict=True)}


def _grid_point(settings: SearchSettings, space: Space, job: int) -> list[float]:
    """Every setting once, in an order that the seed gives."""
    place, units = int(_order(_seed(settings), space.size or 0)[job]), []
    for dimension in space.dimensions:
        place, own = divmod(place, len(dimension.probes()))
        units.append((own + 0.5) / len(dimension.probes()))
    return units


@functools.lru_cache(maxsize=1)
def _order(seed: int, size: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).permutation(size)


def _quasi_random_point(settings: SearchSettings, space: Space, job: int) -> list[float]:
    """Sobol's sequence, scrambled."""
    from scipy.stats.qmc import Sobol

    points = Sobol(len(space.dimensions), scramble=True, rng=_seed(settings))
    return [float(unit) for unit in (points.fast_forward(job) if job else points).random(1)[0]]


def _evolved_point(
    settings: SearchSettings, space: Space, job: int, told: Mapping[int, tuple[Mapping[str, Any], float | None]]
) -> list[float]:
    """CMA-ES in the unit cube of what has an order; choices, which have none, are drawn.

    A generation is a whole number of batches, so that all of it is told before the next is asked.
    """
    import numpy as np
    from cmaes import CMA

    ordered = [dimension for dimension in space.dimensions if dimension.is_ordered]
    batch = settings.batch or 1
    least = 4 + int(3 * np.log(len(ordered)))
    population = batch * -(-least // batch)
    bounds = np.array([[0.0, 1.0]] * len(ordered))
    evolution = CMA(np.full(len(ordered), 0.5), 1 / 6, bounds, seed=_seed(settings, job), population_size=population)
    for generation in range(job // population):
        found = []
        for number in range(generation * population, (generation + 1) * population):
            values, result = told[number]
            point = np.array([dimension.unit(values[dimension.key]) for dimension in ordered])
            # Only the order of results counts: a job without one comes last.
            found.append((point, np.inf if result is None else result))
        evolution.tell(found)
    evolved = dict(zip([dimension.key for dimension in ordered], evolution.ask().tolist(), strict=True))
    drawn = np.random.default_rng(_seed(settings, job))
    return [evolved.get(dimension.key, float(drawn.random())) for dimension in space.dimensions]


def _seed(settings: SearchSettings, *parts: object) -> int:
    return int(digest(["search", settings.seed, *parts])[:8], 16)
