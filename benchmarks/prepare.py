"""python benchmarks/prepare.py DIR: MNIST in DIR/cache/data, as every way of the benchmark reads it."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import DataSpec
from lora_exp.data.prepared import prepare

root = str(Path(sys.argv[1]) / "cache" / "data")
prepare(DataSpec("mnist"), DataFolder(root, None, root))
