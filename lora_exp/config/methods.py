"""The methods of fine-tuning by name: the values that `adapter.method` may have.

To add a method, add an entry here and a file `conf/adapter/NAME.yaml` (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Keys of the config group `adapter`. A key that a method does not use is set to its default, so that a grid of methods
# and ranks contains full fine-tuning once, not once per rank.
LOW_RANK = ("rank", "alpha", "rank_pattern", "alpha_pattern", "layers", "init", "init_std", "dropout")


@dataclass(frozen=True)
class Method:
    """One method of fine-tuning.

    `update` names the update of a layer, `keys` the config keys that the method uses. `scaling` computes the factor of
    the low-rank product from alpha and rank. `principal` starts A and B at the layer's largest singular triples.
    `faster` names the part whose learning rate is `learning_rate_ratio` times that of the other parts. With
    `target_only` the target's rows alone are trained.
    """

    update: str
    source: str
    keys: tuple[str, ...] = LOW_RANK
    scaling: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    principal: bool = False
    faster: str | None = None
    last_layer_only: bool = False
    target_only: bool = False


METHODS: dict[str, Method] = {
    "lora": Method("low_rank", "Hu et al. 2021, section 4.1, arXiv:2106.09685"),
    "rslora": Method(
        "low_rank", "Kalajdzievski 2023, theorem 3.2, arXiv:2312.03732", scaling=lambda alpha, rank: alpha / rank**0.5
    ),
    "dora": Method("dora", "Liu et al. 2024, equations 5 and 11, arXiv:2402.09353"),
    # Half of the factors are frozen and negative. With dropout they would not cancel the others.
    "pissa": Method(
        "low_rank",
        "Meng et al. 2024, equations 2 to 5, arXiv:2404.02948",
        keys=("rank", "alpha", "rank_pattern", "alpha_pattern", "layers"),
        principal=True,
    ),
    "lora_plus": Method(
        "low_rank", "Hayou et al. 2024, section 4, arXiv:2402.12354", (*LOW_RANK, "learning_rate_ratio"), faster="B"
    ),
    "full": Method("dense", "every weight and bias is trained", keys=("layers",)),
    "bitfit": Method("bias", "Ben Zaken et al. 2021, section 3, arXiv:2106.10199", keys=("layers",)),
    "head": Method("dense", "the last layer alone is trained", keys=(), last_layer_only=True),
    # One constant for each target's logit: a moved threshold, and so what any other method has to beat.
    "shift": Method(
        "bias",
        "logit adjustment, Menon et al. 2021, section 4.1, arXiv:2007.07314, with the constant learned",
        keys=(),
        last_layer_only=True,
        target_only=True,
    ),
    "none": Method("none", "nothing is trained", keys=()),
}
