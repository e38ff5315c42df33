"""A run for use elsewhere: its adapter as a folder that PEFT loads, or merged into the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from lora_exp.adapters.adapted import METADATA, AdaptedClassifier
from lora_exp.adapters.peft import ADAPTER_CONFIG, peft_files
from lora_exp.config.methods import METHODS
from lora_exp.errors import LoraExpError
from lora_exp.model.base import BaseModel, plain_module
from lora_exp.storage.result import ADAPTER, RunResult, read_run
from lora_exp.training.base import load_base

BASE, README = "base.safetensors", "README.md"


def export_peft(folder: Path, out: Path | None, overrides: Sequence[str]) -> Path:
    """Write the adapter of the run in `folder`, and its base, for PEFT: into `out`, or `folder/peft`; return that.

    Raises LoraExpError when the run or its base can't be read, when its method has no form in PEFT, or when somebody
    else's adapter is in that place; LoraExpError for overrides (of the run's settings) that are not allowed.
    """
    result = read_run(folder)
    adapter = result.spec.adapter
    if METHODS[adapter.method].update not in ("low_rank", "dora"):
        instead = "nothing was trained" if adapter.method == "none" else f"use lora-exp merge {folder}"
        raise LoraExpError(f"{folder}: {adapter.method} has no form among PEFT's LoRA adapters; {instead}")
    base = load_base(folder, overrides)
    adapted = _adapted(base, folder)
    layers = [layer.shape for layer in base.layers]
    files = peft_files(adapted.factors, adapted.scaling, layers, adapter.dropout)
    files |= {BASE: save(_state_dict(base)), README: _readme(folder, result, base).encode()}
    out = folder / "peft" if out is None else out
    if (out / ADAPTER_CONFIG).exists() and not (out / BASE).exists():
        raise LoraExpError(f"{out}: holds another adapter already; name another folder with --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return out


def merge(folder: Path, out: Path | None, overrides: Sequence[str]) -> Path:
    """Write the classifier of the run in `folder` with its adapter part of the weights; return the file's path.

    It is `out`, or `folder/merged.safetensors`: a state dict for `plain_module`. Raises LoraExpError when the run or
    its base can't be read; LoraExpError for overrides (of the run's settings) that are not allowed.
    """
    result = read_run(folder)
    base = load_base(folder, overrides)
    about = {
        "model": dataclasses.asdict(result.spec.model),
        "base_sha256": base.sha256(),
        "adapter_sha256": result.outcome.adapter_sha256,
        "run": result.name,
        "folder": str(folder.absolute()),
    }
    merged = _state_dict(_adapted(base, folder).merge())
    out = folder / "merged.safetensors" if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(save(merged, metadata={METADATA: json.dumps(about, sort_keys=True)}))
    return out


def adapted_run(folder: Path, overrides: Sequence[str]) -> AdaptedClassifier:
    """The classifier of the run in `folder`. Raises LoraExpError when it, or its base, can't be read."""
    return _adapted(load_base(folder, overrides), folder)


def _adapted(base: BaseModel, folder: Path) -> AdaptedClassifier:
    try:
        return AdaptedClassifier.load(base, folder / ADAPTER)
    except ValueError as error:
        raise LoraExpError(str(error)) from error


def _state_dict(model: BaseModel) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.tensors().items()}


def _readme(folder: Path, result: RunResult, base: BaseModel) -> str:
    """How to load the folder, in code that needs torch, safetensors and peft alone."""
    modules = "".join(f"    {name}=nn.{module!r},\n" for name, module in plain_module(base).named_children())
    return f"""# {result.name}

Exported by lora-exp from {folder.absolute()}, base SHA-256 {result.outcome.base_sha256_before}. In this folder:

```python
from collections import OrderedDict

from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

base = nn.Sequential(OrderedDict(
{modules}))
base.load_state_dict(load_file("{BASE}"))
model = PeftModel.from_pretrained(base, ".")
```

It takes images as lora-exp normalises them ({result.spec.data.name}) and returns ten logits.
"""
