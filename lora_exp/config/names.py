"""The names of config groups and keys, and which of them a user may have meant by one that does not exist."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from hydra.core.override_parser.types import Override

from lora_exp.config.settings import SETTINGS, DataFolder
from lora_exp.config.spec import DIGITS, SPECS
from lora_exp.errors import LoraExpError, closest, did_you_mean

# Top-level config group -> dataclasses of its keys.
GROUPS: dict[str, tuple[type[Any], ...]] = {name: (cls,) for name, cls in (SPECS | SETTINGS).items()}
GROUPS["data"] += (DataFolder,)
# What an override may start with.
OVERRIDE_GROUPS = (*GROUPS, "experiment", "hydra")


def keys_of(group: str) -> list[str]:
    """The keys of a group."""
    return [own.name for cls in GROUPS.get(group, ()) for own in dataclasses.fields(cls)]


def check_name(override: Override) -> None:
    """Raise LoraExpError for an override of a group or a key that does not exist.

    What is added (`+`) is left to the schema: a folder of presets may hold groups of its own.
    """
    key = override.key_or_group
    if override.is_add() or override.package is not None or "/" in key:
        return
    group, dot, name = key.partition(".")
    known = [*keys_of(group), *(digits for (own, _), (digits, _) in DIGITS.items() if own == group)]
    if group not in OVERRIDE_GROUPS or (group in GROUPS and dot and name.partition(".")[0] not in known):
        raise LoraExpError(no_such_key((override.input_line or key).lstrip("+~")))


def no_such_key(override: str) -> str:
    """One line for a group or a key that does not exist, in an override or alone; it ends with what may be meant."""
    key = override.partition("=")[0]
    group = key.partition(".")[0]
    allowed = f"allowed in {group}" if group in GROUPS else "allowed"
    names = keys_of(group) if group in GROUPS else OVERRIDE_GROUPS
    return f"{key}: no such key; {allowed}: {', '.join(names)}{did_you_mean(meant(override))}"


def needs_a_sweep(override: str) -> str:
    """One line for several values of a key in a command that makes one run."""
    name, _, values = override.partition("=")
    again = shlex.join(["lora-exp", "-m", override])
    one = "" if "(" in values else f"; one run with that list: '{name}=[{values}]'"
    return f"{override}: several values need a sweep; add -m for a run of each: {again}{one}"


def meant(override: str) -> list[str]:
    """What may have been meant by an unknown key: `adapter.rank=4` by `adaptor.rank=4`, `adapter.rnk=4`, `rank=4`."""
    key, equals, value = override.partition("=")
    every = [f"{group}.{name}" for group in GROUPS for name in keys_of(group)]
    every += [f"{group}.{digits}" for (group, _), (digits, _) in DIGITS.items()]
    by_name: dict[str, list[str]] = {}
    for name in every:
        by_name.setdefault(name.partition(".")[2], []).append(name)
    if "." in key:
        found = closest(key, every) or by_name.get(key.rpartition(".")[2], [])
    elif key in by_name:
        found = by_name[key]
    else:
        found = [own for name in closest(key, [*OVERRIDE_GROUPS, *by_name]) for own in by_name.get(name, [name])]
    return [f"{name}{equals}{value}" for name in found]
