"""The methods of fine-tuning that a run may choose, by name: what `adapter.method` may hold.

A method says how it changes a layer (an update of `updates.py`), how its factors start, how they are scaled and how
fast they learn. To add one, add an entry here and a file `conf/adapter/NAME.yaml` (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Keys of the config group `adapter`. A method ignores those that it does not use: they are set to their defaults, so
# that a grid of methods and ranks holds full fine-tuning once, not once a rank.
LOW_RANK = ("rank", "alpha", "rank_pattern", "alpha_pattern", "layers", "init", "init_std", "dropout")


@dataclass(frozen=True)
class Method:
    """One method of fine-tuning.

    `update` names the change of a layer; `keys` the config keys it uses; `scaling` is the factor of the low-rank
    product by alpha and rank; `principal` starts A and B as the layer's largest singular triples; `faster` names
    the part of the adapter whose learning rate is `learning_rate_ratio` times that of the others.
    """

    update: str
    source: str
    keys: tuple[str, ...] = LOW_RANK
    scaling: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    principal: bool = False
    faster: str | None = None
    last_layer_only: bool = False


METHODS: dict[str, Method] = {
    "lora": Method("low_rank", "Hu et al. 2021, section 4.1, arXiv:2106.09685"),
    "rslora": Method(
        "low_rank",
        "Kalajdzievski 2023, theorem 3.2, arXiv:2312.03732",
        scaling=lambda alpha, rank: alpha / rank**0.5,
    ),
    "dora": Method("dora", "Liu et al. 2024, equations 5 and 11, arXiv:2402.09353"),
    # The negative half of its factors is frozen, so dropout would not leave the base what it is.
    "pissa": Method(
        "low_rank",
        "Meng et al. 2024, equations 2 to 5, arXiv:2404.02948",
        keys=("rank", "alpha", "rank_pattern", "alpha_pattern", "layers"),
        principal=True,
    ),
    "lora_plus": Method(
        "low_rank",
        "Hayou et al. 2024, section 4, arXiv:2402.12354",
        keys=(*LOW_RANK, "learning_rate_ratio"),
        faster="B",
    ),
    "full": Method("dense", "every weight and bias is trained", keys=("layers",)),
    "bitfit": Method("bias", "Ben Zaken et al. 2021, section 3, arXiv:2106.10199", keys=("layers",)),
    "head": Method("dense", "the last layer alone is trained", keys=(), last_layer_only=True),
    "none": Method("none", "nothing is trained", keys=()),
}
