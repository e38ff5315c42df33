"""What a run is: one frozen dataclass for each config group, and the checks that turn a config into them.

`RunSpec` holds all that determines the numbers of a run and nothing else; folders and the like are in `settings`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lora_exp.config.fields import (
    POSITIVE,
    allow,
    flag,
    integer,
    is_alpha,
    is_classes,
    is_digits,
    is_int,
    is_number,
    is_pattern,
    is_positive,
    is_size,
    is_text,
    one_of,
    optional,
    positive,
    refusal,
)
from lora_exp.config.methods import METHODS
from lora_exp.config.models import ModelSpec
from lora_exp.config.weights import weights_sha256
from lora_exp.errors import LoraExpError

T = TypeVar("T")

# Data sets of a known place and form, and the forms of data of one's own.
KNOWN_SETS = ("mnist", "fashion_mnist", "kmnist", "qmnist", "emnist", "cifar10", "cifar100", "svhn", "digits")
OWN_DATA = ("folder", "npz", "parquet")
EMNIST = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
INITIALISATIONS = ("gaussian", "kaiming", "orthogonal")


@dataclass(frozen=True)
class DataSpec:
    """Which images a run trains on, and in which form; the test set is always complete.

    `validation` is a number of training images or a share of them, held out evenly from all classes. `test` is the
    share of images that become the test set of data without one.
    """

    name: str = one_of((*KNOWN_SETS, *OWN_DATA))
    validation: int | float = allow(
        "0, a number of images of at least 2, or a share below 1",
        lambda v: is_number(v) and (0 <= v < 1 or (is_int(v) and v >= 2)),
        default=0,
    )
    limit: int | None = optional("an integer of at least 2", lambda v: is_int(v) and v >= 2)
    split: str | None = optional("one of " + ", ".join(EMNIST), lambda v: v in EMNIST)
    size: tuple[int, int] | None = optional("a side of 1 to 4096 pixels, or [height,width]", is_size)
    channels: int | None = optional("1 or 3", lambda v: is_int(v) and v in (1, 3))
    classes: tuple[int | str, ...] | None = optional("a list of names of classes", is_classes)
    test: float = allow("a share above 0 and below 1", lambda v: is_number(v) and 0 < v < 1, default=0.2)
    skip_bad: bool = flag(default=False)


@dataclass(frozen=True)
class BaseSpec:
    """How the base classifier is trained (Adam, cross-entropy), and from which weights on.

    `weights` is the SHA-256 of a file, where training starts from weights of one's own; `head=new` gives them a new
    last layer. With `trained=head` the last layer alone is trained.
    """

    epochs: int = integer(0, default=1)
    batch_size: int = integer(1, default=10)
    learning_rate: float = positive(default=1e-3)
    seed: int = integer(0, default=0)
    classes: tuple[int | str, ...] | None = optional("a list of classes", is_classes, null="null (all classes)")
    weights: str | None = optional("a .safetensors file", is_text)
    head: str = one_of(("keep", "new"), default="keep")
    trained: str = one_of(("all", "head"), default="all")

    def used(self) -> BaseSpec:
        """This spec with every key at its default that changes nothing where no base is trained."""
        return self if self.epochs else BaseSpec(epochs=0, weights=self.weights)

    def check(self) -> None:
        """Raise LoraExpError for values that don't fit each other."""
        if self.weights is None and self.epochs == 0:
            raise LoraExpError("base.epochs=0: needs weights, as base.weights=FILE.safetensors")
        if self.weights is None and self.head == "new":
            raise LoraExpError("base.head=new: needs weights, as base.weights=FILE.safetensors")
        if self.head == "new" and self.epochs == 0:
            raise LoraExpError("base.head=new: the new head must be trained; use base.epochs=1, base.trained=head")


