"""Which sweeps this user began on this machine: their records hold a signature that only a key of this user makes.

The folder of a sweep may come from somebody else, and its `sweep.json` names the command that `lora-exp resume` runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIGNED = ("ticket", "arguments")  # what decides about what a resumed sweep runs


def signature(about: Mapping[str, Any]) -> str | None:
    """Sign what `sweep.json` says; None where this user has no folder for a key."""
    try:
        key = _key()
    except (OSError, RuntimeError):  # no home
        return None
    return hmac.new(key, json.dumps([about.get(name) for name in SIGNED]).encode(), hashlib.sha256).hexdigest()


def is_own(about: Mapping[str, Any]) -> bool:
    """Whether this user began the sweep on this machine."""
    made = signature(about)
    return made is not None and hmac.compare_digest(made.encode(), str(about.get("signature")).encode(errors="replace"))


def _key() -> bytes:
    """The key of this user on this machine, made when it is first needed."""
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = root / "lora-exp" / "key"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # linked into place, so that no other process reads half a key
        with tempfile.NamedTemporaryFile(dir=path.parent) as file, contextlib.suppress(FileExistsError):
            file.write(secrets.token_bytes(32))
            file.flush()
            os.link(file.name, path)
    return path.read_bytes()
