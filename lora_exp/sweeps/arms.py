"""The arms of a contest: their names, their ranks at equal rank or equal size, and the points that each tries first."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.contest import ContestSettings
from lora_exp.config.methods import METHODS
from lora_exp.config.spec import RunSpec
from lora_exp.contest.protocol import Arm
from lora_exp.contest.space import first_points
from lora_exp.errors import LoraExpError, closest, did_you_mean
from lora_exp.model.base import network
from lora_exp.storage.varied import column_of, value_label, value_of

if TYPE_CHECKING:
    from lora_exp.training.laboratory import Laboratory


def arms_of(
    laboratory: Laboratory, combinations: Sequence[tuple[str, ...]], specs: Sequence[RunSpec], chosen: ContestSettings
) -> tuple[Arm, ...]:
    """The arms of these overrides. Raises LoraExpError for what can't be compared fairly."""
    named: dict[str, tuple[tuple[str, ...], RunSpec]] = {}
    for overrides, spec in zip(combinations, specs, strict=True):
        if spec.adapter.method == "none":
            raise LoraExpError("adapter=none: is the base, with which every arm is compared anyway")
        if any(spec.adapter == other.adapter for _, other in named.values()):
            continue  # they differ in a key that the method does not use
        name = _name(overrides, spec)
        named[f"{name} ({' '.join(overrides)})" if name in named else name] = (overrides, spec)  # numbers are rounded
    ranks = {spec.adapter.rank for _, spec in named.values() if _has_rank(spec)}
    if chosen.equal == "rank" and len(ranks) > 1:
        listed = ", ".join(map(str, sorted(ranks)))
        raise LoraExpError(f"contest.equal=rank: the arms have ranks {listed}; use contest.equal=none to compare ranks")
    reference = reference_of(list(named), chosen)
    size = _parameters(laboratory, named[reference][1])
    arms = []
    for name, (overrides, spec) in named.items():
        if chosen.equal == "parameters":
            overrides, spec = _resized(laboratory, overrides, spec, size)
        space = tuple(chosen.points_of(spec.adapter.method).items())
        note = "" if _has_rank(spec) or chosen.equal == "none" else "it has no rank, so its size is its own"
        arms.append(Arm(name, spec.adapter.method, overrides, _parameters(laboratory, spec), space, note))
    _check_spaces(arms, chosen)
    return tuple(arms)


def _check_spaces(arms: Sequence[Arm], chosen: ContestSettings) -> None:
    methods = {arm.method for arm in arms}
    for method, _ in chosen.space:
        if method not in methods:
            raise LoraExpError(
                f"contest.space: {method} is the method of no arm; the methods are {', '.join(sorted(methods))}"
            )
    counts = {arm.name: len(first_points(arm)) for arm in arms}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise LoraExpError(f"contest.space: every arm must try as many points, and these are {listed}")


def _name(overrides: Sequence[str], spec: RunSpec) -> str:
    """What an arm is called: the values of the keys that vary and that its method uses, or its method."""
    used = {"method", *spec.adapter.keys}
    parts = []
    for override in overrides:
        key, _, text = override.partition("=")
        column = column_of(key)
        if column in used:
            parts.append(value_label(column, value_of(text)[0]))
    return ", ".join(parts) or spec.adapter.method


def reference_of(names: Sequence[str], chosen: ContestSettings) -> str:
    """The name of the arm that the others are compared with. Raises LoraExpError where none has it."""
    if chosen.reference is None:
        return "lora" if "lora" in names else names[0]
    if chosen.reference not in names:
        meant = did_you_mean([f"contest.reference={name}" for name in closest(chosen.reference, names)])
        raise LoraExpError(f"contest.reference={chosen.reference}: must be an arm, one of {'; '.join(names)}{meant}")
    return chosen.reference


def _has_rank(spec: RunSpec) -> bool:
    return "rank" in METHODS[spec.adapter.method].keys


def _parameters(laboratory: Laboratory, spec: RunSpec) -> int:
    """How many parameters an adapter trains."""
    data = laboratory.data(spec.data)
    layers = network(spec.model, data.facts).layers
    plan = adapter_plan(spec.adapter, layers, spec.finetune.seed, data.target(spec.finetune))
    return sum(own.parameters(layer.outputs, layer.inputs) for own, layer in zip(plan.layers, layers, strict=True))


def _resized(
    laboratory: Laboratory, overrides: tuple[str, ...], spec: RunSpec, size: int
) -> tuple[tuple[str, ...], RunSpec]:
    """An arm at the rank whose number of parameters is nearest to `size`, by their ratio; as it is without ranks."""
    if not _has_rank(spec):
        return overrides, spec
    if spec.adapter.rank_pattern:
        raise LoraExpError("contest.equal=parameters: sets the ranks, so adapter.rank_pattern must be left out")
    if any(override.startswith("adapter.rank=") for override in overrides):
        raise LoraExpError(
            "contest.equal=parameters: sets the ranks, so adapter.rank can't vary; use contest.equal=none"
        )
    best = spec
    for rank in itertools.count(1):
        at = dataclasses.replace(spec, adapter=dataclasses.replace(spec.adapter, rank=rank))
        count = _parameters(laboratory, at)
        if rank == 1 or abs(math.log(count / size)) < abs(math.log(_parameters(laboratory, best) / size)):
            best = at
        if count >= size or rank > 4 * spec.adapter.rank:
            break
    return (*overrides, f"adapter.rank={best.adapter.rank}"), best
