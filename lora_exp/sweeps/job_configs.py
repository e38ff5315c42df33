"""The configs of a sweep's jobs, composed once per choice of config groups instead of once per job.

Hydra composes each job from its files, which takes 90 to 140 ms. Most jobs of a sweep differ only in values, so their
values are set, as Hydra sets them, in a copy of one composed config, in about 8 ms.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lora_exp.config.compose import is_run_config, one_line_errors, without_hydra
from lora_exp.config.hydra_rules import check_hydra


class JobConfigs:
    """Compose the config of each job of a sweep: equal to Hydra's `load_sweep_config`, which is the fallback."""

    def __init__(self, config_loader: ConfigLoader, master: DictConfig) -> None:
        """`master` is the config of the sweep."""
        self._loader = config_loader
        self._master = master
        parser = OverridesParser.create(config_loader=config_loader)
        # The jobs of a grid share few override strings.
        self._parse = functools.lru_cache(maxsize=4096)(lambda text: parser.parse_overrides([text])[0])
        self._templates: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        # `get_group_options` takes 10 ms, since Hydra copies all configs that it has read.
        self._is_group = functools.cache(lambda key: bool(config_loader.get_group_options(key)))

    def own(self, overrides: Sequence[str]) -> DictConfig:
        """The application's own part of a job's config, in about 2 ms.

        Raises LoraExpError for overrides that Hydra or the schema rejects.
        """
        with one_line_errors():
            values, config = self._split(overrides, own=True)
            if all(_applied(config, override) for override in values):
                return config
            return without_hydra(self._loaded(overrides))

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The config, with its `hydra` node, of job `number`.

        Raises what Hydra raises for overrides that it rejects.
        """
        values, config = self._split(overrides, own=False)
        if all(_applied(config, override) for override in values):
            self._note(config, [self._parse(override) for override in overrides])
        else:
            config = self._loaded(overrides)
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config

    def _split(self, overrides: Sequence[str], own: bool) -> tuple[list[Override], DictConfig]:
        """The overrides that set values, and a copy of the config composed from all others."""
        parsed = [self._parse(override) for override in overrides]
        choices = [override for override in parsed if not self._sets_a_value(override)]
        key = tuple(override.input_line or "" for override in choices)
        if key not in self._templates:
            whole = self._loaded(key)
            self._templates[key] = (whole, without_hydra(whole))
        values = [override for override in parsed if self._sets_a_value(override)]
        return values, copy.deepcopy(self._templates[key][own])

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
