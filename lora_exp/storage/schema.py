"""Whether what was read from a file has the types that its dataclass declares, so that nothing fails on it later."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST = 2**63  # of the whole numbers that tables and MLflow hold


def parsed(text: str) -> Any:
    """The content of a JSON file. Raises ValueError for any other text, however deep or long."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def conform(value: Any, kind: Any, name: str) -> None:
    """Raise ValueError, which names the field, unless `value` has the type `kind`.

    `kind` is a dataclass, whose fields are checked too, or made of int, float, str, bool, lists, tuples, mappings,
    literals and unions. A float may be a whole number, and no number is larger than 2**63.
    """
    if not _conforms(value, kind, name):
        raise ValueError(f"{name} must be {_words(kind)}, not {str(value)[:40]}")


def _conforms(value: Any, kind: Any, name: str) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            for field, of in _fields(kind).items():
                conform(getattr(value, field), of, field)
            return True
        return False
    if origin in (typing.Union, types.UnionType):
        return any(_conforms(value, one, name) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (list, tuple, Sequence):
        of = inner[0] if inner else Any
        if not isinstance(value, list | tuple):
            return False
        alike = set(map(type, value)) <= {of}  # hundreds of losses, and the counts of a confusion table
        if alike and of in (int, float):
            return of is float or max(map(abs, value), default=0) < LARGEST
        return all(_conforms(one, of, name) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_conforms(one, inner[1], name) for one in value.values())
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) < LARGEST)
    return kind is Any or isinstance(value, kind)


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