@dataclass(frozen=True)
class AdapterSpec:
    """How the base is adapted: the method and its options. docs/methods.md names the sources.

    `rank_pattern` and `alpha_pattern` set rank and alpha by layer; the last pattern that matches a layer counts.
    """

    method: str = one_of(METHODS, default="lora")
    rank: int = integer(1, default=1)
    alpha: float | str = allow("a number above 0, or rank (alpha equals the rank)", is_alpha, default=1.0)
    rank_pattern: tuple[tuple[str, int], ...] = allow(
        "null, or ranks of at least 1 by layer name or pattern, such as {linear1:4,conv*:2}",
        lambda v: is_pattern(v, lambda own: is_int(own) and own >= 1),
        default=(),
    )
    alpha_pattern: tuple[tuple[str, float | str], ...] = allow(
        "null, or alphas (numbers above 0, or rank) by layer name or pattern, such as {linear1:4,conv*:rank}",
        lambda v: is_pattern(v, is_alpha),
        default=(),
    )
    layers: tuple[str, ...] = allow(
        "a list of layer names or patterns, written as 'adapter.layers=[linear1]' or 'adapter.layers=[\"*.q\"]'",
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(isinstance(name, str) for name in v),
        default=("*",),
    )
    init: str = one_of(INITIALISATIONS, default="gaussian")
    init_std: float = positive(default=1.0)
    dropout: float = allow("a share of at least 0 and below 1", lambda v: is_number(v) and 0 <= v < 1, default=0.0)
    learning_rate_ratio: float = positive(default=16.0)

    def used(self) -> AdapterSpec:
        """This spec with every key that the method does not use at its default."""
        return AdapterSpec(self.method, **{name: value for name, value in vars(self).items() if name in self.keys})

    @property
    def keys(self) -> set[str]:
        """The keys that the method uses; initialisations other than gaussian have a fixed size."""
        return set(METHODS[self.method].keys) - (set() if self.init == "gaussian" else {"init_std"})

    @property
    def scaling(self) -> float | None:
        """The factor of the low-rank product in layers that match no pattern; None for a method without one."""
        return self.scaling_at(self.rank, self.alpha) if "rank" in METHODS[self.method].keys else None

    def scaling_at(self, rank: int, alpha: float | str) -> float:
        """The factor of a low-rank product with this rank and alpha."""
        return METHODS[self.method].scaling(float(rank) if isinstance(alpha, str) else alpha, rank)


@dataclass(frozen=True)
class FinetuneSpec:
    """How the adapter is trained on the target classes (Adam, cross-entropy)."""

    target: tuple[int | str, ...] = allow(
        "a class, by name or number, or a list of them, written as 'finetune.target=[shirt,coat]'", is_classes
    )
    steps: int = integer(1, default=100)
    epochs: float | None = optional(POSITIVE, is_positive, null="null (then finetune.steps counts)")
    batch_size: int = integer(1, default=10)
    learning_rate: float = positive(default=1e-3)
    seed: int = integer(0, default=0)
    replay: float = allow("a share of at least 0 and below 1", lambda v: is_number(v) and 0 <= v < 1, default=0.0)


@dataclass(frozen=True)
class RunSpec:
    """Everything that determines the numbers of one run."""

    model: ModelSpec
    data: DataSpec
    base: BaseSpec
    adapter: AdapterSpec
    finetune: FinetuneSpec

    @property
    def key(self) -> str:
        """SHA-256 of the spec: equal specs have equal keys, in any process."""
        return digest(dataclasses.asdict(self))

    @property
    def base_spec_key(self) -> str:
        """SHA-256 of the part of the spec that determines the base: jobs with equal keys share one base."""
        return digest([dataclasses.asdict(part) for part in (self.model, self.data, self.base)])

    @property
    def name(self) -> str:
        """A short, readable name: `target-9_lora_rank-4_alpha-1_seed-0`."""
        return self.named("-".join(map(str, self.finetune.target)))

    def named(self, target: str) -> str:
        """The same with other words for the target."""
        parts = [f"target-{target}", self.adapter.method]
        if self.adapter.scaling is not None:
            alpha = self.adapter.alpha if isinstance(self.adapter.alpha, str) else f"{self.adapter.alpha:g}"
            parts += [f"rank-{self.adapter.rank}", f"alpha-{alpha}"]
        return "_".join([*parts, f"seed-{self.finetune.seed}"])


# Config group -> dataclass of its part of the spec.
SPECS: dict[str, type[Any]] = typing.get_type_hints(RunSpec)
# Keys of these groups that change no number; they are settings.
NOT_SPEC = {("data", "root"), ("data", "file"), ("data", "prepared")}
# Names that some keys have for the classes of a set of digits, with what is allowed there.
DIGITS: dict[tuple[str, str], tuple[str, str]] = {
    ("finetune", "target"): (
        "digit",
        "a digit from 0 to 9, or a list of one to nine different ones, written as 'finetune.digit=[1,2]'",
    ),
    ("base", "classes"): ("digits", "null (all digits) or a list of one to nine different digits"),
}


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def checked(cls: type[T], group: str, values: Mapping[str, Any]) -> T:
    """Build dataclass `cls` from the config values of `group`, each checked by its field.

    Raises LoraExpError for the first value that is not allowed, and for unknown or missing keys.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for unknown in sorted(set(values) - set(fields)):
        raise LoraExpError(f"{group}.{unknown}: no such key; allowed: {', '.join(sorted(fields))}")
    clean: dict[str, Any] = {}
    for name, known in fields.items():
        if name in values:
            if not known.metadata["check"](values[name]):
                raise refusal(f"{group}.{name}", _shown(values[name]), known.metadata["allowed"])
            clean[name] = _normal(name, known.type, values[name])
        elif known.default is dataclasses.MISSING:
            raise LoraExpError(f"{group}.{name}: missing; needs {known.metadata['allowed']}")
    return cls(**clean)


def spec_from(config: Mapping[str, Any]) -> RunSpec:
    """The spec of a resolved config (plain values). Raises LoraExpError for the first value that is not allowed."""
    parts = {}
    for group, cls in SPECS.items():
        values = config.get(group)
        if not isinstance(values, Mapping):
            raise LoraExpError(f"{group}={_shown(values)}: must be a config group")
        own = {k: v for k, v in values.items() if (group, k) not in NOT_SPEC}
        if group == "base" and isinstance(own.get("weights"), str):
            own["weights"] = weights_sha256(own["weights"])
        parts[group] = checked(cls, group, _without_digits(group, own))
    return _run_spec(parts)


def from_dict(values: Mapping[str, Any]) -> RunSpec:
    """The spec that `dataclasses.asdict` was taken of, or its JSON, in which tuples are lists."""
    return _run_spec(
        {group: checked(cls, group, _without_digits(group, values[group])) for group, cls in SPECS.items()}
    )


def _without_digits(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a group in which the digits that DIGITS names are classes; a class that is given counts before them."""
    found = dict(values)
    for (own, key), (digits, allowed) in DIGITS.items():
        if own == group and digits in found:
            given = found.pop(digits)
            is_list = isinstance(given, list | tuple)
            if given is not None and not (is_digits(given) and (is_list or group == "finetune")):
                raise LoraExpError(f"{group}.{digits}={_shown(given)}: must be {allowed}")
            if found.get(key) is None:
                found[key] = given
    return found


def _run_spec(parts: dict[str, Any]) -> RunSpec:
    """Runs that differ only in keys that their method, or a base taken as it is, does not use have equal specs."""
    parts["model"].check()
    parts["base"].check()
    return RunSpec(**(parts | {"adapter": parts["adapter"].used(), "base": parts["base"].used()}))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, list | tuple | dict | bool | None) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _normal(name: str, kind: Any, value: Any) -> Any:
    """One form of equal values, so that `alpha=1` and `alpha=1.0` have one key."""
    if name in ("target", "classes") and value is not None:
        return tuple(sorted(value, key=str)) if isinstance(value, list | tuple) else (value,)
    if name == "validation":
        return int(value) if value == int(value) else float(value)
    if name == "size" and value is not None:
        return tuple(value) if isinstance(value, list | tuple) else (value, value)
    if name.endswith("_pattern"):
        pairs = value.items() if isinstance(value, Mapping) else value or ()
        return tuple((layer, float(own) if name == "alpha_pattern" and own != "rank" else own) for layer, own in pairs)
    if isinstance(value, list | tuple):
        return tuple(value)
    return float(value) if "float" in str(kind) and is_number(value) else value
