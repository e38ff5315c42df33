"""Compare two records of a run: numbers, curves and tensors bit for bit, settings and provenance as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tabulate import tabulate

from lora_exp.storage.result import RunResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABSENT = "absent"
RATES = (
    "accuracy",
    "error_rates",
    "forgetting",
    *(f"{whose}_error{when}" for whose in ("target", "other") for when in ("", "_before")),
)


class Difference(NamedTuple):
    """A value as it was stored and as it is now, both as text."""

    name: str
    stored: str
    now: str


def measures(result: RunResult, files: Mapping[str, bytes]) -> dict[str, Any]:
    """All that a run measured, by name: the numbers of its outcome, and the tensors and metadata of its safetensors.

    Raises SafetensorError or ValueError when one of the `files` (content by name) is damaged.
    """
    from safetensors.numpy import load

    found = flat(dataclasses.asdict(result.outcome))
    for file, content in files.items():
        found |= {f"{file} {name}": tensor for name, tensor in load(content).items()}
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found |= {f"{file} metadata {name}": text for name, text in header.get("__metadata__", {}).items()}
    return found


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name. A list stays one value, unless it holds mappings."""
    found: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, Mapping):
            found |= flat(part, f"{prefix}{name}.")
        elif isinstance(part, list) and part and isinstance(part[0], Mapping):
            for at, row in enumerate(part):
                found |= flat(row, f"{prefix}{name}[{at}].")
        else:
            found[f"{prefix}{name}"] = part
    return found


def differing_texts(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The values that differ as JSON."""
    texts = [{name: _text(value) for name, value in values.items()} for values in (stored, now)]
    pairs = {name: [own.get(name, ABSENT) for own in texts] for name in dict.fromkeys([*stored, *now])}
    return [Difference(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def differing_bits(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The values that differ in a bit; of curves and tensors, the first element that differs.

    NaN equals NaN. Numbers of different types differ.
    """
    found = []
    for name in dict.fromkeys([*stored, *now]):
        if name in stored and name in now:
            found += _differing_bits(name, _array(stored[name]), _array(now[name]))
        else:
            texts = [_shown(_array(values[name])) if name in values else ABSENT for values in (stored, now)]
            found.append(Difference(name, *texts))
    return found


def rates(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's measurements that are rates from 0 to 1, or differences of rates, by name."""
    return {name: value for name, value in measured.items() if name.rpartition(".")[2] in RATES}


def differing_rates(stored: Mapping[str, Any], now: Mapping[str, Any], tolerance: float) -> list[Difference]:
    """The rates that differ by more than `tolerance`, or that only one side has."""
    import numpy as np

    found = []
    for name in dict.fromkeys([*stored, *now]):
        before, after = (np.asarray(values.get(name, np.nan), dtype=float) for values in (stored, now))
        if before.shape != after.shape or not np.allclose(before, after, rtol=0, atol=tolerance, equal_nan=True):
            found.append(Difference(name, *(str(np.round(side, 4)) for side in (before, after))))
    return found


def table(differences: Sequence[Difference]) -> str:
    """The differences as plain text, one a line."""
    return tabulate(differences, Difference._fields, "simple", disable_numparse=True)


def _differing_bits(name: str, stored: NDArray[Any], now: NDArray[Any]) -> list[Difference]:
    import numpy as np

    if stored.shape != now.shape or stored.dtype != now.dtype:
        return [Difference(name, _shown(stored), _shown(now))]
    differs = np.asarray(stored != now)
    if stored.dtype.kind == "f":
        bits = f"u{stored.itemsize}"
        differs = (stored.view(bits) != now.view(bits)) & ~(np.isnan(stored) & np.isnan(now))
    if not differs.any():
        return []
    if not stored.shape:
        return [Difference(name, _shown(stored), _shown(now))]
    first = tuple(int(at) for at in np.argwhere(differs)[0])
    count = f"first of {int(differs.sum()):,} in {differs.size:,}"
    return [Difference(f"{name}[{', '.join(map(str, first))}] ({count})", str(stored[first]), str(now[first]))]


def _array(value: Any) -> NDArray[Any]:
    import numpy as np

    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths, in a result that was edited
        return np.asarray(json.dumps(value))


def _shown(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}" if array.shape else str(array)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
