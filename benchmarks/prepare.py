"""python benchmarks/prepare.py DIR: MNIST in DIR/cache/data, as every way of the benchmark reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lora_exp.config.spec import DataSpec
from lora_exp.model.data import load

load(DataSpec("mnist"), Path(sys.argv[1]) / "cache" / "data", torch.device("cpu"))
