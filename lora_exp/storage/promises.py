"""What runs may promise about their bits on this machine, remembered in the store.

To try the products of a model takes 0.4 s on the reference model. The answer depends on the processor and the math
libraries. Machines may share a store, so the key holds what is known of both.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def promise(store: Store, tried: Any, device: torch.device, try_it: Callable[[], str]) -> str:
    """Return what `try_it` finds, from the store if it is there; `tried`, of JSON types, says of what.

    Where the processor is not known, or there is no such store, nothing is remembered.
    """
    features = processor_features()
    if device.type != "cpu" or not features or not store.root.is_dir():
        return try_it()
    key = digest([tried, *features, *_libraries(), code_version("bases")])
    stored = (store.get("promises", key) or {}).get(PROMISE, b"").decode(errors="replace")
    if stored.startswith((numerics.ANY_PACK, numerics.SAME_PACK)):
        return stored
    made = try_it()
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
