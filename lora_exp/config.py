"""The only place that knows OmegaConf and Hydra's errors: schema in, plain dataclasses and one-line errors out."""

from __future__ import annotations

import dataclasses
import functools
import secrets
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_exp.settings import SETTINGS, DataFolder, Settings, settings_from
from lora_exp.spec import PARTS, RunSpec, SpecError, spec_from


def config_folder() -> Path:
    """`conf/`: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def register() -> None:
    """Give Hydra the schema of all keys, made from the dataclasses, and the resolver `unique`."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=schema())
    # Two sweeps that start in the same second get folders of their own.
    OmegaConf.register_new_resolver("unique", _token, replace=True)


@functools.cache
def _token() -> str:
    return secrets.token_hex(2)


@functools.cache
def schema() -> type[Any]:
    """A mutable dataclass of the whole config; OmegaConf refuses keys and types that it does not have."""
    groups: list[tuple[str, Any, Any]] = []
    for name, cls in _groups().items():
        fields = []
        for spec_field in [f for c in cls for f in dataclasses.fields(c)]:
            fields.append((spec_field.name, _omega_type(cls, spec_field.name), dataclasses.field(default="???")))
        groups.append((name, dataclasses.make_dataclass(name, fields), dataclasses.field(default="???")))
    for at, (name, made, _) in enumerate(groups):
        groups[at] = (name, made, dataclasses.field(default_factory=made))
    return dataclasses.make_dataclass("Config", groups)


def read(config: DictConfig) -> tuple[RunSpec, Settings]:
    """The spec and the settings of a composed config.

    Raises SpecError with one line that names key, value and what is allowed.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise SpecError(one_line(error)) from error
    assert isinstance(plain, dict)
    values = typing.cast("dict[str, Any]", plain)
    for unknown in sorted(set(values) - set(_groups())):
        raise SpecError(_no_such_group(unknown))
    return spec_from(values), settings_from(values)


def compose_settings(overrides: Sequence[str]) -> Settings:
    """The settings that a run with these overrides would have."""
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return read(compose("config", list(overrides)))[1]


def without_hydra(config: DictConfig) -> DictConfig:
    """The application's own part of a composed config."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert isinstance(own, DictConfig)
    return own


def is_experiment(config: DictConfig) -> bool:
    """Whether a config has the groups of a run (the launcher also serves other Hydra applications)."""
    return all(group in config for group in PARTS)


def one_line(error: BaseException) -> str:
    """What a user is told of a config error: key, value, what is allowed."""
    chain: list[BaseException] = []
    walk: BaseException | None = error
    while walk is not None and walk not in chain:
        chain.append(walk)
        walk = walk.__cause__ or walk.__context__
    key = next((str(e.full_key) for e in chain if isinstance(e, OmegaConfBaseException) and e.full_key), None)
    for missing in chain:
        if isinstance(missing, MissingConfigException) and missing.missing_cfg_file:
            option = missing.missing_cfg_file.replace("/", "=", 1)
            return f"{option}: no such option; allowed: {', '.join(missing.options or [])}"
    first = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if key is None or "interpolation" in type(chain[-1]).__name__.lower():
        return first or type(error).__name__
    group, _, name = key.partition(".")
    known = _keys(group)
    if name and known and name not in known:
        return f"{key}: no such key; allowed in {group}: {', '.join(known)}"
    if not name and group not in _groups():
        return _no_such_group(key)
    text = known.get(name)
    given = next((str(e).split("override ", 1)[1].split("\n")[0] for e in chain if "merging override " in str(e)), key)
    return f"{given}: must be {text}" if text else first


def _no_such_group(key: str) -> str:
    return f"{key}: no such key; allowed: {', '.join([*_groups(), 'experiment', 'hydra'])}"


def _groups() -> dict[str, tuple[type[Any], ...]]:
    groups: dict[str, tuple[type[Any], ...]] = {name: (cls,) for name, cls in (PARTS | SETTINGS).items()}
    groups["data"] += (DataFolder,)
    return groups


def _keys(group: str) -> dict[str, str]:
    """Each key of a group with what it may hold, in words."""
    found = [f for cls in _groups().get(group, ()) for f in dataclasses.fields(cls)]
    return {f.name: f.metadata["allowed"] for f in found}


def _omega_type(classes: tuple[type[Any], ...], name: str) -> Any:
    """The type as OmegaConf has it: lists for tuples; digits and patterns are checked by the spec alone."""
    hint = next(hints[name] for cls in classes if name in (hints := typing.get_type_hints(cls)))
    if name in ("digit", "digits") or name.endswith("_pattern"):
        return Any
    if typing.get_origin(hint) is tuple:
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint
