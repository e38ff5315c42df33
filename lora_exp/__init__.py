"""Sweeps of LoRA experiments on small image classifiers."""

from __future__ import annotations

__version__ = "0.1.0"

from lora_exp.numerics import request_reproducible_products

# Must happen before torch is loaded, and whoever imports any part of this package comes through here.
request_reproducible_products()


def __getattr__(name: str) -> object:
    """The public names, each loaded on first use: they need pandas or torch."""
    if name == "load_sweep":
        from lora_exp.storage.sweep_folder import load_sweep

        return load_sweep
    if name == "AdaptedClassifier":
        from lora_exp.adapters.adapted import AdaptedClassifier

        return AdaptedClassifier
    if name == "load_base":
        from lora_exp.storage.run_folder import load_base

        return load_base
    if name == "plain_module":
        from lora_exp.model.base import plain_module

        return plain_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
