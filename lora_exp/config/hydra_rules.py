"""What of Hydra's own configuration a command or a config file may choose; the rest stays as `conf/config.yaml` has it.

Hydra imports and calls what its node names (plugins, callbacks, log handlers), and reads and sets environment variables
by it. So the node is compared with the project's own, key by key, before Hydra acts on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lora_exp.config.fields import is_text
from lora_exp.errors import LoraExpError

OPEN = ("hydra.mode", "hydra.verbose", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.params")
OPTIONS = {
    "hydra/sweeper": ("grid", "optuna"),
    "hydra/launcher": ("packed", "basic"),
    "hydra/job_logging": ("default", "disabled", "none", "stdout"),
    "hydra/hydra_logging": ("default", "disabled", "none"),
}
# What Hydra itself notes of a run.
NOTED = ("hydra.overrides", "hydra.runtime", "hydra.job.override_dirname", "hydra.job.id", "hydra.job.num")
# The resolvers of OmegaConf's that read the environment, parse text or warn.
CLOSED_RESOLVERS = ("oc.env", "oc.create", "oc.decode", "oc.deprecated")
OF_THE_MOMENT = re.compile(r"\$\{(now:[^{}]*|unique:)\}")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides of what is closed before anything is composed: a search path alone imports packages.

    Raises LoraExpError, or what Hydra's parser raises for an override that is not legal.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key.partition("/")[0].partition(".")[0] != "hydra" or _is_under(key, OPEN):
            continue
        if key not in OPTIONS or override.package is not None or override.value() not in OPTIONS[key]:
            raise LoraExpError(_closed(override.input_line or key))


def own_choices(config: DictConfig) -> list[str]:
    """The options that a config has chosen of Hydra's groups, as overrides."""
    chosen = config.hydra.runtime.choices
    return [f"{group}={chosen[group]}" for group, options in OPTIONS.items() if chosen.get(group) in options]


def check_hydra(config: DictConfig, reference: DictConfig) -> None:
    """Refuse a composed config whose hydra node differs from that of `reference` where it may not.

    Raises LoraExpError, or what OmegaConf raises for an interpolation that can't be resolved.
    """
    found, own = (dict(_leaves("hydra", OmegaConf.to_container(each.hydra))) for each in (config, reference))
    for key in sorted(found.keys() | own.keys()):
        if found.get(key) != own.get(key) and not _is_under(key, (*OPEN, *NOTED)):
            raise LoraExpError(_closed(f"{key}={found.get(key)}"))
    hydra = OmegaConf.to_container(config.hydra)
    assert isinstance(hydra, dict)
    for key, values in hydra["sweeper"]["params"].items():
        parts = values if isinstance(values, list) else [values]
        if "${" in str(values) or any(isinstance(part, dict | list) for part in parts):
            raise LoraExpError(
                f"hydra.sweeper.params.{key}={values}: must be values as on the command line, such as 1,2,4"
            )
    verbose = hydra["verbose"]
    if not isinstance(verbose, bool | str) and not (isinstance(verbose, list) and all(map(is_text, verbose))):
        raise LoraExpError(f"hydra.verbose={verbose}: must be true, false, or a list of the names of loggers")
    for key, free in (("hydra.run.dir", True), ("hydra.sweep.dir", False)):
        _check_folder(key, str(found.get(key)), OmegaConf.select(config, key), free)


def _check_folder(key: str, written: str, folder: Any, free: bool) -> None:
    """A folder is for the user to choose, but what is interpolated into it must not lead out of it."""
    if not is_text(folder):
        raise LoraExpError(f"{key}={folder!r}: must be a folder")
    if not free and "${" in OF_THE_MOMENT.sub("", written):
        raise LoraExpError(
            f"{key}={written}: must be the same for all jobs; of interpolations, ${{now:...}} and ${{unique:}}"
        )
    if "${" in written and ".." in Path(folder).parts:
        raise LoraExpError(f"{key}={written}: is {folder}, where an interpolation leads out of the folder")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _is_under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _closed(given: str) -> str:
    options = ", ".join(f"{group}={'|'.join(names)}" for group, names in OPTIONS.items())
    return f"{given}: can't be chosen, since of Hydra's own only these can: {', '.join(OPEN)}, {options}"
