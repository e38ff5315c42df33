"""Sweeps from Python: the command line's own application, in this process, and a module of one's own as its model."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.settings import TRACKING
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.numerics import check_reproducible_products
from lora_exp.storage.sweep_folder import Sweep, read_sweep
from lora_exp.sweeps.recording import recording

if TYPE_CHECKING:
    from torch import nn

MODULES = Path("cache/modules")
# The key of a group that chooses its option.
CHOOSES = {"data": "name", "adapter": "method", "executor": "kind", "tracking": "kind"}

NO_TEXT = ("null", "true", "false", "nan", "inf")  # words that are other values in Hydra's grammar, if not quoted


def sweep(module: nn.Module | None = None, overrides: Mapping[str, Any] | None = None, **groups: Any) -> Sweep:
    """Run a sweep as `lora-exp -m` does, with the same store, folders and bits, and return it as read from its folder.

    `groups` are config groups by name: an option (`data="fashion_mnist"`), or its keys as a mapping
    (`adapter={"method": ["lora", "dora"], "rank": [1, 4]}`). A list holds the values to sweep over; a value that is
    itself a list, such as layers, is a tuple. `overrides` hold any other key in full (`{"hydra.verbose": True}`).

    `module` is a classifier of one's own, trained before: it takes normalised images [N, channels, height, width] and
    returns logits [N, classes]. Its weights are copied, and stay as they are unless `base={"epochs": 1}` asks for more.
    Jobs that fail are rows of the sweep's frame. Raises LoraExpError for what the command line refuses.
    """
    check_reproducible_products()
    keys = dict(_keys(groups)) | dict(overrides or {})
    if module is not None:
        keys = _given(module) | keys
        if keys.get("executor", "local") != "local":
            raise LoraExpError(f"executor={keys['executor']}: a module of one's own trains with executor=local")
    now = datetime.datetime.now()
    own = Path("runs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{secrets.token_hex(2)}"  # as conf/config.yaml has it
    folder = keys.setdefault("hydra.sweep.dir", str(own))
    with _arguments(["-m", *(f"{key}={_written(value)}" for key, value in keys.items())]):
        from lora_exp.sweeps.application import run_application

        recording().start(with_mlflow=keys.get("tracking", TRACKING[0]) != "off")
        with contextlib.suppress(JobsFailed):
            run_application()
    return read_sweep(Path(folder))


def _given(module: nn.Module) -> dict[str, Any]:
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
def _arguments(arguments: list[str]) -> Iterator[None]:
    """A block in which these are the command line, and after which logs are as before."""
    from hydra.core.global_hydra import GlobalHydra

    before, level, handlers = sys.argv, logging.root.level, list(logging.root.handlers)
    sys.argv = ["lora-exp", *arguments]
    try:
        yield
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
