"""The configs of a sweep's jobs: what Hydra would compose, put together from parts that many jobs share.

Hydra composes each job from its files, which takes 90 to 140 ms. Most jobs of a sweep differ only in values, and most
groups of a job's config are the same as another job's. So the files are composed once per choice of config groups, and
a group is read, and written as YAML, once per list of its values.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

from lora_exp.config.compose import one_line_errors, plain, read, without_hydra
from lora_exp.config.hydra_rules import check_hydra
from lora_exp.config.names import GROUPS
from lora_exp.config.settings import Settings, settings_from
from lora_exp.config.spec import SPECS, RunSpec, spec_from
from lora_exp.errors import LoraExpError

INTERPOLATION = "${"


@dataclass(frozen=True)
class Group:
    """A group of a config, as plain values."""

    name: str
    values: Any

    @functools.cached_property
    def text(self) -> str:
        """Its lines in `.hydra/config.yaml`."""
        return _yaml({self.name: self.values})


@dataclass(frozen=True)
class Template:
    """The config of a choice of config groups.

    `own` is the application's part, `groups` the same by group, or None where a value may refer to another group.
    `hydra` is the rest as plain values, not resolved, and `sections` its lines in `.hydra/hydra.yaml` by key.
    """

    own: DictConfig
    groups: dict[str, Group] | None
    hydra: dict[str, Any]
    sections: dict[str, str]


class JobConfigs:
    """The configs of the jobs of a sweep: equal to Hydra's `load_sweep_config`, which is the fallback."""

    def __init__(self, config_loader: ConfigLoader, master: DictConfig) -> None:
        """`master` is the config of the sweep, which is one of runs."""
        self._loader = config_loader
        self.master = master
        parser = OverridesParser.create(config_loader=config_loader)
        # The jobs of a grid share few override strings.
        self._parse = functools.lru_cache(maxsize=4096)(lambda text: parser.parse_overrides([text])[0])
        # `get_group_options` takes 10 ms, since Hydra copies all configs that it has read.
        self._is_group = functools.cache(lambda key: bool(config_loader.get_group_options(key)))
        self._template = functools.cache(self._composed)
        self._group = functools.cache(self._with_values)
        self._settings: dict[tuple[tuple[str, ...], tuple[str, ...]], Settings] = {}

    def read(self, overrides: Sequence[str]) -> tuple[RunSpec, Settings]:
        """The spec and the settings of a job, equal to `read(own(overrides))`, in a fraction of the time.

        Raises LoraExpError for overrides that Hydra, the schema or the spec rejects.
        """
        try:
            with one_line_errors():
                found = self._read_by_group(overrides)
        except LoraExpError:  # whose message may name a value that was not the first to be wrong
            found = None
        return found or read(self.own(overrides))

    def own(self, overrides: Sequence[str]) -> DictConfig:
        """The application's own part of a job's config, in about 2 ms.

        Raises LoraExpError for overrides that Hydra or the schema rejects.
        """
        with one_line_errors():
            values, choices = self._parts(overrides)
            config = copy.deepcopy(self._template(choices).own)
            if all(_applied(config, override.key_or_group, override) for override in values):
                return config
            return without_hydra(self._loaded(overrides))

    def task(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a job without those of Hydra's own keys."""
        return [override.input_line or "" for override in self._of_task(overrides)]

    def saved(self, overrides: Sequence[str], number: int, folder: Path) -> dict[str, str]:
        """The files of `.hydra`, by name, as Hydra writes them for job `number` in this (absolute) folder."""
        groups, template = self._by_group(overrides), self._template(self._parts(overrides)[1])
        given = self._of_task(overrides)
        naming = template.hydra["job"]["config"]["override_dirname"]
        changed = {
            "overrides": {"task": self.task(overrides)},
            "job": {"override_dirname": get_overrides_dirname(given, **naming), "id": str(number), "num": number},
            "runtime": {"output_dir": str(folder)},
        }
        sections = {key: _section(key, template.hydra[key] | values) for key, values in changed.items()}
        return {
            "config.yaml": OmegaConf.to_yaml(self.own(overrides)) if groups is None else _joined(groups),
            "hydra.yaml": "hydra:\n" + "".join((template.sections | sections).values()),
            "overrides.yaml": _yaml(self.task(overrides)),
        }

    def _read_by_group(self, overrides: Sequence[str]) -> tuple[RunSpec, Settings] | None:
        """Read the groups of a job one by one; None where that is not possible."""
        groups = self._by_group(overrides)
        if groups is None:
            return None
        config = {name: group.values for name, group in groups.items()}
        values, choices = self._parts(overrides)
        # The folder of the data is a setting, and so is the file of weights.
        with_settings = (set(groups) - set(SPECS)) | {"data", "base"}
        settings = [line for line, name in map(_line_and_group, values) if name in with_settings]
        key = (choices, tuple(settings))
        if key not in self._settings:
            self._settings[key] = settings_from(config)
        return spec_from(config), self._settings[key]

    def _by_group(self, overrides: Sequence[str]) -> dict[str, Group] | None:
        """The groups of a job's config; None where a value may depend on that of another group, or is rejected."""
        values, choices = self._parts(overrides)
        groups = self._template(choices).groups
        if groups is None:
            return None
        lines: dict[str, tuple[str, ...]] = {}
        for line, name in map(_line_and_group, values):
            lines[name] = (*lines.get(name, ()), line)
        changed = {name: self._group(choices, name, own) for name, own in lines.items()}
        known = {name: group for name, group in changed.items() if group is not None}
        return groups | known if len(known) == len(changed) else None

    def _with_values(self, choices: tuple[str, ...], name: str, lines: tuple[str, ...]) -> Group | None:
        """A group of the config of these choices, with these values; None where one refers to others or is rejected."""
        own = self._template(choices).own
        if name not in own:
            return None
        node = copy.deepcopy(own._get_node(name))
        assert isinstance(node, DictConfig)
        for override in map(self._parse, lines):
            if not _applied(node, override.key_or_group.partition(".")[2], override):
                return None
        found = OmegaConf.to_container(node, throw_on_missing=True)
        return None if INTERPOLATION in str(found) else Group(name, found)

    def _of_task(self, overrides: Sequence[str]) -> list[Override]:
        return [override for override in map(self._parse, overrides) if not override.is_hydra_override()]

    def _parts(self, overrides: Sequence[str]) -> tuple[list[Override], tuple[str, ...]]:
        """The overrides that set values, and all others."""
        parsed = [self._parse(override) for override in overrides]
        choices = [override for override in parsed if not self._sets_a_value(override)]
        values = [override for override in parsed if self._sets_a_value(override)]
        return values, tuple(override.input_line or "" for override in choices)

    def _composed(self, choices: tuple[str, ...]) -> Template:
        """Compose the config of these overrides."""
        whole = self._loaded(choices)
        own = without_hydra(whole)
        hydra: Any = OmegaConf.to_container(whole.hydra, resolve=False, enum_to_str=True)
        is_separable = set(own) == set(GROUPS) and INTERPOLATION not in OmegaConf.to_yaml(own)
        return Template(
            own=own,
            groups={name: Group(name, values) for name, values in plain(own).items()} if is_separable else None,
            hydra=hydra,
            sections={key: _section(key, values) for key, values in hydra.items()},
        )

    def _loaded(self, overrides: Sequence[str]) -> DictConfig:
        """The config as Hydra composes it. A preset of a job must not change the `hydra` node of the sweep.

        Raises LoraExpError for one that is a sweep of its own, whose values the job would lose.
        """
        config = self._loader.load_sweep_config(self.master, list(overrides))
        check_hydra(config, self.master)
        if (params := config.hydra.sweeper.params) != self.master.hydra.sweeper.params:
            chosen = [one for one in overrides if one.lstrip("+").startswith("experiment=")] or list(overrides)
            values = " ".join(f"{key}={value}" for key, value in params.items()) or "none"
            raise LoraExpError(
                f"{' '.join(chosen)}: is a sweep of its own ({values}), so it can't be a job of another; run it alone"
            )
        return config

    def _sets_a_value(self, override: Override) -> bool:
        """Whether an override replaces a value and nothing else: no group, addition, deletion or key of Hydra's."""
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        key = override.key_or_group
        return plain and not key.startswith("hydra") and not self._is_group(key)


_made: dict[ConfigLoader, JobConfigs] = {}


def job_configs(config_loader: ConfigLoader, master: DictConfig) -> JobConfigs:
    """Return the configs of a sweep's jobs: one object, in which a sweep is checked and all its jobs are launched."""
    if config_loader not in _made or _made[config_loader].master is not master:
        _made[config_loader] = JobConfigs(config_loader, master)
    return _made[config_loader]


def _line_and_group(override: Override) -> tuple[str, str]:
    return override.input_line or "", override.key_or_group.partition(".")[0]


def _applied(config: DictConfig, key: str, override: Override) -> bool:
    """Set the value and return True; False where the key is absent or rejects it, so that Hydra reports the error."""
    parent, _, name = key.rpartition(".")
    try:
        holder = OmegaConf.select(config, parent) if parent else config
        if not isinstance(holder, DictConfig) or name not in holder:
            return False
        OmegaConf.update(config, key, override.value(), merge=True)
    except OmegaConfBaseException:
        return False
    return True


def _joined(groups: Mapping[str, Group]) -> str:
    return "".join(group.text for group in groups.values())


def _section(key: str, values: Any) -> str:
    """The lines of a key of the `hydra` node, which depend on how far they are indented."""
    return _yaml({"hydra": {key: values}}).removeprefix("hydra:\n")


def _yaml(value: Any) -> str:
    """Plain values as `OmegaConf.to_yaml` writes them."""
    return str(yaml.dump(value, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_Dumper))


class _Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """What `OmegaConf.to_yaml` writes, six times as fast where PyYAML has its parser in C."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)
