"""Sweeps of LoRA experiments on small image classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lora_exp.numerics import request_reproducible_products

if TYPE_CHECKING:  # what editors and type checkers see
    from lora_exp.adapters.adapted import AdaptedClassifier
    from lora_exp.api.listing import list_sweeps
    from lora_exp.api.run import Run, load_run
    from lora_exp.api.session import run, sweep
    from lora_exp.api.sweep import Sweep, load_sweep
    from lora_exp.errors import LoraExpError
    from lora_exp.model.base import plain_module
    from lora_exp.training.base import load_base

__version__ = "0.1.0"
__all__ = [
    "AdaptedClassifier",
    "LoraExpError",
    "Run",
    "Sweep",
    "list_sweeps",
    "load_base",
    "load_run",
    "load_sweep",
    "plain_module",
    "run",
    "sweep",
]

# Must happen before torch is loaded, and whoever imports any part of this package comes through here.
request_reproducible_products()

# Where the public names are; each is loaded on first use, since they need pandas or torch.
PUBLIC = {
    "AdaptedClassifier": "adapters.adapted",
    "LoraExpError": "errors",
    "Run": "api.run",
    "Sweep": "api.sweep",
    "list_sweeps": "api.listing",
    "load_base": "training.base",
    "load_run": "api.run",
    "load_sweep": "api.sweep",
    "plain_module": "model.base",
    "run": "api.session",
    "sweep": "api.session",
}


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lora_exp.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
