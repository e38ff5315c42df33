"""Sweeps of LoRA experiments on small image classifiers."""

from __future__ import annotations

__version__ = "0.1.0"

from lora_exp.numerics import request_reproducible_products

# Must happen before torch is loaded, and whoever imports any part of this package comes through here.
request_reproducible_products()
