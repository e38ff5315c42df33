"""Sweeps of LoRA experiments on small image classifiers."""

from __future__ import annotations

import importlib

from lora_exp.numerics import request_reproducible_products

__version__ = "0.1.0"

# Must happen before torch is loaded, and whoever imports any part of this package comes through here.
request_reproducible_products()

# The public names, each loaded on first use: they need pandas or torch.
PUBLIC = {
    "LoraExpError": "lora_exp.errors",
    "sweep": "lora_exp.sweeps.session",
    "load_sweep": "lora_exp.storage.sweep_folder",
    "AdaptedClassifier": "lora_exp.adapters.adapted",
    "load_base": "lora_exp.training.base",
    "plain_module": "lora_exp.model.base",
}


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)
