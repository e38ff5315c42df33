"""Which of Hydra's own keys a command or a config file may set; all others keep their values of `conf/config.yaml`.

Hydra calls code and sets environment variables that its `hydra` node names. So the node is compared with that of
`conf/`, key by key, before Hydra acts on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from lora_exp.config.fields import is_text
from lora_exp.config.names import check_name
from lora_exp.config.spec import SPECS
from lora_exp.errors import LoraExpError, closest, did_you_mean

# Key -> what it does.
OPEN = {
    "hydra.mode": "MULTIRUN makes a preset a sweep, without -m",
    "hydra.verbose": "true, or a list of the names of loggers: log more",
    "hydra.run.dir": "folder of a single run",
    "hydra.sweep.dir": "folder of a sweep; the same command with the folder of an earlier one goes on with it",
    "hydra.sweeper.params": "in a preset: the keys that vary and their values, as on the command line",
}
# Group -> option -> what it does.
OPTIONS = {
    "hydra/sweeper": {
        "grid": "every combination of the values",
        "optuna": "a search, as the keys of search say",
        "contest": "a contest, as the keys of contest say; lora-exp contest chooses it",
    },
    "hydra/launcher": {
        "packed": "jobs train in packs",
        "basic": "jobs run one by one, with the same bits",
    },
    "hydra/job_logging": {
        "default": "log lines on the terminal and in a file of the run",
        "stdout": "on the terminal alone",
        "none": "warnings on the terminal alone",
        "disabled": "no log lines",
    },
    "hydra/hydra_logging": {
        "default": "Hydra's own log lines on the terminal",
        "none": "its warnings alone",
        "disabled": "none of them",
    },
}
# Keys that Hydra itself fills in for a run.
FILLED_IN = ("hydra.overrides", "hydra.runtime", "hydra.job.override_dirname", "hydra.job.id", "hydra.job.num")
# Resolvers of OmegaConf that read the environment, parse text or warn.
CLOSED_RESOLVERS = ("oc.env", "oc.create", "oc.decode", "oc.deprecated")
SAME_FOR_ALL_JOBS = re.compile(r"\$\{(now:[^{}]*|unique:)\}")


def check_overrides(overrides: Sequence[str]) -> list[Override]:
    """Reject overrides of unknown and of closed keys, and those that leave a group out, before composing: a search
    path alone makes Hydra import packages.

    Returns them as Hydra's parser reads them. Raises LoraExpError, or what that parser raises for an override that it
    can't parse.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        key = override.key_or_group
        if override.is_delete() and key in SPECS:  # whose defaults alone would be another run
            raise LoraExpError(f"{override.input_line}: a run needs this group; choose an option of it")
        check_name(override)
        if key.partition("/")[0].partition(".")[0] != "hydra" or _is_under(key, OPEN):
            continue
        if key not in OPTIONS or override.package is not None or override.value() not in OPTIONS[key]:
            raise LoraExpError(_closed(override.input_line or key))
    return parsed


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


def _is_under(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _closed(given: str) -> str:
    group = given.partition("=")[0]
    if group in OPTIONS:
        own = [f"{group}={option}" for option in OPTIONS[group]]
        return f"{given}: must be {' or '.join(own)}{did_you_mean(closest(given, own))}"
    options = ", ".join(f"{group}={'|'.join(names)}" for group, names in OPTIONS.items())
    every = [*OPEN, *(f"{group}={name}" for group, names in OPTIONS.items() for name in names)]
    allowed = f"of Hydra's keys only these can: {', '.join(OPEN)}, {options}"
    return f"{given}: can't be chosen; {allowed}{did_you_mean(closest(given, every))}"
