"""The configs of a sweep's jobs, composed once per choice of config groups instead of once per job.

Hydra composes each job from its files, which takes 90 to 140 ms. Most jobs of a sweep differ only in values, so their
values are set, as Hydra sets them, in a copy of one composed config, in about 8 ms. To read a job's spec needs no copy
of its own: the jobs of a grid share most of their groups.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, Node, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lora_exp.config.compose import GROUPS, is_run_config, one_line_errors, plain, read, without_hydra
from lora_exp.config.hydra_rules import check_hydra
from lora_exp.config.settings import Settings, settings_from
from lora_exp.config.spec import SPECS, RunSpec, spec_from
from lora_exp.errors import LoraExpError

INTERPOLATION = "${"


class JobConfigs:
    """Compose the config of each job of a sweep: equal to Hydra's `load_sweep_config`, which is the fallback."""

    def __init__(self, config_loader: ConfigLoader, master: DictConfig) -> None:
        """`master` is the config of the sweep."""
        self._loader = config_loader
        self._master = master
        parser = OverridesParser.create(config_loader=config_loader)
        # The jobs of a grid share few override strings.
        self._parse = functools.lru_cache(maxsize=4096)(lambda text: parser.parse_overrides([text])[0])
        self._changed: dict[tuple[str, ...], set[str]] = {}  # the groups that hold the values of the last job
        self._templates: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        # `get_group_options` takes 10 ms, since Hydra copies all configs that it has read.
        self._is_group = functools.cache(lambda key: bool(config_loader.get_group_options(key)))
        self._plain_groups = functools.cache(self._set_plainly)
        self._is_separable = functools.cache(self._groups_are_apart)
        self._settings: dict[tuple[tuple[str, ...], ...], Settings] = {}

    def read(self, overrides: Sequence[str]) -> tuple[RunSpec, Settings]:
        """The spec and the settings of a job, equal to `read(own(overrides))`, in about 0.3 ms.

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
            config = copy.deepcopy(self._template(choices)[1])
            if all(_applied(config, override) for override in values):
                return config
            return without_hydra(self._loaded(overrides))

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The config, with its `hydra` node, of job `number`; for runs it is valid until the next one is composed.

        Raises what Hydra raises for overrides that it rejects.
        """
        values, config = self._lent(overrides)
        if all(_applied(config, override) for override in values):
            with read_write(config.hydra):
                self._note(config, [self._parse(override) for override in overrides])
        else:
            config = self._loaded(overrides)
        with read_write(config.hydra), open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config

    def _read_by_group(self, overrides: Sequence[str]) -> tuple[RunSpec, Settings] | None:
        """Read the groups of a job one by one; None where the value of one may depend on another, or is rejected."""
        values, choices = self._parts(overrides)
        of_group: dict[str, list[str]] = {}
        for override in values:
            of_group.setdefault(override.key_or_group.partition(".")[0], []).append(override.input_line or "")
        base = self._plain_groups(choices, ())
        changed = {group: self._plain_groups(choices, tuple(lines)) for group, lines in of_group.items()}
        if base is None or None in changed.values():
            return None
        config = base | {group: own[group] for group, own in changed.items() if own is not None}
        # The folder of the data is a setting.
        key = (choices, *(tuple(lines) for group, lines in of_group.items() if group not in SPECS or group == "data"))
        if key not in self._settings:
            self._settings[key] = settings_from(config)
        return spec_from(config), self._settings[key]

    def _set_plainly(self, choices: tuple[str, ...], lines: tuple[str, ...]) -> dict[str, Any] | None:
        """The config of these choices with these values as plain values; None where `read` must not use it."""
        if not self._is_separable(choices) or any(INTERPOLATION in line for line in lines):
            return None
        config = copy.deepcopy(self._template(choices)[1])
        return plain(config) if all(_applied(config, self._parse(line)) for line in lines) else None

    def _groups_are_apart(self, choices: tuple[str, ...]) -> bool:
        """Whether no value of the config of these choices refers to another."""
        own = self._template(choices)[1]
        return set(own) == set(GROUPS) and INTERPOLATION not in OmegaConf.to_yaml(own)

    def _lent(self, overrides: Sequence[str]) -> tuple[list[Override], DictConfig]:
        """The overrides that set values, and the config composed from all others.

        The config of runs is the same object for all jobs, since a copy of its `hydra` node takes 20 ms: only the
        groups in which jobs set values are copied.
        """
        values, choices = self._parts(overrides)
        whole, own = self._template(choices)
        if not is_run_config(whole):
            return values, copy.deepcopy(whole)
        changed = self._changed.setdefault(choices, set())
        groups = {override.key_or_group.partition(".")[0] for override in values} & set(own)
        for group in groups | changed:
            node = copy.deepcopy(own._get_node(group))
            assert isinstance(node, Node)
            node._set_parent(whole)
            whole._content[group] = node  # type: ignore[index]
        self._changed[choices] = groups
        return values, whole

    def _parts(self, overrides: Sequence[str]) -> tuple[list[Override], tuple[str, ...]]:
        """The overrides that set values, and all others."""
        parsed = [self._parse(override) for override in overrides]
        choices = [override for override in parsed if not self._sets_a_value(override)]
        values = [override for override in parsed if self._sets_a_value(override)]
        return values, tuple(override.input_line or "" for override in choices)

    def _template(self, choices: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
        """The config composed from these overrides, and the application's own part of it."""
        if choices not in self._templates:
            whole = self._loaded(choices)
            self._templates[choices] = (whole, without_hydra(whole))
        return self._templates[choices]

    def _loaded(self, overrides: Sequence[str]) -> DictConfig:
        """The config as Hydra composes it. A preset of a job must not change the `hydra` node of the sweep."""
        config = self._loader.load_sweep_config(self._master, list(overrides))
        if is_run_config(config):
            check_hydra(config, self._master)
        return config

    def _sets_a_value(self, override: Override) -> bool:
        """Whether an override replaces a value and nothing else: no group, addition, deletion or key of Hydra's."""
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        key = override.key_or_group
        return plain and not key.startswith("hydra") and not self._is_group(key)

    def _note(self, config: DictConfig, parsed: list[Override]) -> None:
        """Record the overrides of a job in its `hydra` node, as Hydra does."""
        own = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in own]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=own, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )


def _applied(config: DictConfig, override: Override) -> bool:
    """Set the value and return True; False where the key is absent or rejects it, so that Hydra reports the error."""
    parent, _, name = override.key_or_group.rpartition(".")
    try:
        holder = OmegaConf.select(config, parent) if parent else config
        if not isinstance(holder, DictConfig) or name not in holder:
            return False
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException:
        return False
    return True
