"""The search space: Hydra's sweep syntax (choice, range, interval, int, tag) as dimensions.

Each dimension has `distribution`, for Optuna; `text`, to write a value in an override; `at` and `unit`, from the unit
interval to a value and back; and `probes`: if the config allows these values, it allows all of the dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_exp.config.spec import SPECS
from lora_exp.errors import LoraExpError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

# Not `data`: errors on different data can't be compared.
SEARCHED = tuple(group for group in SPECS if group != "data")
SYNTAX = "choice(1,2,4), range(1,9), interval(0.1,0.9), int(interval(1,64)) or tag(log,interval(1e-4,1e-2))"


@dataclass(frozen=True)
class Choice:
    """Values without an order, as written in an override."""

    key: str
    values: tuple[Any, ...]
    is_ordered = False

    def __str__(self) -> str:
        return f"choice({','.join(self.values)})"

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def at(self, unit: float) -> Any:
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def unit(self, value: Any) -> float:
        return (self.values.index(self._own(value)) + 0.5) / len(self.values)

    def text(self, value: Any) -> str:
        return str(self._own(value))

    def probes(self) -> tuple[Any, ...]:
        return self.values

    def _own(self, value: Any) -> Any:
        """The value of Hydra's for one of Optuna's."""
        return value


class Range(Choice):
    """Numbers at equal distances, ascending."""

    is_ordered = True

    def __str__(self) -> str:
        return f"range from {self.values[0]} to {self.values[-1]}, {len(self.values)} values"

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        low, high = self.values[0], self.values[-1]
        step = self.values[1] - low if len(self.values) > 1 else 1
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, step=int(step))
        # Optuna checks that the step divides the range, and 0.3 - 0.1 is not exactly 0.2.
        low, high, step = (float(f"{number:.12g}") for number in (low, high, step))
        return FloatDistribution(low, high, step=step)

    def _own(self, value: Any) -> Any:  # Optuna's low + k * step may differ in the last digit
        return min(self.values, key=lambda own: abs(own - value))


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, integers if both ends are; uniform in the logarithm with `log`."""

    key: str
    low: float
    high: float
    log: bool = False
    is_ordered = True

    def __str__(self) -> str:
        text = f"interval({self.low},{self.high})"
        text = f"int({text})" if self.whole else text
        return f"tag(log,{text})" if self.log else text

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def at(self, unit: float) -> float:
        low, high = self._ends()
        value = low + unit * (high - low)
        value = math.exp(value) if self.log else value
        return min(max(round(value) if self.whole else value, self.low), self.high)

    def unit(self, value: Any) -> float:
        low, high = self._ends()
        return (self._scaled(value) - low) / (high - low)

    def text(self, value: Any) -> str:
        return str(value)

    def probes(self) -> tuple[float, ...]:
        return (self.low, self.high)

    def _ends(self) -> tuple[float, float]:
        margin = 0.5 if self.whole else 0.0  # so that the outermost integers are as likely as the others
        return self._scaled(self.low - margin), self._scaled(self.high + margin)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value


Dimension = Choice | Interval


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, and the overrides that all of its jobs share."""

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> int | None:
        """The number of combinations; None with an interval, which can't be listed."""
        if any(isinstance(dimension, Interval) for dimension in self.dimensions):
            return None
        return math.prod(len(dimension.probes()) for dimension in self.dimensions)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of the job with these values (key -> value)."""
        return [*self.fixed, *(f"{one.key}={one.text(values[one.key])}" for one in self.dimensions)]

    def probes(self) -> list[list[str]]:
        """Jobs (overrides) that hold each probe of each dimension: if these are valid, all jobs of the space are."""
        first = {dimension.key: dimension.probes()[0] for dimension in self.dimensions}
        jobs = [self.overrides(first)]
        for dimension in self.dimensions:
            jobs += [self.overrides(first | {dimension.key: value}) for value in dimension.probes()[1:]]
        return jobs

    def to_dict(self) -> dict[str, Any]:
        """The space as text by key, to store and to compare."""
        return {"fixed": list(self.fixed), "space": {one.key: str(one) for one in self.dimensions}}


def parse_space(overrides: Sequence[Override]) -> Space:
    """The space that a command's overrides describe; the last override of a key counts.

    Raises LoraExpError when no override sweeps a key, and for a key or a syntax that can't be searched.
    """
    last = {override.get_key_element(): override for override in overrides}
    fixed = [f"{key}={one.get_value_element_as_str()}" for key, one in last.items() if not one.is_sweep_override()]
    dimensions = [_dimension(key, one) for key, one in last.items() if one.is_sweep_override()]
    if not dimensions:
        raise LoraExpError("hydra/sweeper=optuna: needs a space to search, such as adapter.rank=choice(1,2,4)")
    return Space(tuple(fixed), tuple(dimensions))


def _dimension(key: str, override: Override) -> Dimension:
    given = override.input_line or key
    group = override.key_or_group.partition("/")[0].partition(".")[0]
    if group not in SEARCHED or override.is_delete():
        raise LoraExpError(f"{given}: can't be searched; only keys of {', '.join(SEARCHED)} can")
    sweep: Any = override.value()
    tags = set(getattr(sweep, "tags", ()))
    if tags - {"log"} or (tags and not override.is_interval_sweep()):
        raise LoraExpError(f"{given}: must be written like {SYNTAX}")
    if override.is_interval_sweep():
        low, high = sweep.start, sweep.end
        # Hydra's int() may convert only one end of an interval.
        if isinstance(low, int) != isinstance(high, int):
            low, high = float(low), float(high)
        if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not tags)):
            above = ", above 0 with tag(log,...)" if tags else ""
            raise LoraExpError(f"{given}: must go from a number to a larger one{above}")
        return Interval(key, low, high, log=bool(tags))
    if override.is_range_sweep():
        numbers = sorted(float(n) if isinstance(n, float) else int(n) for n in sweep.range())
        dimension: Choice = Range(key, tuple(numbers))
    else:
        dimension = Choice(key, tuple(dict.fromkeys(override.sweep_string_iterator())))
    if not dimension.values:
        raise LoraExpError(f"{given}: has no values")
    return dimension
