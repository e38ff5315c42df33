"""What a prepared file says of itself, without its images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lora_exp.config.images import ImageFacts, facts_from

METADATA = "lora_exp"  # one key holds all metadata: safetensors writes several in varying order


@dataclass(frozen=True)
class Header:
    """What a prepared file says of itself: the facts, the hash of all of it, its source, and images left out."""

    facts: ImageFacts
    sha256: str
    source: str
    skipped: int


def header(path: Path) -> Header | None:
    """What a prepared file says of itself, in a millisecond; None where there is none, or one of an older version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[METADATA])
        return Header(facts_from(about["facts"]), about["sha256"], about["source"], about["skipped"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
