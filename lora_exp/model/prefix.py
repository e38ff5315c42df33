"""The frozen prefix of a module: which outputs must be kept so that nothing before its adapters runs again.

No graph of the module is known, so it is found by trying. In a trial pass all parts that end before the first adapted
layer begins are kept. Then each of them in turn is replaced by NaN: if the logits are the same bits, nothing but kept
parts depends on it, and it is dropped.

Shapes: N images of the trial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from lora_exp.model.architecture import Cut, Layer
from lora_exp.model.swapped import Pass, frozen_only

Run = Callable[[Pass, torch.Tensor], torch.Tensor]  # makes a pass of a module with images, and returns logits


def find_cut(run: Run, images: torch.Tensor, adapted: Sequence[bool]) -> Cut | None:
    """Where the frozen prefix of a module ends if these layers are adapted; None where there is none."""
    trace: list[tuple[str, Any]] = []
    frozen_parts: list[tuple[str, Any]] = []
    layers: list[str] = []

    def apply(
        at: int | None, layer: Layer, rows: torch.Tensor, rectify: bool = False, frozen: torch.Tensor | None = None
    ) -> torch.Tensor:
        layers.append(layer.name)
        if at is not None and adapted[at] and not frozen_parts:
            frozen_parts.extend(trace or [("", None)])
        return frozen_only(at, layer, rows)

    with torch.no_grad():
        expected = run(Pass(1, apply, trace=trace), images)
        # A part that is used again later has another output there.
        again = Counter(name for name, _ in trace)
        once = [(name, output) for name, output in frozen_parts or trace if again[name] == 1]
        found = _outermost(once, len(images))
        kept = dict(found)
        if not kept or not _is_same(run, images, kept, expected):
            return None
        dropped: dict[str, tuple[int, ...]] = {}
        for name in list(kept):
            shape = tuple(kept[name].shape[1:])
            rest = {other: output for other, output in kept.items() if other != name}
            gone = not_numbers([*dropped.items(), (name, shape)], len(images), images.device)
            if rest and _is_same(run, images, {**rest, **gone}, expected):
                dropped[name], kept = shape, rest
        gone = not_numbers(dropped.items(), len(images), images.device)
        for name in [own for own in kept if not any(layer.startswith(own) for layer in layers)]:
            # A part without a product, such as a normalisation, is rather computed again than kept beside its input.
            rest = {other: output for other, output in kept.items() if other != name}
            if rest and _is_same(run, images, {**rest, **gone}, expected):
                kept = rest
    return Cut(tuple((name, tuple(output.shape[1:])) for name, output in kept.items()), tuple(dropped.items()))


def _outermost(parts: Sequence[tuple[str, Any]], count: int) -> dict[str, torch.Tensor]:
    """The parts whose output is one tensor of so many images, without parts inside others."""
    whole = {
        name: output
        for name, output in parts
        if isinstance(output, torch.Tensor)
        and output.dtype == torch.float32
        and output.dim() > 1
        and len(output) == count
    }
    return {name: output for name, output in whole.items() if not any(name.startswith(f"{other}.") for other in whole)}


def _is_same(run: Run, images: torch.Tensor, known: Mapping[str, torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether the logits are the expected ones if these outputs are known."""
    try:
        own = {name: output.clone() for name, output in known.items()}
        return torch.equal(run(Pass(1, frozen_only, own), images), expected)
    except Exception:  # a part can't be used with what stands for another
        return False


def not_numbers(
    parts: Iterable[tuple[str, tuple[int, ...]]], count: int, device: torch.device
) -> Mapping[str, torch.Tensor]:
    """Outputs, for so many images, that nothing may depend on: NaN shows if something does."""
    return {name: torch.full((), torch.nan, device=device).expand(count, *shape) for name, shape in parts}
