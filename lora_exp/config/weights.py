"""Files of trained weights that a config names: checked and hashed, so that a spec holds the content, not the place."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
from pathlib import Path

from lora_exp.errors import LoraExpError

SUFFIX = ".safetensors"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def weights_sha256(path: str) -> str:
    """Return the SHA-256 (hex) of a file of weights. Raises LoraExpError, of one line, for anything but safetensors."""
    place = Path(path)
    if place.suffix.lower() in PICKLED:
        to = place.with_suffix(SUFFIX).name
        convert = (
            "import torch; from safetensors.torch import save_file; "
            f"save_file({{k: v.contiguous() for k, v in torch.load({path!r}, weights_only=True).items()}}, {to!r})"
        )
        quoted = shlex.quote(convert) if set(convert) & set('"$`\\') else f'"{convert}"'
        raise LoraExpError(
            f"base.weights={path}: is in a format that can run code; convert a state dict with: python -c {quoted}"
        )
    if place.suffix.lower() != SUFFIX:
        raise LoraExpError(f"base.weights={path}: must be a {SUFFIX} file that holds a state dict")
    try:
        status = place.stat()
        return _hashed(str(place.absolute()), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise LoraExpError(f"base.weights={path}: can't be read ({os.strerror(error.errno or 0)})") from error


@functools.cache
def _hashed(path: str, size: int, changed: int) -> str:
    """Size and time of the last change stand for the content: each job of a sweep asks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
