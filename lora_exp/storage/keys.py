"""The store's keys of bases and results: hashes of everything that determines them. They are found without torch."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import runpy
import sys
from pathlib import Path

from lora_exp import numerics
from lora_exp.config.models import LIBRARIES, ModelSpec
from lora_exp.config.spec import RunSpec, digest
from lora_exp.errors import LoraExpError, installing
from lora_exp.storage.provenance import code_version

# On Linux no accelerator works without one of these: NVIDIA's driver, the same under WSL, on Tegra, and AMD's driver.
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")


def base_key(spec: RunSpec, data_sha256: str, device: str) -> str:
    """Hash everything that determines a base: data set, code and machine, `device` being the type of device."""
    return digest([spec.base_spec_key, *circumstances("bases", spec.model, data_sha256, device)])


def result_key(spec: RunSpec, data_sha256: str, device: str) -> str:
    """Hash everything that determines a result."""
    return digest([spec.key, *circumstances("results", spec.model, data_sha256, device)])


def circumstances(kind: str, model: ModelSpec, data_sha256: str, device: str) -> list[str]:
    """List what determines an entry besides its spec: data, code, libraries, type of device, kernels of the CPU.

    Libraries are torch and the one that the model comes from. Raises LoraExpError when that one is not installed.
    """
    kernels = numerics.kernels() if device == "cpu" else ""
    libraries = [torch_version(), *([f"{model.kind} {_version(model.kind)}"] if model.kind in LIBRARIES else [])]
    return [data_sha256, code_version(kind), ", ".join(libraries), device, kernels]


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError as error:
        raise LoraExpError(f"model={library}: needs the library; {installing(library)}") from error


def only_device(name: str) -> str | None:
    """Return the type of device that `device.name` means on this machine; None where only torch can tell."""
    if name == "auto" and sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS):
        return "cpu"
    return "cpu" if name == "cpu" else None


@functools.cache
def torch_version() -> str:
    """The version of torch with its build, from the file that torch itself reads it from."""
    if "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return str(runpy.run_path(str(Path(found.origin).with_name("version.py")))["__version__"])
