"""The only place that knows OmegaConf and Hydra's errors: schema in, plain dataclasses and one-line errors out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lora_exp.config.settings import SETTINGS, DataFolder, Settings, settings_from
from lora_exp.config.spec import PARTS, RunSpec, spec_from
from lora_exp.errors import LoraExpError


def config_folder() -> Path:
    """`conf/`: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "conf"  # lora_exp/config/conf
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def register() -> None:
    """Give Hydra the schema of all keys, made from the dataclasses, and the resolvers that configs may use."""
    from hydra.core.config_store import ConfigStore

    from lora_exp.config.hydra_rules import CLOSED_RESOLVERS

    ConfigStore.instance().store(name="schema", node=schema())
    # Two sweeps that start in the same second get folders of their own.
    OmegaConf.register_new_resolver("unique", _token, replace=True)
    for name in CLOSED_RESOLVERS:
        OmegaConf.clear_resolver(name)


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

    Raises LoraExpError with one line that names key, value and what is allowed.
    """
    values = _plain(config)
    for unknown in sorted(set(values) - set(_groups())):
        raise LoraExpError(_no_such_group(unknown))
    return spec_from(values), settings_from(values)


def composed(overrides: Sequence[str], multirun: bool = False) -> DictConfig:
    """The whole config of a run with these overrides, or of a sweep, whose jobs' overrides are left out of it.

    Raises LoraExpError, of one line, for overrides that make no config, and for what `hydra_rules` refuses.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from lora_exp.config.hydra_rules import check_hydra, check_overrides, own_choices

    with refusing():
        register()
        check_overrides(overrides)
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            if multirun:
                loader = GlobalHydra.instance().config_loader()
                config = loader.load_configuration(
                    "config", list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False
                )
            else:
                config = compose("config", list(overrides), return_hydra_config=True)
            check_hydra(config, _reference(*own_choices(config)))
        return config


@functools.cache
def _reference(*choices: str) -> DictConfig:
    """The project's own config, with these options of Hydra's groups."""
    from hydra import compose

    return compose("config", list(choices), return_hydra_config=True)


@contextlib.contextmanager
def refusing(*passing: type[Exception]) -> Iterator[None]:
    """A block where whatever is raised, but `passing`, is bad input, and becomes a LoraExpError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (LoraExpError, *passing)):
            raise
        raise LoraExpError(one_line(error)) from error


def compose_settings(overrides: Sequence[str]) -> Settings:
    """The settings that a run with these overrides would have."""
    return settings_from(compose_values(overrides))


def compose_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a run with these overrides, as plain values by group and key.

    Raises LoraExpError, of one line, for overrides that make no config.
    """
    return _plain(without_hydra(composed(overrides)))


def saved_values(config: str) -> dict[str, Any]:
    """The same of a saved config (YAML), as it was when it was saved. Raises LoraExpError when it is none."""
    return _plain(_loaded(config))


def start_folder(hydra: str) -> Path | None:
    """The folder that a job was started in, by what Hydra saved of itself (`.hydra/hydra.yaml`); None if unknown."""
    found = OmegaConf.select(_loaded(hydra), "hydra.runtime.cwd")
    return None if found is None else Path(str(found))


def compose_import(overrides: Sequence[str]) -> tuple[RunSpec, Settings, Path, str]:
    """Of a run with these overrides whose adapter was trained elsewhere: spec, settings, folder, config to keep.

    The spec's adapter is that of the config, which is not kept, and neither is how to train it.
    """
    config = composed(overrides)
    spec, settings = read(without_hydra(config))
    kept = OmegaConf.masked_copy(config, ["model", "data", "base", *SETTINGS])
    return spec, settings, Path(str(config.hydra.run.dir)), OmegaConf.to_yaml(kept)


def saved_settings(config: str, overrides: Sequence[str]) -> Settings:
    """The settings in the saved config (YAML) of a run, with overrides of them: `store.folder=elsewhere`.

    Raises LoraExpError with one line that names key, value and what is allowed.
    """
    for override in overrides:
        group, _, name = override.partition("=")[0].partition(".")
        if "=" not in override or not name or (group not in SETTINGS and (group, name) != ("data", "root")):
            raise LoraExpError(f"{override}: must be GROUP.KEY=VALUE of {', '.join(SETTINGS)}, or data.root=FOLDER")
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError) as error:
        raise LoraExpError(f"{' '.join(overrides)}: can't be read ({' '.join(str(error).split())})") from error
    return settings_from(_plain(without_hydra(DictConfig(OmegaConf.merge(_loaded(config), changes)))))


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


def _loaded(text: str) -> DictConfig:
    register()
    try:
        config = OmegaConf.create(text)
    except (OmegaConfBaseException, YAMLError) as error:
        raise LoraExpError(f"is not a saved config ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig):
        raise LoraExpError("is not a saved config")
    return config


def _plain(config: DictConfig) -> dict[str, Any]:
    with refusing():
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return typing.cast("dict[str, Any]", plain)


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
    """The type as OmegaConf has it: lists for tuples; what has several types is checked by the spec alone."""
    hint = next(hints[name] for cls in classes if name in (hints := typing.get_type_hints(cls)))
    if name in ("digit", "digits", "alpha") or name.endswith("_pattern"):
        return Any
    if typing.get_origin(hint) is tuple:
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint
