"""Where a result comes from: versions, commit, processor, threads, and the version of the computing code."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from lora_exp import numerics
from lora_exp.config.spec import digest

PACKAGE = Path(__file__).parents[1]
# The modules whose code determines numbers; a change in one makes stored results of the older code unreachable.
BASE_MODULES = ("model/data", "model/architecture", "model/base", "numerics")
RESULT_MODULES = (
    *BASE_MODULES,
    *("config/methods", "adapters/plan", "adapters/initialisation", "adapters/updates"),
    *("adapters/layer", "adapters/pack"),
    *("training/checkpoint", "training/loop", "training/evaluation", "training/pack"),
)
LIBRARIES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "pandas", "numpy", "safetensors")


@functools.cache
def code_version(modules: tuple[str, ...]) -> str:
    """Hash of the modules' syntax trees: comments and layout don't count."""
    trees = [ast.dump(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))) for name in modules]
    return digest(trees)[:16]


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of Python and of the libraries that matter."""
    found = {"python": platform.python_version(), "lora-exp": importlib.metadata.version("lora-exp")}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, with `+changes` when files differ; None outside one."""
    command = ["git", "-C", str(PACKAGE)]
    try:
        top = subprocess.run(
            [*command, "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.split()
        if Path(top[0]) != PACKAGE.parent:  # installed inside somebody else's checkout
            return None
        changed = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
    return top[1] + ("+changes" if changed else "")


@functools.cache
def processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def provenance(device: str, threads: int, promise: str, data_sha256: str) -> dict[str, Any]:
    """What a result carries about the circumstances of its making."""
    import torch

    return {
        "versions": versions(),
        "commit": git_commit(),
        "code": code_version(RESULT_MODULES),
        "platform": platform.platform(),
        "processor": processor(),
        "device": device,
        "threads": threads,
        "torch_threads": torch.get_num_threads(),  # on which bases are trained
        "mkl_cbwr": numerics.requested(),
        "promise": promise,
        "data_sha256": data_sha256,
    }
