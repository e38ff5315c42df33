"""What a config key may hold: dataclass fields that carry, in words and in code, which values are allowed."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any


def is_int(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_text(value: Any) -> bool:
    """Text of at least one character, none of which is a control character, a line break or no Unicode at all."""
    return (
        isinstance(value, str) and value != "" and not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, value))
    )


def is_name(value: Any) -> bool:
    """Text that names a file or folder in another folder, wherever that is."""
    return is_text(value) and not {"/", "\\"} & set(value) and value not in (".", "..") and len(value.encode()) <= 200


def is_pattern(value: Any, check: Callable[[Any], bool]) -> bool:
    """A mapping of layer names or patterns to values, the pairs that it is kept as, or None for no such layers."""
    try:
        pairs = list(value.items() if isinstance(value, Mapping) else () if value is None else value)
        return all(isinstance(name, str) and check(own) for name, own in pairs)
    except (TypeError, ValueError):
        return False


def is_alpha(value: Any) -> bool:
    """A number above 0, or "rank"."""
    return value == "rank" or (is_number(value) and value > 0)


def allow(text: str, check: Callable[[Any], bool], **default: Any) -> Any:
    """A field whose metadata says in words and in code what is allowed."""
    return field(metadata={"allowed": text, "check": check}, **default)


def integer(least: int, **default: Any) -> Any:
    return allow(f"an integer of at least {least}", lambda v: is_int(v) and v >= least, **default)


def positive(**default: Any) -> Any:
    return allow("a number above 0", lambda v: is_number(v) and v > 0, **default)


def flag(**default: Any) -> Any:
    return allow("true or false", lambda v: isinstance(v, bool), **default)
