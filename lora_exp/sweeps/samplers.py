"""The samplers of `search.sampler`: which values the next trial gets.

A sampler is a function of the seed, the job's number and the trials so far, so a search that is resumed in another
process samples the same trials. `tpe`, `nsga2` and `random` are Optuna's. Its CMA-ES sampler keeps its state in a
format that can run code when it is read; its QMC sampler draws the whole first batch at random. So these two are ours.
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

Trial = tuple[Mapping[str, Any], float | None]


def check_sampler(settings: SearchSettings, space: Space) -> None:
    """Raise LoraExpError when the sampler can't search this space or can't minimise these objectives."""
    name = f"search.sampler={settings.sampler}"
    if settings.sampler == "grid" and space.size is None:
        raise LoraExpError(f"{name}: needs a choice or a range for each key, since an interval can't be listed")
    if settings.sampler == "cmaes":
        if len(settings.objectives) > 1:
            others = "tpe, nsga2, random, grid or qmc"
            raise LoraExpError(f"{name}: takes one of search.objectives; for several use {others}")
        if not any(dimension.is_ordered for dimension in space.dimensions):
            raise LoraExpError(f"{name}: needs an interval or a range, since choices have no order")


def optuna_sampler(settings: SearchSettings, job: int) -> BaseSampler:
    """The Optuna sampler for job number `job`."""
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    seed = _seed(settings, job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these options are experimental
        if settings.sampler == "tpe":
            # The constant liar keeps the trials of a batch apart: they are sampled before any of them has a result.
            return TPESampler(multivariate=True, constant_liar=True, seed=seed)
        if settings.sampler == "nsga2":
            return NSGAIISampler(population_size=max(settings.batch or 2, 2), seed=seed)
        return RandomSampler(seed=seed)


def suggest(settings: SearchSettings, space: Space, job: int, trials: Mapping[int, Trial]) -> dict[str, Any] | None:
    """The values by key for job number `job`; None leaves them to `optuna_sampler`.

    `trials` holds the values and the first objective (None if the job failed) of earlier jobs, by job number.
    """
    if settings.sampler == "grid":
        return _grid_point(settings, space, job)
    if settings.sampler == "qmc":
        units = _quasi_random_point(settings, space, job)
    elif settings.sampler == "cmaes":
        units = _cma_es_point(settings, space, job, trials)
    else:
        return None
    return {one.key: one.at(unit) for one, unit in zip(space.dimensions, units, strict=True)}


def _grid_point(settings: SearchSettings, space: Space, job: int) -> dict[str, Any]:
    """Each combination once, in an order drawn from the seed."""
    import numpy as np

    values = {dimension.key: dimension.probes() for dimension in space.dimensions}
    place = _shuffled(_seed(settings), space.size or 0)[job]
    places = np.unravel_index(place, [len(own) for own in values.values()], order="F")
    return {key: own[at] for (key, own), at in zip(values.items(), places, strict=True)}


@functools.lru_cache(maxsize=1)
def _shuffled(seed: int, size: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).permutation(size)


def _quasi_random_point(settings: SearchSettings, space: Space, job: int) -> list[float]:
    """A point of the scrambled Sobol sequence."""
    from scipy.stats.qmc import Sobol

    points = Sobol(len(space.dimensions), scramble=True, rng=_seed(settings))
    return [float(unit) for unit in (points.fast_forward(job) if job else points).random(1)[0]]


def _cma_es_point(settings: SearchSettings, space: Space, job: int, trials: Mapping[int, Trial]) -> list[float]:
    """CMA-ES over the unit cube of the ordered dimensions; choices are drawn uniformly.

    A generation is a whole number of batches, so that it has all its results before the next one is sampled.
    """
    import numpy as np
    from cmaes import CMA

    ordered = [dimension for dimension in space.dimensions if dimension.is_ordered]
    batch, least = settings.batch or 1, 4 + int(3 * np.log(len(ordered)))
    population = batch * -(-least // batch)
    bounds = np.array([[0.0, 1.0]] * len(ordered))
    evolution = CMA(np.full(len(ordered), 0.5), 1 / 6, bounds, seed=_seed(settings, job), population_size=population)
    for generation in range(job // population):
        found = []
        for number in range(generation * population, (generation + 1) * population):
            values, objective = trials[number]
            point = np.array([dimension.unit(values[dimension.key]) for dimension in ordered])
            # CMA-ES uses only the order of the objectives; a failed job comes last.
            found.append((point, np.inf if objective is None else objective))
        evolution.tell(found)
    evolved = dict(zip([dimension.key for dimension in ordered], evolution.ask().tolist(), strict=True))
    drawn = np.random.default_rng(_seed(settings, job))
    return [evolved.get(dimension.key, float(drawn.random())) for dimension in space.dimensions]


def _seed(settings: SearchSettings, *parts: object) -> int:
    return int(digest(["search", settings.seed, *parts])[:8], 16)
