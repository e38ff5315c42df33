"""The arms of a contest: their names, their ranks at equal rank or equal size, and the points that each tries first."""

from __future__ import annotations

import bisect
import dataclasses
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

SIZES = ("adapter.rank", "adapter.rank_pattern", "adapter.layers")  # keys on which the number of parameters depends

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
        name = _name(overrides, spec)
        same = next((known for known, (_, other) in named.items() if spec.adapter == other.adapter), None)
        if same == name:
            continue  # they differ in a key that the method does not use
        if same is not None:
            raise LoraExpError(f"{' '.join(overrides)}: is the same adapter as {same}, so it can't be another arm")
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


def check_distinct(arms: Sequence[Arm], specs: Sequence[RunSpec]) -> None:
    """Raise LoraExpError where points of an arm are one run; `specs` are those of all arms' first points, in order."""
    for arm in arms:
        count = len(first_points(arm))
        own, specs = specs[:count], specs[count:]
        if len(set(own)) < count:
            raise LoraExpError(
                f"contest.space: only {len(set(own))} of the {count} points of {arm.name} are different runs; leave "
                "out values that are equal, and keys that its method does not use"
            )


def _check_spaces(arms: Sequence[Arm], chosen: ContestSettings) -> None:
    methods, swept = {arm.method for arm in arms}, {own.partition("=")[0] for arm in arms for own in arm.overrides}
    closed = {"adapter", "adapter.method", *swept, *(SIZES if chosen.equal != "none" else ())}
    for method, keys in chosen.space:
        if taken := [key for key, _ in keys if key in closed]:
            raise LoraExpError(f"contest.space: {taken[0]} can't be tuned, since it makes the arms what they are")
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

    def at(rank: int) -> RunSpec:
        return dataclasses.replace(spec, adapter=dataclasses.replace(spec.adapter, rank=rank))

    layers = network(spec.model, laboratory.data(spec.data).facts).layers
    widest = max(min(layer.outputs, layer.inputs) for layer in layers)
    above = 1 + bisect.bisect_left(range(1, widest), size, key=lambda rank: _parameters(laboratory, at(rank)))
    rank = min((max(1, above - 1), above), key=lambda one: abs(math.log(_parameters(laboratory, at(one)) / size)))
    return (*overrides, f"adapter.rank={rank}"), at(rank)
