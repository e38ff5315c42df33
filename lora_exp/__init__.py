"""Sweeps of LoRA experiments on small image classifiers."""

from __future__ import annotations

__version__ = "0.1.0"

from lora_exp.numerics import request_reproducible_products

# Must happen before torch is loaded, and whoever imports any part of this package comes through here.
request_reproducible_products()


def __getattr__(name: str) -> object:
    """The public names, each loaded on first use: they need pandas or torch."""
    if name == "load_sweep":
        from lora_exp.sweep import load_sweep

        return load_sweep
    if name == "AdaptedClassifier":
        from lora_exp.adapted import AdaptedClassifier

        return AdaptedClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
