"""What runs may promise about their bits on this machine, remembered in the store.

`numerics.promise` tries the products of a model, which takes 0.4 s on the reference model. Its answer depends on the
processor and the math libraries. Machines may share a store, so the key holds what is known of both.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp import numerics
from lora_exp.config.spec import digest
from lora_exp.storage.provenance import code_version
from lora_exp.storage.store import Store

if TYPE_CHECKING:
    import torch

PROMISE = "promise.txt"
# Fields of /proc/cpuinfo that differ between kinds of processors, on x86 and Arm.
KIND_OF_PROCESSOR = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "cache size", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)
# Beginnings of environment variables that the math libraries read, such as MKL_CBWR and the thread settings.
ENVIRONMENT = ("MKL_", "OMP_", "KMP_", "DNNL_", "ONEDNN_", "OPENBLAS_", "ATEN_", "GOTO_")


@functools.cache
def promise(store: Store, shapes: Sequence[tuple[int, int]], device: torch.device) -> str:
    """Return `numerics.promise` of a model whose layer weights have these shapes [O, I], from the store if it is there.

    Where the processor is not known, or there is no such store, nothing is remembered.
    """
    features = processor_features()
    if device.type != "cpu" or not features or not store.root.is_dir():
        return numerics.promise(shapes, device)
    key = digest([[list(shape) for shape in shapes], *features, *_libraries(), code_version("bases")])
    stored = (store.get("promises", key) or {}).get(PROMISE, b"").decode(errors="replace")
    if stored in (numerics.ANY_PACK, numerics.SAME_PACK):
        return stored
    made = numerics.promise(shapes, device)
    with contextlib.suppress(OSError):  # a disk that is full or read-only: it is only computed again
        store.put("promises", key, {PROMISE: made.encode()})
    return made


def processor_features() -> list[str]:
    """List the model and the abilities of the first processor; [] where the system doesn't tell."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return []
    fields = (line.partition(":") for line in first.splitlines())
    return [f"{name.strip()}={value.strip()}" for name, _, value in fields if name.strip() in KIND_OF_PROCESSOR]


def _libraries() -> list[str]:
    """List the builds and the environment of the libraries that compute products."""
    import torch

    environment = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(ENVIRONMENT))
    return [platform.platform(), torch.__version__, torch.__config__.show(), *environment]
