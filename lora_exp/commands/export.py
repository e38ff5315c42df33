"""`lora-exp export` and `lora-exp merge`: the adapter of a run as a folder for PEFT, or merged into the weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.commands.arguments import add_overrides, add_run, parse
from lora_exp.config.compose import saved_settings
from lora_exp.config.methods import METHODS
from lora_exp.config.models import MODULE, STACK, VIT
from lora_exp.errors import LoraExpError
from lora_exp.numerics import request_portable_kernels
from lora_exp.storage.result import RunResult, read_run

if TYPE_CHECKING:
    import torch

    from lora_exp.config.settings import Settings
    from lora_exp.model.base import BaseModel

BASE, README = "base.safetensors", "README.md"
VIT_FILE = Path(__file__).parents[1] / "model" / "vit.py"


def main(arguments: Sequence[str]) -> int:
    """Write the adapter of a run as a folder that PEFT loads, with its base."""
    parser = argparse.ArgumentParser(prog="lora-exp export", description=main.__doc__)
    add_run(parser)
    parser.add_argument("--format", choices=["peft"], default="peft", help="format of the folder (default peft)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default RUN/peft)")
    add_overrides(parser, "store.folder=elsewhere")
    options = parse(parser, arguments)
    print(export_peft(options.run, options.out, options.overrides))
    return 0


def merge_main(arguments: Sequence[str]) -> int:
    """Write the classifier of a run, its adapter merged into the weights, as a state dict in safetensors."""
    parser = argparse.ArgumentParser(prog="lora-exp merge", description=merge_main.__doc__)
    add_run(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default RUN/merged.safetensors)")
    add_overrides(parser, "store.folder=elsewhere")
    options = parse(parser, arguments)
    print(merge(options.run, options.out, options.overrides))
    return 0


def export_peft(folder: Path, out: Path | None, overrides: Sequence[str]) -> Path:
    """Write the adapter of the run in `folder`, and its base, for PEFT into `out` or `folder/peft`; return the path.

    `overrides` apply to the run's settings. Raises LoraExpError for a run, a base or an override that can't be used,
    for a method that PEFT does not have, and for a place that holds another adapter.
    """
    result = read_run(folder)
    adapter = result.spec.adapter
    if METHODS[adapter.method].update not in ("low_rank", "dora"):
        instead = "nothing was trained" if adapter.method == "none" else f"use lora-exp merge {folder}"
        raise LoraExpError(f"{folder}: {adapter.method} has no form among PEFT's LoRA adapters; {instead}")
    from safetensors.torch import save

    from lora_exp.adapters.peft import ADAPTER_CONFIG, peft_files
    from lora_exp.training.base import load_classifier

    adapted = load_classifier(folder, overrides)
    base = adapted.base
    layers = base.network.layers
    try:
        files = peft_files(adapted.factors, adapted.scaling, layers, adapter.dropout)
    except ValueError as error:
        raise LoraExpError(f"{folder}: {error}; use lora-exp merge {folder}") from error
    files |= {BASE: save(_state_dict(base)), README: _readme(folder, result, base).encode()}
    if result.spec.model.kind == VIT:
        files |= {VIT_FILE.name: VIT_FILE.read_bytes()}
    out = folder / "peft" if out is None else out
    if (out / ADAPTER_CONFIG).exists() and not (out / BASE).exists():
        raise LoraExpError(f"{out}: holds another adapter already; name another folder with --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return out


def merge(folder: Path, out: Path | None, overrides: Sequence[str]) -> Path:
    """Write the merged weights of the run in `folder` into `out` or `folder/merged.safetensors`; return the path.

    The file is a state dict for `plain_module`. `overrides` apply to the run's settings. Raises LoraExpError for a run,
    a base or an override that can't be used.
    """
    result = read_run(folder)
    settings_with_kernels(result, overrides)
    from safetensors.torch import save

    from lora_exp.adapters.adapted import METADATA
    from lora_exp.training.base import load_classifier

    adapted = load_classifier(folder, overrides)
    about = {
        "model": dataclasses.asdict(result.spec.model),
        "base_sha256": adapted.base.sha256(),
        "adapter_sha256": result.outcome.adapter_sha256,
        "run": result.name,
        "folder": str(folder.absolute()),
    }
    merged = _state_dict(adapted.merge())
    out = folder / "merged.safetensors" if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(save(merged, metadata={METADATA: json.dumps(about, sort_keys=True)}))
    return out


def settings_with_kernels(result: RunResult, overrides: Sequence[str]) -> Settings:
    """Return the settings of a run, with overrides of them, and request its kernels for what is computed of it.

    Merging is a product. Raises LoraExpError as `request_portable_kernels` does: call before torch is imported.
    """
    settings = saved_settings(result.provenance["config"], overrides)
    if settings.device.portable:
        request_portable_kernels()
    return settings


def _state_dict(model: BaseModel) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state.items()}


def _readme(folder: Path, result: RunResult, base: BaseModel) -> str:
    """How to load the folder, in code that needs only torch, safetensors, peft and the library of the model."""
    classes, shape = len(result.facts.classes), " x ".join(map(str, result.facts.shape))
    return f"""# {result.name}

Exported by lora-exp from {folder.absolute()}, base SHA-256 {result.outcome.base_sha256_before}. In this folder:

```python
{_construction(result, base)}
base.load_state_dict(load_file("{BASE}"))
model = PeftModel.from_pretrained(base.eval(), ".")
```

It takes images {shape} as lora-exp normalises them ({result.spec.data.name}) and returns {classes} logits.
"""


def _construction(result: RunResult, base: BaseModel) -> str:
    """Lines of Python that import what is needed and build `base` with weights of any value."""
    from lora_exp.model.base import plain_module
    from lora_exp.model.builders import recipe

    model = result.spec.model
    imports = ["from peft import PeftModel", "from safetensors.torch import load_file"]
    if model.kind == STACK:
        modules = "".join(f"    {name}=nn.{module!r},\n" for name, module in plain_module(base).named_children())
        lines = ["from collections import OrderedDict", "", *imports, "from torch import nn", ""]
        return "\n".join([*lines, f"base = nn.Sequential(OrderedDict(\n{modules}))"])
    if model.kind == MODULE:
        return "\n".join([*imports, "", f"base = ...  # your module, {model.name}"])
    kind, arguments = recipe(model, result.facts)
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    source, name = {
        "vit": ("vit", "VisionTransformer"),
        "torchvision": ("torchvision.models", "get_model"),
        "timm": ("timm", "create_model"),
    }[kind]
    return "\n".join([*imports, f"from {source} import {name}", "", f"base = {name}({written})"])
