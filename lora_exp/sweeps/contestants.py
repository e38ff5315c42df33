"""From the overrides of `lora-exp contest` to its protocol: what varies, what is fixed, and what is no part of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig

from lora_exp.config.contest import RATE
from lora_exp.config.settings import SETTINGS
from lora_exp.config.spec import NOT_SPEC, RunSpec
from lora_exp.contest.protocol import Protocol
from lora_exp.contest.space import first_points
from lora_exp.errors import LoraExpError
from lora_exp.sweeps.arms import arms_of, check_distinct, reference_of
from lora_exp.sweeps.job import open_laboratory
from lora_exp.sweeps.job_configs import job_configs
from lora_exp.sweeps.sweep import read_jobs

if TYPE_CHECKING:
    from lora_exp.config.settings import Settings

TARGETS = ("finetune.target", "finetune.digit")
# Overrides that say where something is, or is computed: they are no part of what is compared.
PLACES = {*SETTINGS, "hydra"}
HELD_OUT = 0.1  # share of the training images, where the config holds none out
# Keys that the contest itself sets, and what to set instead.
OWN = {
    RATE: "every arm tries the rates of contest.rates",
    "base.seed": "contest.selection and contest.judging say how many bases there are, a single value which is the "
    "first, and a preset that varies it can't be used",
    "finetune.seed": "contest.seeds says how many orders of images there are on each base",
}


@dataclass(frozen=True)
class _Asked:
    """What overrides ask for: the overrides of each arm, one for each target, and those of every job.

    `places` say where something is, or is computed, and are no part of what is compared; `fixed` are the others.
    """

    arms: list[tuple[str, ...]]
    targets: list[str]
    fixed: list[str]
    places: list[str]

    @staticmethod
    def of(overrides: Sequence[Override]) -> _Asked:
        """Raises LoraExpError for keys that a contest sets itself, and for those that can't vary in it."""
        swept = {one.get_key_element(): _values(one) for one in overrides if one.is_sweep_override()}
        targets = _targets(overrides, swept)
        _check_keys(overrides, swept)
        shared = [one for one in overrides if not one.is_sweep_override() and one.key_or_group not in TARGETS]
        varied = {key: values for key, values in swept.items() if key not in TARGETS}
        return _Asked(
            [
                tuple(f"{key}={value}" for key, value in zip(varied, values, strict=True))
                for values in itertools.product(*varied.values())
            ],
            targets,
            [one.input_line or "" for one in shared if not _is_place(one)],
            [one.input_line or "" for one in shared if _is_place(one)],
        )

    def job(self, *own: str, target: str) -> list[str]:
        """The overrides of a job of its own."""
        return [*self.places, *self.fixed, *own, *filter(None, [target])]


def contest_of(
    context: HydraContext, config: DictConfig, overrides: Sequence[Override]
) -> tuple[Protocol, list[str], RunSpec, Settings]:
    """The protocol of the contest that overrides describe; the overrides of every job that are no part of it; the spec
    of its first job, and the settings of all.

    Raises LoraExpError for what can't be compared fairly, and for the first job that is not valid.
    """
    # Keys of `contest` are no part of a job, so that each can be run alone by its overrides.
    of_contest = [_of_contest(one) for one in overrides if one.key_or_group.startswith("contest.")]
    asked = _Asked.of([one for one in overrides if not one.key_or_group.startswith("contest.")])
    configs = job_configs(context.config_loader, config)
    first, settings = configs.read([*asked.job(*asked.arms[0], target=asked.targets[0]), *of_contest])
    if settings.halving.eta is not None:
        raise LoraExpError(
            f"halving.eta={settings.halving.eta:g}: compares jobs of different arms; a contest has contest.halving=true"
        )
    if first.data.validation == 0:
        if any(line.startswith("data.validation=") for line in asked.fixed):
            raise LoraExpError(
                "data.validation=0: a contest chooses on validation images; without this it takes a tenth"
            )
        asked.fixed.append(f"data.validation={HELD_OUT}")
    if first.base.epochs == 0:
        raise LoraExpError("base.epochs=0: makes one base, and a contest needs several; use base.epochs=1 or more")
    jobs = [asked.job(*own, target=target) for own in asked.arms for target in asked.targets]
    specs, _ = read_jobs(context, config, jobs, numbered=False)
    chosen, laboratory = settings.contest, open_laboratory(settings)
    arms = arms_of(laboratory, asked.arms, specs[:: len(asked.targets)], chosen)
    # Every point that is tried first, so that a value which is not allowed is found before anything runs.
    points = [
        asked.job(*arm.overrides, *point.overrides, target=asked.targets[0])
        for arm in arms
        for point in first_points(arm)
    ]
    check_distinct(arms, read_jobs(context, config, points, numbered=False)[0])
    data, seed = laboratory.data(specs[0].data), first.base.seed
    classes = [data.facts.named(data.target(spec.finetune)) for spec in specs[: len(asked.targets)]]
    protocol = Protocol(
        arms=arms,
        reference=reference_of([arm.name for arm in arms], chosen),
        targets=tuple(asked.targets),
        classes=tuple(map(",".join, classes)),
        fixed=tuple(asked.fixed),
        equal=chosen.equal,
        measure=chosen.measure,
        margin=chosen.margin,
        widenings=chosen.widenings,
        selection=tuple(range(seed, seed + chosen.selection)),
        judging=tuple(range(seed + chosen.selection, seed + chosen.selection + chosen.judging)),
        seeds=chosen.seeds,
        steps=None if first.finetune.epochs is not None else first.finetune.steps,
        halving=chosen.halving,
        data_sha256=data.sha256,
        settings=_shared(specs[0], {part.partition("=")[0] for part in asked.arms[0]}),
    )
    return protocol, asked.places, specs[0], settings


def _shared(spec: RunSpec, swept: set[str]) -> dict[str, dict[str, Any]]:
    """The settings that all jobs share, by group: not what the arms differ in, nor what the contest sets."""
    groups = dataclasses.asdict(spec)
    own = {*OWN, *TARGETS, *swept, *(["adapter.method"] if "adapter" in swept else [])}
    return {
        group: {key: value for key, value in values.items() if f"{group}.{key}" not in own}
        for group, values in groups.items()
    }


def _of_contest(override: Override) -> str:
    """The text of a key of `contest`. Raises LoraExpError where Hydra takes it for several values."""
    line = override.input_line or ""
    if override.is_sweep_override():
        key = override.key_or_group
        form = f"'{key}=[1e-4,1e-3,1e-2]'" if key == "contest.rates" else f"""'{key}="lora, rank 4"'"""
        raise LoraExpError(f"{line}: must be one value; one with commas is written {form}")
    return line


def _is_place(override: Override) -> bool:
    group, _, name = override.key_or_group.partition("/")[0].partition(".")
    return group in PLACES or (group, name) in {*NOT_SPEC, ("base", "weights")}


def _check_keys(overrides: Sequence[Override], swept: dict[str, list[str]]) -> None:
    """Raise LoraExpError for keys that a contest sets itself, and for those that can't vary in it."""
    for one in overrides:
        key, line = one.get_key_element(), one.input_line
        if key == "adapter.method" and "adapter" in swept:
            raise LoraExpError(f"{line}: would make all arms of adapter={','.join(swept['adapter'])} one method")
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
