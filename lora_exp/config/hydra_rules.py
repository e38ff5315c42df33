"""Which of Hydra's own keys a command or a config file may set; all others keep their values of `conf/config.yaml`.

Hydra calls code and sets environment variables that its `hydra` node names. So the node is compared with that of
`conf/`, key by key, before Hydra acts on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lora_exp.config.fields import is_text
from lora_exp.config.spec import SPECS
from lora_exp.errors import LoraExpError

OPEN = ("hydra.mode", "hydra.verbose", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.params")
OPTIONS = {
    "hydra/sweeper": ("grid", "optuna"),
    "hydra/launcher": ("packed", "basic"),
    "hydra/job_logging": ("default", "disabled", "none", "stdout"),
    "hydra/hydra_logging": ("default", "disabled", "none"),
}
# Keys that Hydra itself fills in for a run.
FILLED_IN = ("hydra.overrides", "hydra.runtime", "hydra.job.override_dirname", "hydra.job.id", "hydra.job.num")
# Resolvers of OmegaConf that read the environment, parse text or warn.
CLOSED_RESOLVERS = ("oc.env", "oc.create", "oc.decode", "oc.deprecated")
SAME_FOR_ALL_JOBS = re.compile(r"\$\{(now:[^{}]*|unique:)\}")


def check_overrides(overrides: Sequence[str]) -> None:
    """Reject overrides of closed keys, and those that leave a group out, before composing: a search path alone makes
    Hydra import packages.

    Raises LoraExpError, or what Hydra's parser raises for an override that it can't parse.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete() and key in SPECS:  # whose defaults alone would be another run
            raise LoraExpError(f"{override.input_line}: a run needs this group; choose an option of it")
        if key.partition("/")[0].partition(".")[0] != "hydra" or _is_under(key, OPEN):
            continue
        if key not in OPTIONS or override.package is not None or override.value() not in OPTIONS[key]:
            raise LoraExpError(_closed(override.input_line or key))


def own_choices(config: DictConfig) -> list[str]:
    """The options of Hydra's groups that a config has chosen, as overrides."""
    chosen = config.hydra.runtime.choices
    return [f"{group}={chosen[group]}" for group, options in OPTIONS.items() if chosen.get(group) in options]


def check_hydra(config: DictConfig, reference: DictConfig) -> None:
    """Reject a composed config whose `hydra` node differs from that of `reference` in a closed key.

    Raises LoraExpError, or what OmegaConf raises for an interpolation that it can't resolve.
    """
    found, own = (dict(_leaves("hydra", OmegaConf.to_container(each.hydra))) for each in (config, reference))
    for key in sorted(found.keys() | own.keys()):
        if found.get(key) != own.get(key) and not _is_under(key, (*OPEN, *FILLED_IN)):
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
    """Users may choose any folder, but an interpolated part of its name must not lead out of it."""
    if not is_text(folder):
        raise LoraExpError(f"{key}={folder}: must be a folder")
    if not free and "${" in SAME_FOR_ALL_JOBS.sub("", written):
        raise LoraExpError(
            f"{key}={written}: must be the same for all jobs, so only ${{now:...}} and ${{unique:}} may be in it"
        )
    if "${" in written and ".." in Path(folder).parts:
        raise LoraExpError(f"{key}={written}: gives {folder}, and an interpolation must not lead out of the folder")


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
    return f"{given}: can't be chosen; of Hydra's keys only these can: {', '.join(OPEN)}, {options}"
