"""From the overrides of `lora-exp contest` to its protocol: the arms, at equal rank or equal size, and the targets."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig

from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.contest import RATE, ContestSettings
from lora_exp.config.methods import METHODS
from lora_exp.config.settings import SETTINGS
from lora_exp.config.spec import NOT_SPEC, RunSpec
from lora_exp.contest.protocol import Arm, Protocol
from lora_exp.contest.space import first_points
from lora_exp.errors import LoraExpError, closest, did_you_mean
from lora_exp.model.base import network
from lora_exp.storage.varied import column_of, value_label, value_of
from lora_exp.sweeps.job import open_laboratory
from lora_exp.sweeps.job_configs import job_configs
from lora_exp.sweeps.sweep import read_jobs

if TYPE_CHECKING:
    from lora_exp.config.settings import Settings
    from lora_exp.training.laboratory import Laboratory

TARGETS = ("finetune.target", "finetune.digit")
# Overrides that say where something is, or is computed: they are no part of what is compared.
PLACES = {*SETTINGS, "hydra"} - {"halving", "contest"}
HELD_OUT = 0.1  # share of the training images, where the config holds none out
# Keys that the contest itself sets, and what to set instead.
OWN = {
    RATE: "every arm tries the rates of contest.rates",
    "base.seed": "contest.selection and contest.judging say how many bases there are; a single value is the first",
    "finetune.seed": "contest.seeds says how many orders of images there are on each base",
}


def contest_of(
    context: HydraContext, config: DictConfig, overrides: Sequence[Override]
) -> tuple[Protocol, list[str], RunSpec, Settings]:
    """The protocol of the contest that overrides describe; the overrides of every job that are no part of it; the spec
    of its first job, and the settings of all.

    Raises LoraExpError for what can't be compared fairly, and for the first job that is not valid.
    """
    settings_of_contest = [one.input_line or "" for one in overrides if one.key_or_group.startswith("contest.")]
    rest = [one for one in overrides if not one.key_or_group.startswith("contest.")]
    swept = {one.get_key_element(): _values(one) for one in rest if one.is_sweep_override()}
    shared = [one for one in rest if not one.is_sweep_override() and one.key_or_group not in TARGETS]
    places = [one.input_line or "" for one in shared if _is_place(one)]
    fixed = [one.input_line or "" for one in shared if not _is_place(one)]
    targets = _targets(rest, swept)
    _check_keys(rest, swept)

    combinations = [
        tuple(f"{key}={value}" for key, value in zip(arms, values, strict=True))
        for arms in [[key for key in swept if key not in TARGETS]]
        for values in itertools.product(*(swept[key] for key in arms))
    ]
    configs = job_configs(context.config_loader, config)
    probe = [*places, *fixed, *combinations[0], *filter(None, targets[:1])]
    first, settings = configs.read([*probe, *settings_of_contest])
    if first.data.validation == 0:
        fixed.append(f"data.validation={HELD_OUT}")
    if first.base.epochs == 0:
        raise LoraExpError("base.epochs=0: makes one base, and a contest needs several; use base.epochs=1 or more")
    # The settings of `contest` are no part of a job, so that each can be run alone by its overrides.
    alone = [[*places, *fixed, *own, *filter(None, [target])] for own in combinations for target in targets]
    specs, _ = read_jobs(context, config, alone, numbered=False)
    chosen = settings.contest
    laboratory = open_laboratory(settings)
    arms = _arms(laboratory, combinations, specs[:: len(targets)], chosen)
    facts = laboratory.data(specs[0].data).facts
    protocol = Protocol(
        arms=arms,
        reference=_reference(arms, chosen),
        targets=tuple(targets),
        fixed=tuple(fixed),
        equal=chosen.equal,
        measure=chosen.measure,
        margin=chosen.margin,
        widenings=chosen.widenings,
        selection=tuple(range(first.base.seed, first.base.seed + chosen.selection)),
        judging=tuple(first.base.seed + chosen.selection + at for at in range(chosen.judging)),
        seeds=chosen.seeds,
        steps=None if first.finetune.epochs is not None else first.finetune.steps,
        halving=settings.halving.eta is not None,
        data_sha256=laboratory.data(specs[0].data).sha256,
        settings=_shared(specs[0], settings, set(swept)),
        classes=tuple(
            ",".join(facts.named(facts.positions("finetune.target", spec.finetune.target)))
            for spec in specs[: len(targets)]
        ),
    )
    # Every point that is tried first, so that a value which is not allowed is found before anything runs.
    points = [
        [*places, *fixed, *arm.overrides, *point.overrides, *filter(None, targets[:1])]
        for arm in arms
        for point in first_points(arm)
    ]
    read_jobs(context, config, points, numbered=False)
    return protocol, places, specs[0], settings


def _shared(spec: RunSpec, settings: Settings, swept: set[str]) -> dict[str, dict[str, Any]]:
    """The settings that all jobs share, by group: not what the arms differ in, nor what the contest sets."""
    groups = dataclasses.asdict(spec) | {"halving": dataclasses.asdict(settings.halving)}
    own = {*OWN, *TARGETS, *swept, *(["adapter.method"] if "adapter" in swept else [])}
    return {
        group: {key: value for key, value in values.items() if f"{group}.{key}" not in own}
        for group, values in groups.items()
    }


def _is_place(override: Override) -> bool:
    group, _, name = override.key_or_group.partition("/")[0].partition(".")
    return group in PLACES or (group, name) in {*NOT_SPEC, ("base", "weights")}


def _check_keys(overrides: Sequence[Override], swept: dict[str, list[str]]) -> None:
    """Raise LoraExpError for keys that a contest sets itself, and for those that can't vary in it."""
    for one in overrides:
        key, line = one.get_key_element(), one.input_line
        if key in OWN and (one.is_sweep_override() or key != "base.seed"):
            raise LoraExpError(f"{line}: a contest sets this itself; {OWN[key]}")
        if key in swept and key not in TARGETS and key.partition(".")[0] != "adapter":
            raise LoraExpError(
                f"{line}: can't vary in a contest, in which only keys of adapter and the targets do; run a contest for "
                "each value"
            )


