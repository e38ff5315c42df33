"""`adapter.safetensors`: the factors of one adapter, their scaling, and the hash of the base it belongs to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

# One key holds all metadata: safetensors writes several in an order that changes from run to run, and equal
# adapters are to be equal files.
METADATA = "lora_exp"


@dataclass(frozen=True)
class StoredAdapter:
    """`factors` are float32, named and shaped as `initialisation.initial_factors` has them; `scaling` is by layer."""

    factors: dict[str, torch.Tensor]
    scaling: dict[str, float]
    base_sha256: str


def encoded(factors: Mapping[str, torch.Tensor], scaling: Mapping[str, float], base_sha256: str) -> bytes:
    """The bytes of the file: the same for the same adapter."""
    about = json.dumps({"base_sha256": base_sha256, "scaling": dict(scaling)}, sort_keys=True)
    content: bytes = save({name: factors[name].contiguous() for name in sorted(factors)}, metadata={METADATA: about})
    return content


def read_adapter(path: Path) -> StoredAdapter:
    """Read the file; no code in it is ever run.

    Raises ValueError, of one line, when it is damaged or not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        scaling = {str(layer): float(factor) for layer, factor in about["scaling"].items()}
        if not all(map(math.isfinite, scaling.values())):
            raise ValueError("a scaling is not finite")
        return StoredAdapter(factors, scaling, str(about["base_sha256"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: is not an adapter that can be read ({' '.join(str(error).split())})") from error
