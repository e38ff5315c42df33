"""What runs, methods and values are called in tables, figures and sentences."""

from __future__ import annotations

import json
from typing import Any

KEEP = "the base as it is"  # what is recommended where no setting gains
# Method and rank; the rank is None for a method without one.
Kind = tuple[str, int | None]


def kind_label(kind: Kind) -> str:
    """Return `rank 4`, `dora rank 4` or `full`."""
    method, rank = kind
    return " ".join(([] if method == "lora" else [method]) + ([] if rank is None else [f"rank {rank}"]))


def adapted(kind: Kind) -> str:
    """Return `at rank 4`, `with dora rank 4` or `with full`."""
    return f"{'at' if kind[0] == 'lora' else 'with'} {kind_label(kind)}"


def in_a_sentence(target: str) -> str:
    """The names of classes, as a table has them, in a sentence: `class 2`, `classes 2 and 7`, `shirt and coat`."""
    names = target.replace(",", " and ")
    noun = "classes" if "," in target else "class"
    return f"{noun} {names}" if target.replace(",", "").isdecimal() else names


def as_text(value: Any) -> str:
    """Return a value as a config has it: `1` and `0.001` for numbers, `true`, `null`, lists with commas."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return ",".join(as_text(part) for part in value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
