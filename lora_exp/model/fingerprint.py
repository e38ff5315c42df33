"""What a module of one's own computes, as a hash: its code, its attributes, and the form of its weights.

The values of weights are not part of it: they are a file with a hash of its own. Of functions and classes of torch,
numpy and Python only the names count; the version of torch is in every key of the store.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_exp.config.spec import digest

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
BY_NAME = {"torch", "numpy", *sys.stdlib_module_names}
INSTALLED = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")})
OF_MODULES = {*vars(nn.Module()), "training"}
# Attributes of a class that change nothing, or that differ from process to process.
OF_CLASSES = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__", "__qualname__"),
    *("__static_attributes__", "__abstractmethods__", "_abc_impl", "__annotate_func__", "__annotations_cache__"),
}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex): equal in any process for modules of the same code, attributes and shapes."""
    return digest([repr(module), _Description().of_module(module)])


class _Description:
    """Values as nested lists of text, those that may hold others as hashes."""

    def __init__(self) -> None:
        # By number of a value: what it is, or is to be, described as. Holds it too, so that no other gets its number.
        self._known: dict[int, tuple[str, Any]] = {}

    def of_module(self, module: nn.Module) -> list[Any]:
        """Names, shapes and sharing of weights; classes, attributes and hooks of all parts."""
        first: dict[int, str] = {}
        state = [
            [name, str(tensor.dtype), list(tensor.shape), first.setdefault(id(tensor), name)]
            for name, tensor in module.state_dict(keep_vars=True).items()
        ]
        parts = []
        for name, own in module.named_modules(remove_duplicate=False):
            attributes = {key: value for key, value in vars(own).items() if key not in OF_MODULES}
            hooks = [*own._forward_pre_hooks.values(), *own._forward_hooks.values()]
            hidden = [own._buffers[key] for key in sorted(own._non_persistent_buffers_set)]
            parts.append([name, *map(self.of, (type(own), attributes, hooks, hidden))])
        return [state, parts]

    def of(self, value: Any) -> Any:
        """Describe any value."""
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if id(value) not in self._known:
            self._known[id(value)] = ("inside itself", value)
            own = value if isinstance(value, type | types.FunctionType) else type(value)
            found = digest([f"{own.__module__}.{own.__qualname__}", *self._parts(value)])
            self._known[id(value)] = (found, value)
        return self._known[id(value)][0]

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, torch.Tensor):
            numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            yield from (str(value.dtype), list(value.shape), hashlib.sha256(numbers).hexdigest())
        elif isinstance(value, nn.Module):  # in a list or a closure, where its weights are no weights
            yield from (self.of_module(value), self.of(dict(value.state_dict())))
        elif isinstance(value, Mapping):
            yield from ([self.of(key), self.of(own)] for key, own in value.items())
        elif isinstance(value, set | frozenset):
            yield from sorted(map(self.of, value))
        elif isinstance(value, list | tuple):
            yield from map(self.of, value)
        elif isinstance(value, functools.partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from map(self.of, (value.__func__, value.__self__))
        elif isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType | None):
            yield from (value.__name__, self.of(value.__self__))
        elif isinstance(value, staticmethod | classmethod):
            yield self.of(value.__func__)
        elif not isinstance(value, type | types.FunctionType) and hasattr(value, "__wrapped__"):
            yield self.of(value.__wrapped__)  # such as a function with a cache
        elif isinstance(value, property):
            yield self.of(value.fget)
        elif isinstance(value, types.CodeType):
            yield from (value.co_code.hex(), value.co_names, value.co_varnames, self.of(value.co_consts))
        elif isinstance(value, logging.Logger):
            yield value.name
        elif hasattr(value, "tobytes") and not isinstance(value, type):  # an array
            yield from (str(getattr(value, "dtype", "")), hashlib.sha256(value.tobytes()).hexdigest())
        elif isinstance(value, type | types.FunctionType):
            yield from () if _root(value) in BY_NAME else self._code(value)
        elif _root(type(value)) in BY_NAME:
            yield from (re.sub(r" at 0x[0-9a-f]+", "", repr(value)), self.of(getattr(value, "__dict__", None)))
        else:
            slots = {name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())}
            own = {name: getattr(value, name, None) for name in sorted(slots) if name != "__dict__"}
            yield from map(self.of, (type(value), own, getattr(value, "__dict__", None)))

    def _code(self, value: type | types.FunctionType) -> Iterator[Any]:
        if isinstance(value, type):
            yield from map(self.of, value.__bases__)
            yield from ([name, self.of(own)] for name, own in sorted(vars(value).items()) if name not in OF_CLASSES)
            return
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        yield from map(self.of, (value.__code__, value.__defaults__, value.__kwdefaults__, cells, vars(value)))
        if not _is_installed(value):
            yield from ([name, self.of(own)] for name, own in _used(value))


def _used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function uses of its own file, and of other files of one's own."""
    names = sorted(_names(function.__code__))
    for name in names:
        if name not in function.__globals__:
            continue
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in BY_NAME:
            yield from ((f"{name}.{inner}", getattr(value, inner)) for inner in names if hasattr(value, inner))


def _names(code: types.CodeType) -> set[str]:
    """The names that a function uses, and those inside it."""
    return set(code.co_names).union(*(_names(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def _root(value: type | types.FunctionType) -> str:
    return str(value.__module__).partition(".")[0]


def _is_installed(function: types.FunctionType) -> bool:
    """Whether it is of a library, whose files are not one's own."""
    return any(Path(function.__code__.co_filename).is_relative_to(folder) for folder in INSTALLED)
