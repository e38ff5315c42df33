"""Adapters in PEFT's file format: write and read the files of an adapter folder.

This module uses no code of PEFT and reads nothing but JSON and safetensors. Shapes: I inputs and O outputs of a layer,
C channels and kernel k of a convolution (I is C*k*k), r rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lora_exp.adapters.initialisation import Factors
from lora_exp.config.fields import is_int, is_number
from lora_exp.config.spec import AdapterSpec
from lora_exp.errors import in_words
from lora_exp.model.architecture import LayerShape

T = TypeVar("T")

ADAPTER_MODEL, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
TENSOR_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


class Option(NamedTuple):
    """An option of `adapter_config.json`: PEFT's default, and which values this module reads."""

    default: Any
    allowed: str = ""  # in words
    check: Callable[[Any], bool] = lambda value: True


# Ranks, alphas and target_modules are checked later, layer by layer.
OPTIONS = {
    "peft_type": Option(None, "LORA", lambda value: value == "LORA"),
    "target_modules": Option(None),
    "r": Option(8),
    "rank_pattern": Option({}, "a mapping of layers or patterns to ranks", lambda value: isinstance(value, dict)),
    "lora_alpha": Option(8),
    "alpha_pattern": Option({}, "a mapping of layers or patterns to alphas", lambda value: isinstance(value, dict)),
    "lora_dropout": Option(0.0, "a share of at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1),
    "use_rslora": Option(False, "true or false", lambda value: isinstance(value, bool)),
    "use_dora": Option(False, "true or false", lambda value: isinstance(value, bool)),
    "bias": Option("none", "none", lambda value: value == "none"),
    "init_lora_weights": Option(
        True,
        "true, false, gaussian or orthogonal; others change the base's weights",
        lambda value: isinstance(value, bool) or value in ("gaussian", "orthogonal"),
    ),
}
# Options that do not change what the adapter computes. Any other option must be off.
WITHOUT_EFFECT = {
    *("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("qalora_group_size", "megatron_core"),
}
MAX_PATTERN = 60  # characters
MAX_REPETITIONS = 10
WIDENED = (torch.float32, torch.float16, torch.bfloat16)  # each is exactly a float32


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter read from PEFT's format.

    `factors` are those of `initialisation.initial_factors`, `scaling` is by layer, and `spec` is the equivalent spec.
    """

    factors: Factors
    scaling: dict[str, float]
    spec: AdapterSpec


def peft_files(
    factors: Mapping[str, torch.Tensor], scaling: Mapping[str, float], layers: Sequence[LayerShape], dropout: float
) -> dict[str, bytes]:
    """Encode low-rank factors, with or without magnitudes, as the files of an adapter folder, by name.

    The files describe plain LoRA (or DoRA) for every method, with the alpha that gives each layer its scaling. Raises
    ValueError, in one line, for a layer that PEFT can't adapt.
    """
    adapted = [layer for layer in layers if f"{layer.name}.A" in factors]
    if of_attention := [layer.name for layer in adapted if layer.in_attention]:
        raise ValueError(
            f"{of_attention[0]}: is one product of an nn.MultiheadAttention, which PEFT adapts only as a whole"
        )
    names = [layer.name for layer in layers]
    ranks = {layer.name: len(factors[f"{layer.name}.A"]) for layer in adapted}
    rank, rank_pattern = _split_pattern(ranks)
    alpha, alpha_pattern = _split_pattern({name: scaling[name] * ranks[name] for name in ranks})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "target_modules": _written_targets(list(ranks), names),
        "r": rank,
        "rank_pattern": _written_pattern(rank_pattern, names),
        "lora_alpha": alpha,
        "alpha_pattern": _written_pattern(alpha_pattern, names),
        "lora_dropout": dropout,
        "use_rslora": False,
        "use_dora": any(name.endswith(".magnitude") for name in factors),
        "bias": "none",
        "fan_in_fan_out": False,
    }
    tensors = {}
    for layer in adapted:
        for part, shape in _shapes(layer, ranks[layer.name]).items():
            if (factor := factors.get(f"{layer.name}.{part}")) is not None:
                tensors[f"{PREFIX}{layer.name}.{TENSOR_NAMES[part]}"] = factor.reshape(shape).contiguous()
    return {
        ADAPTER_CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        ADAPTER_MODEL: save(tensors, metadata={"format": "pt"}),
    }


def read_folder(folder: Path, layers: Sequence[LayerShape]) -> PeftAdapter:
    """Read an adapter folder that PEFT wrote, for a model with these layers.

    Raises ValueError, in one line that names file and key, for anything but LoRA, rsLoRA or DoRA on these layers.
    """
    file = folder / ADAPTER_CONFIG
    config = _read_config(file)
    named = {layer.name: layer for layer in layers}
    targets = _targets(file, config["target_modules"], list(named))
    ranks = {name: _rank_or_alpha(file, config, "r", "rank_pattern", name) for name in targets}
    alphas = {name: float(_rank_or_alpha(file, config, "lora_alpha", "alpha_pattern", name)) for name in targets}
    dora, rslora = config["use_dora"], config["use_rslora"]
    if dora and rslora:  # this project scales DoRA by alpha / r
        alphas = {name: alpha * ranks[name] ** 0.5 for name, alpha in alphas.items()}
    shapes = {name: _shapes(named[name], ranks[name]) for name in targets}
    factors = _read_factors(folder / ADAPTER_MODEL, shapes, ("A", "B", "magnitude") if dora else ("A", "B"))
    rank, rank_pattern = _split_pattern(ranks)
    alpha, alpha_pattern = _split_pattern(alphas)
    spec = AdapterSpec(
        method="dora" if dora else "rslora" if rslora else "lora",
        rank=rank,
        alpha=alpha,
        rank_pattern=tuple(rank_pattern.items()),
        alpha_pattern=tuple(alpha_pattern.items()),
        layers=("*",) if len(targets) == len(layers) else tuple(targets),
        dropout=float(config["lora_dropout"]),
    )
    return PeftAdapter(factors, {name: spec.scaling_at(ranks[name], alphas[name]) for name in targets}, spec)


def _shapes(layer: LayerShape, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each part in PEFT's file, which stores parts of a convolution as kernels."""
    outputs, *kernel = layer.torch_shape  # the kernel is I, or C, k and k of a convolution
    ones = (1,) * (len(kernel) - 1)
    return {"A": (rank, *kernel), "B": (outputs, rank, *ones), "magnitude": (*ones[:1], outputs, *ones)}


def _written_targets(targets: list[str], layers: Sequence[str]) -> list[str] | str:
    """The adapted layers as PEFT reads them: a name in a list also means every layer whose name ends with it."""
    if any(name.endswith(f".{target}") for target in targets for name in layers if name not in targets):
        return "|".join(target.replace(".", r"\.") for target in targets)
    return targets


def _written_pattern(by_layer: Mapping[str, T], layers: Sequence[str]) -> dict[str, T]:
    """Values by layer as PEFT reads them: a name also means every layer whose name ends with it, unless marked."""
    ends = {target for target in by_layer if any(name.endswith(f".{target}") for name in layers)}
    return {f"^{target}" if target in ends else target: own for target, own in by_layer.items()}


def _split_pattern(by_layer: Mapping[str, T]) -> tuple[T, dict[str, T]]:
    """Return the most frequent value, and the other values by layer."""
    values = list(by_layer.values())
    most_frequent = max(values, key=values.count)
    return most_frequent, {name: value for name, value in by_layer.items() if value != most_frequent}


def _read_config(file: Path) -> dict[str, Any]:
    """Read the config, check each option, and add PEFT's defaults."""
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: can't be read ({in_words(error)})") from error
    if not isinstance(given, dict):
        raise ValueError(f"{file}: must be a JSON object with the options of an adapter")
    for name in sorted(set(given) - set(OPTIONS) - WITHOUT_EFFECT):
        if given[name] is not False and given[name] not in (None, "", [], {}):
            raise ValueError(f"{file}: {name}={_shown(given[name])}: is not supported; turn it off")
    config = {name: given.get(name, option.default) for name, option in OPTIONS.items()}
    for name, option in OPTIONS.items():
        if not option.check(config[name]):
            raise ValueError(f"{file}: {name}={_shown(config[name])}: must be {option.allowed}")
    return config


def _targets(file: Path, given: Any, names: list[str]) -> list[str]:
    """List the adapted layers in the order of the model."""
    if isinstance(given, str) and set(exact := given.replace(r"\.", ".").split("|")) <= set(names):
        return [name for name in names if name in exact]
    if isinstance(given, str):
        found = [name for name in names if _matches(file, "target_modules", given, name)]
        if not found:
            raise ValueError(f"{file}: target_modules={_shown(given)}: matches no layer of {', '.join(names)}")
        return found
    if not isinstance(given, list) or not given:
        raise ValueError(f"{file}: target_modules={_shown(given)}: must be a list of layers, or a pattern")
    targets: set[str] = set()
    for target in given:
        own = {name for name in names if name == target or name.endswith(f".{target}")}
        if not own:
            raise ValueError(
                f"{file}: target_modules={_shown(target)}: the model has no such layer; its layers are "
                f"{', '.join(names)}"
            )
        targets |= own
    return [name for name in names if name in targets]


def _rank_or_alpha(file: Path, config: Mapping[str, Any], key: str, patterns: str, layer: str) -> Any:
    """Return the rank or alpha of a layer: that of the first pattern that matches, as in PEFT."""
    name, value = key, config[key]
    for pattern, pattern_value in config[patterns].items():
        if _matches(file, patterns, rf"(?:.*\.)?(?:{pattern})", layer):
            name, value = f"{patterns}.{pattern}", pattern_value
            break
    if key == "r" and not (is_int(value) and value >= 1):
        raise ValueError(f"{file}: {name}={_shown(value)}: must be an integer of at least 1")
    if not (is_number(value) and value > 0):
        raise ValueError(f"{file}: {name}={_shown(value)}: must be a number above 0")
    return value


def _matches(file: Path, key: str, pattern: str, layer: str) -> bool:
    try:
        if len(pattern) > MAX_PATTERN:
            raise ValueError(f"is longer than {MAX_PATTERN} characters")
        # Else the time to match would grow without bound: Python tries every way to share a name among repetitions.
        if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]|(?<!\()\?", pattern)) > MAX_REPETITIONS:
            raise ValueError(f"repeats a group, or has more than {MAX_REPETITIONS} repetitions")
        return re.fullmatch(pattern, layer) is not None
    except (re.error, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{file}: {key}: {_shown(pattern)} is not a valid pattern ({in_words(error)})") from error


def _read_factors(file: Path, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], parts: Sequence[str]) -> Factors:
    """Read exactly the expected tensors, as matrices: A [r, I], B [O, r], magnitude [O]."""
    expected = {
        f"{PREFIX}{layer}.{TENSOR_NAMES[part]}": (f"{layer}.{part}", own[part])
        for layer, own in shapes.items()
        for part in parts
    }
    try:
        with safe_open(file, framework="pt") as content:
            found = set(content.keys())
            for what, keys in (("is missing", set(expected) - found), ("is not expected", found - set(expected))):
                if keys:
                    raise ValueError(f"{file}: {_shown(min(keys))} {what}")
            tensors = {key: content.get_tensor(key) for key in expected}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: can't be read ({in_words(error)})") from error
    factors = {}
    for key, (name, shape) in expected.items():
        tensor = tensors[key]
        if tensor.shape != shape or tensor.dtype not in WIDENED:
            kind = f"{tensor.dtype}".removeprefix("torch.") + f" of {tuple(tensor.shape)}"
            raise ValueError(f"{file}: {key}: must be float32, float16 or bfloat16 of shape {shape}, is {kind}")
        tensor = tensor.float()
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{file}: {key}: holds values that are not finite")
        factors[name] = tensor.flatten(0 if name.endswith(".magnitude") else 1)
    return factors


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
