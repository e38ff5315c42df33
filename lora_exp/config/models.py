"""What a classifier is made of: the kinds of models, and the keys that each kind uses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lora_exp.config.fields import allow, flag, integer, is_int, is_name, one_of, optional
from lora_exp.errors import LoraExpError

# Kind of model -> the keys that it uses. A stack is convolutions and linear layers with ReLU, computed by hand.
MODELS = {
    "stack": ("hidden", "rectify_logits", "channels", "kernel"),
    "vit": ("patch", "width", "blocks", "heads"),
    "torchvision": ("name",),
    "timm": ("name",),
    "module": ("name",),
}
STACK, VIT, MODULE = "stack", "vit", "module"
LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class ModelSpec:
    """The architecture of a classifier; the data set says how large its images are and how many classes there are.

    stack: images -> convolutions (stride 2, so each halves height and width) -> hidden layers -> logits, with ReLU.
    vit: a Vision Transformer over square patches. torchvision, timm: a model of that name in the library's registry.
    module: a module that `lora_exp.sweep` was given; its name holds a hash of its code.
    """

    hidden: tuple[int, ...] = allow(
        "a list of layer widths of at least 2, such as [1000,2000]",
        lambda v: isinstance(v, list | tuple) and all(is_int(w) and w >= 2 for w in v),
        default=(),
    )
    rectify_logits: bool = flag(default=False)
    channels: tuple[int, ...] = allow(
        "a list of at most 4 channel counts of at least 2, such as [16,32]; [] for no convolutions",
        lambda v: isinstance(v, list | tuple) and len(v) <= 4 and all(is_int(c) and c >= 2 for c in v),
        default=(),
    )
    kernel: int = allow("an odd integer from 1 to 7", lambda v: is_int(v) and v in (1, 3, 5, 7), default=3)
    kind: str = one_of(MODELS, default=STACK)
    name: str | None = optional("the name of a model, such as resnet18", is_name)
    patch: int = integer(1, default=7)
    width: int = integer(2, default=64)
    blocks: int = integer(1, default=2)
    heads: int = integer(1, default=4)

    def check(self) -> None:
        """Raise LoraExpError for a key that this kind does not use, or a value that does not fit the others."""
        for known in dataclasses.fields(self):
            value = getattr(self, known.name)
            if known.name not in ("kind", *MODELS[self.kind]) and value != known.default:
                shown = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
                raise LoraExpError(f"model.{known.name}={shown}: must be left out with model.kind={self.kind}")
        if "name" in MODELS[self.kind] and self.name is None:
            raise LoraExpError(f"model.name: missing; needs the name of a model, such as model={self.kind} {EXAMPLE}")
        if self.kind == VIT and self.width % self.heads:
            raise LoraExpError(f"model.heads={self.heads}: must divide model.width={self.width}")

    @property
    def label(self) -> str:
        """`1000-2000`, `16c3-32c3-128` with convolutions, `vit-2x64-patch7`, or the name of a model."""
        if self.kind == VIT:
            return f"vit-{self.blocks}x{self.width}-patch{self.patch}"
        return self.name or "-".join([*(f"{count}c{self.kernel}" for count in self.channels), *map(str, self.hidden)])


EXAMPLE = "model.name=resnet18"
