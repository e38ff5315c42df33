"""Dataclass fields that know, in words and in code, which values a config key allows."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any

from lora_exp.errors import LoraExpError, closest, did_you_mean

SMALLEST, LARGEST = 1e-37, 3e38  # of the numbers that single precision holds with all its digits
POSITIVE = f"a number above 0, from {SMALLEST:g} to {LARGEST:g}"


def is_int(value: Any) -> bool:
    """Whether `value` is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_positive(value: Any) -> bool:
    """Whether `value` is a number above 0 in single precision, in which everything is computed."""
    return is_number(value) and SMALLEST <= value <= LARGEST


def is_text(value: Any) -> bool:
    """Whether `value` is text that is not empty and holds no control characters, line breaks or lone surrogates."""
    return (
        isinstance(value, str) and value != "" and not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, value))
    )


def is_name(value: Any) -> bool:
    """Whether `value` can be the name of a file or folder: text without slashes, of at most 200 bytes."""
    return is_text(value) and not {"/", "\\"} & set(value) and value not in (".", "..") and len(value.encode()) <= 200


def is_pattern(value: Any, check: Callable[[Any], bool]) -> bool:
    """Whether `value` maps layer names or patterns to values that pass `check`: a mapping, pairs, or None."""
    try:
        pairs = list(value.items() if isinstance(value, Mapping) else () if value is None else value)
        return all(isinstance(name, str) and check(own) for name, own in pairs)
    except (TypeError, ValueError):
        return False


def is_digits(value: Any) -> bool:
    """Whether `value` is one digit, or a list of one to nine different digits."""
    digits = value if isinstance(value, list | tuple) else (value,)
    valid = all(is_int(digit) and 0 <= digit <= 9 for digit in digits)
    return valid and 0 < len(set(digits)) == len(digits) < 10


def is_classes(value: Any) -> bool:
    """Whether `value` is a class, by name or by number, or a list of them; whether they exist only the data can say."""
    classes = value if isinstance(value, list | tuple) else (value,)
    return len(classes) > 0 and all((is_int(one) and one >= 0) or is_text(one) for one in classes)


def is_size(value: Any) -> bool:
    """Whether `value` is a side of images in pixels, or a list of height and width."""
    sides = value if isinstance(value, list | tuple) else (value, value)
    return len(sides) == 2 and all(is_int(side) and 1 <= side <= 4096 for side in sides)


def is_alpha(value: Any) -> bool:
    """Whether `value` is a number above 0, or "rank"."""
    return value == "rank" or (is_positive(value))


def allow(text: str, check: Callable[[Any], bool], **default: Any) -> Any:
    """A field whose metadata holds what is allowed, in words and as a function."""
    return field(metadata={"allowed": text, "check": check}, **default)


def refusal(key: str, shown: str, allowed: str) -> LoraExpError:
    """The error for a value that is not allowed; it ends with one of the allowed names that may have been meant."""
    names = allowed.rpartition("one of ")[2].split(", ") if "one of " in allowed and shown != "null" else []
    meant = [f"{key}={name}" for name in closest(shown, names)]
    return LoraExpError(f"{key}={shown}: must be {allowed}{did_you_mean(meant)}")


def integer(least: int, **default: Any) -> Any:
    """A field for integers of at least `least`."""
    return allow(f"an integer of at least {least}", lambda v: is_int(v) and v >= least, **default)


def positive(**default: Any) -> Any:
    """A field for numbers above 0 in single precision."""
    return allow(POSITIVE, is_positive, **default)


def flag(**default: Any) -> Any:
    """A field for true or false."""
    return allow("true or false", lambda v: isinstance(v, bool), **default)


def one_of(names: Iterable[str], **default: Any) -> Any:
    """A field for one of these names."""
    known = tuple(names)
    return allow("one of " + ", ".join(known), lambda v: v in known, **default)


def optional(text: str, check: Callable[[Any], bool], null: str = "null") -> Any:
    """A field for null, its default, or a value that passes `check`."""
    return allow(f"{null} or {text}", lambda v: v is None or check(v), default=None)
