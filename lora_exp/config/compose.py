"""From overrides or saved YAML to a spec and settings: the schema for Hydra, composing, errors in one line.

Only the Hydra application (`sweeps`, `__main__`) handles a `DictConfig`; all others get plain values and dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import secrets
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError, scan

from lora_exp.config.names import GROUPS, needs_a_sweep, no_such_key
from lora_exp.config.settings import SETTINGS, Settings, settings_from
from lora_exp.config.spec import DIGITS, NOT_SPEC, SPECS, RunSpec, spec_from
from lora_exp.errors import LoraExpError, closest, did_you_mean

# The option that names a folder of one's own presets. In records it stands before the overrides of a run.
PRESETS = "--config-dir="


def config_folder() -> Path:
    """`conf/`: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "conf"  # lora_exp/config/conf
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def register() -> None:
    """Give Hydra the schema and the resolver `unique`, and take away the resolvers that configs may not use."""
    from hydra.core.config_store import ConfigStore

    from lora_exp.config.hydra_rules import CLOSED_RESOLVERS

    store = ConfigStore.instance()
    store.store(name="schema", node=schema())
    # Hydra copies this store, of which there is only one, whenever it lists the options of a group: 10 ms each time.
    ConfigStore.__deepcopy__ = lambda own, _: own  # type: ignore[attr-defined]
    # Sweeps that start in the same second need different folders.
    OmegaConf.register_new_resolver("unique", _token, replace=True)
    for name in CLOSED_RESOLVERS:
        OmegaConf.clear_resolver(name)


_token = functools.cache(lambda: secrets.token_hex(2))


@functools.cache
def schema() -> type[Any]:
    """A mutable dataclass of the whole config: OmegaConf checks keys and types by it, and takes defaults from it."""
    groups: list[tuple[str, Any, Any]] = []
    for name, classes in GROUPS.items():
        fields = [
            (own.name, _omega_type(own.name, typing.get_type_hints(cls)[own.name]), _omega_default(own.default))
            for cls in classes
            for own in dataclasses.fields(cls)
        ]
        fields += [
            (digits, Any, dataclasses.field(default=None))
            for (group, _), (digits, _) in DIGITS.items()
            if group == name
        ]
        node = dataclasses.make_dataclass(name, fields)
        groups.append((name, node, dataclasses.field(default_factory=node)))
    return dataclasses.make_dataclass("Config", groups)


def read(config: DictConfig) -> tuple[RunSpec, Settings]:
    """The spec and the settings of a composed config; its `hydra` node is ignored.

    Raises LoraExpError with one line that names key, value and what is allowed.
    """
    values = plain(config)
    for unknown in sorted(set(values) - set(GROUPS)):
        raise LoraExpError(no_such_key(unknown))
    return spec_from(values), settings_from(values)


def compose_config(arguments: Sequence[str], multirun: bool = False) -> DictConfig:
    """The whole config, with its `hydra` node, of a run; or of a sweep, without the overrides of its jobs.

    `arguments` are overrides, and `--config-dir=FOLDER` where presets of one's own lie there. Raises LoraExpError for
    overrides that Hydra or the schema rejects, and for those that `hydra_rules` forbids.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from lora_exp.config.hydra_rules import check_hydra, check_overrides, own_choices

    overrides = [argument for argument in arguments if not argument.startswith(PRESETS)]
    folders = [argument.removeprefix(PRESETS) for argument in arguments if argument.startswith(PRESETS)]
    with one_line_errors():
        register()
        parsed = check_overrides(overrides)
        with initialize_config_dir(str(config_folder()), version_base="1.3"), _presets(folders):
            lists = [own.input_line or "" for own in parsed if own.is_sweep_override()]
            if multirun or lists:
                load = GlobalHydra.instance().config_loader().load_configuration
                config = load("config", overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
                if not multirun and config.hydra.mode != RunMode.MULTIRUN:  # else a preset makes it a sweep
                    raise LoraExpError(needs_a_sweep(lists[0]))
            else:
                config = compose("config", overrides, return_hydra_config=True)
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            check_hydra(config, _reference(*own_choices(config)))
        return config


@contextlib.contextmanager
def _presets(folders: Sequence[str]) -> Iterator[None]:
    """A block in which Hydra also composes from these folders, after `conf/`, as its option --config-dir has it.

    Raises LoraExpError for one that is no folder.
    """
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    loader: Any = GlobalHydra.instance().config_loader()
    for folder in folders:
        if not Path(folder).is_dir():
            raise LoraExpError(f"{PRESETS}{folder}: must be a folder of presets, such as {folder}/experiment/mine.yaml")
        own = f"file://{Path(folder).absolute()}"
        loader.get_search_path().prepend("command-line", own, SearchPathQuery(provider="schema"))
    if folders:
        loader.repository.initialize_sources(loader.get_search_path())
    yield


def presets_of(hydra: Any) -> list[str]:
    """The argument that names the folder of one's own presets, in the `hydra` node of a composed config, if any."""
    found = [Path(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    here = Path.cwd()
    return [f"{PRESETS}{path.relative_to(here) if path.is_relative_to(here) else path}" for path in found]


@functools.cache
def _reference(*choices: str) -> DictConfig:
    """The config of `conf/` with no override but these options of Hydra's groups."""
    from hydra import compose

    return compose("config", list(choices), return_hydra_config=True)


def compose_settings(overrides: Sequence[str]) -> Settings:
    """The settings of a run with these overrides. Raises LoraExpError as `compose_config` does."""
    return settings_from(compose_values(overrides))


def compose_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The same as plain values by group and key, with those of the spec."""
    return plain(compose_config(overrides))


def compose_import(overrides: Sequence[str]) -> tuple[RunSpec, Settings, Path, str]:
    """For an imported adapter: the spec, the settings, the run's folder, and the config to save."""
    config = compose_config(overrides)
    spec, settings = read(config)
    kept = OmegaConf.masked_copy(config, ["model", "data", "base", *SETTINGS])
    return spec, settings, Path(str(config.hydra.run.dir)), OmegaConf.to_yaml(kept)


def saved_values(config: str) -> dict[str, Any]:
    """The plain values of a saved config (YAML). Raises LoraExpError when the text is not one."""
    return plain(_loaded(config))


def saved_settings(config: str, overrides: Sequence[str]) -> Settings:
    """The settings in the saved config (YAML) of a run, with overrides of them. Raises LoraExpError as `read` does."""
    for override in overrides:
        group, _, name = override.partition("=")[0].partition(".")
        if "=" not in override or not name or (group not in SETTINGS and (group, name) not in NOT_SPEC):
            raise LoraExpError(f"{override}: must be GROUP.KEY=VALUE of {', '.join(SETTINGS)}, or data.root=FOLDER")
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError) as error:
        raise LoraExpError(f"{' '.join(overrides)}: can't be parsed ({' '.join(str(error).split())})") from error
    return settings_from(plain(DictConfig(OmegaConf.merge(_loaded(config), changes))))


def start_folder(hydra: str) -> Path | None:
    """The working folder of a job, from its saved `.hydra/hydra.yaml`; None where that does not name it."""
    found = OmegaConf.select(_loaded(hydra), "hydra.runtime.cwd")
    return None if found is None else Path(str(found))


def without_hydra(config: DictConfig) -> DictConfig:
    """The application's own part of a composed config."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert isinstance(own, DictConfig)
    return own


def is_run_config(config: DictConfig) -> bool:
    """Whether a config has the groups of a run; the launcher and the sweepers also serve other Hydra applications."""
    return all(group in config for group in SPECS)


@contextlib.contextmanager
def one_line_errors(*passing: type[Exception]) -> Iterator[None]:
    """A block whose exceptions, except LoraExpError and `passing`, become a LoraExpError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (LoraExpError, *passing)):
            raise
        raise LoraExpError(error_line(error)) from error


