"""Runs and sweeps from Python: the command line's own application, in this process, with a module of one's own."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import re
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.api.run import Run, load_run
from lora_exp.api.sweep import Sweep, load_sweep
from lora_exp.config.compose import PRESETS, compose_config, one_line_errors
from lora_exp.config.settings import TRACKING
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.numerics import check_reproducible_products
from lora_exp.sweeps.recording import recording

if TYPE_CHECKING:
    from torch import nn

    Overrides = Mapping[str, Any] | Sequence[str]

MODULES = Path("cache/modules")
# The key of a group that chooses its option.
CHOOSES = {"data": "name", "adapter": "method", "executor": "kind", "tracking": "kind"}

NO_TEXT = ("null", "true", "false", "nan", "inf")  # words that are other values in Hydra's grammar, if not quoted


class _Typed(str):
    """An override as one types it on a command line."""


def run(module: nn.Module | Overrides | None = None, overrides: Overrides | None = None, **groups: Any) -> Run:
    """Run one config as `lora-exp` does, with the same store, folders and bits, and return it as read from its folder.

    `run(adapter={"rank": 4}, finetune={"target": 3})` is `lora-exp adapter.rank=4 finetune.target=3`, and so is
    `run(["adapter.rank=4", "finetune.target=3"])`; `sweep` describes all arguments. A run that fails has no result and
    says why. Raises LoraExpError for what the command line refuses.
    """
    arguments = _arguments(module, overrides, groups)
    for key, value in arguments.items():
        if isinstance(value, list):
            raise LoraExpError(
                f"{key}={value}: a list is swept, and a run has one value; use lora_exp.sweep, or a tuple"
            )
    if {"experiment", "hydra.mode"} & arguments.keys() and _is_sweep(list(map(_argument, arguments.items()))):
        raise LoraExpError("experiment: this preset is a sweep; use lora_exp.sweep, or a preset of one run")
    return load_run(_ran([], arguments, "hydra.run.dir"))


def sweep(module: nn.Module | Overrides | None = None, overrides: Overrides | None = None, **groups: Any) -> Sweep:
    """Run a sweep as `lora-exp -m` does, with the same store, folders and bits, and return it as read from its folder.

    `groups` are config groups by name: an option (`data="fashion_mnist"`), or its keys as a mapping
    (`adapter={"method": ["lora", "dora"], "rank": [1, 4]}`). A list holds the values to sweep over; a value that is
    itself a list, such as layers, is a tuple. `overrides` hold any other key in full (`{"hydra.verbose": True}`), or
    are those of a command line (`["adapter.rank=1,4", "finetune.target=3"]`); they may be the first argument.

    `module` is a classifier of one's own, trained before: it takes normalised images [N, channels, height, width] and
    returns logits [N, classes]. Its weights are copied, and stay as they are unless `base={"epochs": 1}` asks for more.
    Jobs that fail are rows of the sweep's frame. Raises LoraExpError for what the command line refuses.
    """
    return load_sweep(_ran(["-m"], _arguments(module, overrides, groups), "hydra.sweep.dir"))


def _ran(flags: list[str], arguments: dict[str, Any], key: str) -> Path:
    """Run the application and return the folder that it wrote to, which `key` names. It holds the reasons of failures.

    Raises LoraExpError for what the application refuses.
    """
    if "torch" in sys.modules:
        check_reproducible_products()
    if _value(arguments, "sweep.plan") in (True, "true"):
        raise LoraExpError("sweep.plan=true: runs nothing; for a plan use the command line, lora-exp -m --plan")
    now = datetime.datetime.now()
    own = Path("runs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{secrets.token_hex(2)}"  # as conf/config.yaml has it
    arguments.setdefault(key, str(own))
    folder = str(_value(arguments, key))
    if "${" in folder:
        raise LoraExpError(f"{key}={folder}: must be a folder's name as it is, without ${{...}}")
    tracking = _value(arguments, "tracking.kind") or _value(arguments, "tracking") or TRACKING[0]
    with _command_line([*flags, *map(_argument, arguments.items())]):
        from lora_exp.sweeps.application import run_application

        recording().start(with_mlflow=tracking != "off")
        with contextlib.suppress(JobsFailed):
            run_application()
    return Path(folder).absolute()


def _is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a preset, or `hydra.mode`, makes a sweep of it."""
    from hydra.types import RunMode

    return bool(compose_config(arguments).hydra.mode == RunMode.MULTIRUN)


def _arguments(
    module: nn.Module | Overrides | None, overrides: Overrides | None, groups: Mapping[str, Any]
) -> dict[str, Any]:
    """Every override by its key, with those that choose a module of one's own."""
    own = dict(_keys(groups)) | _by_key(overrides or {})
    if module is None or isinstance(module, Mapping | list | tuple | str):
        return _by_key(module or {}) | own
    own = _given(module) | own
    if (executor := _value(own, "executor") or "local") != "local":
        raise LoraExpError(f"executor={executor}: a module of one's own trains with executor=local")
    return own


def _by_key(overrides: Overrides) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if isinstance(overrides, str):
        raise LoraExpError(f"{overrides}: overrides must be a list, such as [{overrides!r}], or a mapping")
    for one in overrides:
        if one.startswith("-") and not one.startswith(PRESETS):
            raise LoraExpError(f"{one}: is a flag of the command line; an override is KEY=VALUE, or {PRESETS}FOLDER")
    return {one.partition("=")[0]: _Typed(one) for one in overrides}


def _value(arguments: Mapping[str, Any], key: str) -> Any:
    """What is given for a key; None where nothing is."""
    value = arguments.get(key)
    if not isinstance(value, _Typed):
        return value
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with one_line_errors():
        return OverridesParser.create().parse_override(value).value()


def _argument(given: tuple[str, Any]) -> str:
    """An override as the command line takes it. Raises LoraExpError for a list without values to sweep over."""
    key, value = given
    if isinstance(value, list) and not value:
        raise LoraExpError(f"{key}=[]: the list is empty; it holds the values to sweep over")
    return value if isinstance(value, _Typed) else f"{key}={_written(value)}"


def _given(module: Any) -> dict[str, Any]:
    """Make a module known to this process and its forks; return the keys that choose it, with its weights as a file."""
    from safetensors.torch import save

    from lora_exp.model.builders import give
    from lora_exp.storage.sweep_file import write_whole

    name = give(module)
    content = save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in module.state_dict().items()})
    file = MODULES / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    return {"model": "module", "model.name": name, "base.weights": str(file), "base.epochs": 0}


def _keys(groups: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The overrides of config groups: first the option, then its keys."""
    for group, values in groups.items():
        if not isinstance(values, Mapping):
            yield group, values
            continue
        if (chooses := CHOOSES.get(group)) in values:
            yield group, values[chooses]
        yield from ((f"{group}.{key}", value) for key, value in values.items() if key != chooses)


def _written(value: Any) -> str:
    """A value in Hydra's grammar of overrides; a list becomes the values of a sweep."""
    if isinstance(value, list):
        return ",".join(map(_written, value))
    if isinstance(value, tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_written(key)}:{_written(own)}" for key, own in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if text.isidentifier() and text.isascii() and text.lower() not in NO_TEXT:
        return text
    # In Hydra's grammar a backslash escapes only a quote, and those before one, or before the end, are doubled.
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


@contextlib.contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """A block in which these are the command line, and after which logs are as before."""
    from hydra.core.global_hydra import GlobalHydra
    from tqdm import TqdmWarning

    before, level, handlers = sys.argv, logging.root.level, list(logging.root.handlers)
    sys.argv = ["lora-exp", *arguments]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # of a notebook without widgets
            yield
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