def _values(override: Override) -> list[str]:
    """The values of a key that varies, as text. Raises LoraExpError where they can't be listed."""
    if override.is_interval_sweep():
        raise LoraExpError(f"{override.input_line}: must be a list of values, such as adapter.rank=1,4")
    return list(dict.fromkeys(map(str, override.sweep_string_iterator())))


def _targets(overrides: Sequence[Override], swept: dict[str, list[str]]) -> list[str]:
    """An override for each target; an empty one where only the config names it."""
    given = [one for one in overrides if one.key_or_group in TARGETS]
    if len({one.key_or_group for one in given}) > 1:
        raise LoraExpError(f"{given[-1].input_line}: finetune.digit and finetune.target are two names of one key")
    if not given:
        return [""]
    last = given[-1]
    key = last.get_key_element()
    return [f"{key}={value}" for value in swept[key]] if key in swept else [last.input_line or ""]


def _arms(
    laboratory: Laboratory, combinations: Sequence[tuple[str, ...]], specs: Sequence[RunSpec], chosen: ContestSettings
) -> tuple[Arm, ...]:
    """The arms of these overrides. Raises LoraExpError for what can't be compared fairly."""
    named: dict[str, tuple[tuple[str, ...], RunSpec]] = {}
    for overrides, spec in zip(combinations, specs, strict=True):
        if spec.adapter.method == "none":
            raise LoraExpError("adapter=none: is the base, with which every arm is compared anyway")
        if any(spec.adapter == other.adapter for _, other in named.values()):
            continue  # they differ in a key that the method does not use
        named[_name(overrides, spec)] = (overrides, spec)
    ranks = {spec.adapter.rank for _, spec in named.values() if _has_rank(spec)}
    if chosen.equal == "rank" and len(ranks) > 1:
        listed = ", ".join(map(str, sorted(ranks)))
        raise LoraExpError(f"contest.equal=rank: the arms have ranks {listed}; use contest.equal=none to compare ranks")
    reference = _reference_name(list(named), chosen)
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


def _reference(arms: Sequence[Arm], chosen: ContestSettings) -> str:
    return _reference_name([arm.name for arm in arms], chosen)


def _reference_name(names: Sequence[str], chosen: ContestSettings) -> str:
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