def error_line(error: BaseException) -> str:
    """One line for an error of Hydra or OmegaConf: key, value and what is allowed, as far as the error tells."""
    chain: list[BaseException] = []
    walk: BaseException | None = error
    while walk is not None and walk not in chain:
        chain.append(walk)
        walk = walk.__cause__ or walk.__context__
    if isinstance(error, OverrideParseException):
        name, equals, value = error.override.partition("=")
        if not equals:
            return f"{error.override}: must be KEY=VALUE, such as adapter.rank=4"
        form = f"""'{name}="{value or "text"}"'"""
        why = "text with signs, or letters other than a to z, needs quotes within those of the shell"
        return f"{error.override}: can't be parsed; {why}, such as {form}"
    if again := re.match(r"Multiple values for (\S+)\. .*: (\S+)'$", str(error)):
        return f"+{again[1]}={again[2]}: {again[1]} has an option already; write {again[1]}={again[2]}"
    key = next((str(e.full_key) for e in chain if isinstance(e, OmegaConfBaseException) and e.full_key), None)
    for missing in chain:
        if isinstance(missing, MissingConfigException) and missing.missing_cfg_file:
            group, _, option = missing.missing_cfg_file.partition("/")
            meant = [f"{group}={name}" for name in closest(option, missing.options or [])]
            allowed = ", ".join(missing.options or [])
            return f"{group}={option}: no such option; allowed: {allowed}{did_you_mean(meant)}"
    whole = " ".join(str(error).split())
    if key is None or "interpolation" in type(chain[-1]).__name__.lower():
        return whole or type(error).__name__
    group, _, name = key.partition(".")
    known = {f.name: f.metadata["allowed"] for cls in GROUPS.get(group, ()) for f in dataclasses.fields(cls)}
    if (name and known and name not in known) or (not name and group not in GROUPS):
        return no_such_key(key)
    text = known.get(name)
    given = next((str(e).split("override ", 1)[1].split("\n")[0] for e in chain if "merging override " in str(e)), key)
    return f"{given}: must be {text}" if text else whole


def _loaded(text: str) -> DictConfig:
    register()
    try:
        # What is saved has no aliases; a few lines of them stand for a billion values.
        if "&" in text and any(isinstance(token, AliasToken) for token in scan(text)):
            raise LoraExpError("is not a saved config (it holds aliases)")
        config = OmegaConf.create(text)
    except (OmegaConfBaseException, YAMLError, RecursionError) as error:
        raise LoraExpError(f"is not a saved config ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig):
        raise LoraExpError("is not a saved config")
    return config


def plain(config: DictConfig) -> dict[str, Any]:
    """The application's own part of a config as dicts, lists and scalars, interpolations resolved."""
    with one_line_errors():
        own = {str(key): config[key] for key in config if key != "hydra"}
        return {key: _plain_value(value) for key, value in own.items()}


def _plain_value(value: Any) -> Any:
    is_config = OmegaConf.is_config(value)
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if is_config else value


def _omega_default(default: Any) -> Any:
    """A field with a default as OmegaConf has it: lists for tuples, `???` where there is none."""
    if isinstance(default, tuple):
        return dataclasses.field(default_factory=functools.partial(list, default))
    return dataclasses.field(default="???" if default is dataclasses.MISSING else default)


def _omega_type(key: str, hint: Any) -> Any:
    """The type of a key for OmegaConf: lists for tuples; Any where several types are allowed, which the spec checks."""
    if key in ("target", "classes", "alpha", "size", "validation", "rates", "space") or key.endswith("_pattern"):
        return Any
    if typing.get_origin(hint) is tuple:
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint
