"""The keys of `contest`: what a contest of adapters holds equal, how each is tuned, and how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_exp.config.fields import allow, flag, integer, is_int, is_positive, is_text, one_of, optional, positive
from lora_exp.config.methods import METHODS

EQUAL = ("rank", "parameters", "none")
# Errors that a moved threshold can't buy alone: with the error on the target only, forgetting would be free.
JUDGED = ("balanced_error", "both_errors")
RATE = "finetune.learning_rate"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# How many times larger than RATES those of a method are: a shift trains one logit, which has to move by some units.
LARGER = {"shift": 100.0}
MOST_BASES = 1000
LEAST_RATES = 3  # so that one is not at an end


def _is_rates(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and all(map(is_positive, value))
    return is_list and len(value) == len(set(map(float, value))) >= LEAST_RATES


def _is_values(value: Any) -> bool:
    """Whether `value` is a list of single values, without lists or mappings in it."""
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(own, str | int | float | bool) for own in value)


def _bases(least: int, default: int) -> Any:
    """A field for a number of bases."""
    text = f"an integer from {least} to {MOST_BASES}"
    return allow(text, lambda v: is_int(v) and least <= v <= MOST_BASES, default=default)


def _is_space(value: Any) -> bool:
    """Whether `value` maps methods to their keys, and these to lists of values; or is None."""
    return value in (None, ()) or (
        isinstance(value, Mapping)
        and all(
            method in METHODS
            and isinstance(keys, Mapping)
            and all(key == RATE or str(key).startswith("adapter.") for key in keys)
            and all(map(_is_values, keys.values()))
            and _is_rates(keys.get(RATE, RATES))
            for method, keys in value.items()
        )
    )


@dataclass(frozen=True)
class ContestSettings:
    """What a contest of adapters holds equal, how each arm is tuned, and how it is judged (docs/contest.md).

    `space` holds, by method, values by key that its arms try instead of `rates`: ((method, ((key, values), ...)), ...).
    """

    equal: str = one_of(EQUAL, default="rank")
    rates: tuple[float, ...] | None = optional(f"a list of at least {LEAST_RATES} different rates above 0", _is_rates)
    space: tuple[Any, ...] = allow(
        f"null, or values by method and key, such as {{lora_plus:{{{RATE}:[1e-4,1e-3,1e-2],adapter.dropout:[0,0.1]}}}}",
        _is_space,
        default=(),
    )
    widenings: int = integer(0, default=3)
    selection: int = _bases(2, 5)
    judging: int = _bases(3, 10)
    seeds: int = integer(1, default=1)
    halving: bool = flag(default=False)
    measure: str = one_of(JUDGED, default="balanced_error")
    margin: float = positive(default=0.3)
    reference: str | None = optional("the name of an arm, such as lora", is_text)

    def __post_init__(self) -> None:
        """Give equal values one form, which can be hashed."""
        if self.rates is not None:
            object.__setattr__(self, "rates", tuple(sorted(map(float, self.rates))))
        if not isinstance(self.space, tuple):
            given: Any = self.space or {}
            own = {
                method: tuple((key, tuple(values)) for key, values in keys.items()) for method, keys in given.items()
            }
            object.__setattr__(self, "space", tuple(own.items()))

    def points_of(self, method: str) -> dict[str, tuple[Any, ...]]:
        """The values by key that an arm of this method tries first; those of the learning rate ascend."""
        rates = self.rates or tuple(float(f"{rate * LARGER.get(method, 1.0):.2g}") for rate in RATES)
        own = {RATE: rates} | dict(dict(self.space).get(method, ()))
        return own | {RATE: tuple(sorted(map(float, own[RATE])))}
