"""Which arithmetic the matrix products use, and what that promises about bits.

MKL chooses kernels by the shape of a product unless it is asked for conditional numerical reproducibility
(oneMKL Developer Guide, "Obtaining Numerically Reproducible Results"): with `<code path>,STRICT` and one
thread per product a row of a product has the same bits whatever the other rows are. It reads the request
once, when it is loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.config.spec import digest

if TYPE_CHECKING:
    import torch


def request_reproducible_products() -> None:
    """Ask MKL for one code path; call before torch is imported. A request made by the user is left alone."""
    os.environ.setdefault("MKL_CBWR", f"{widest_code_path()},STRICT")


def requested() -> str:
    """The request that MKL was given, or would have been."""
    return os.environ.get("MKL_CBWR", "")


def widest_code_path() -> str:
    """AVX512 where the processor has it, else AVX2."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "AVX2"
    return "AVX512" if "avx512f" in flags and "avx512vl" in flags else "AVX2"


# Below 4 rows (10 where two threads share a narrow product) some processors take other kernels whatever is asked.
LEAST_ROWS = 16
# A low-rank product is padded with zeros to such a rank: it keeps every product out of matrix-vector kernels, whose
# bits differ, and makes a job's products the same in every pack it may be in.
RANK_MULTIPLE = 8
ANY_PACK = "same bits alone or in any pack"
SAME_PACK = "same bits in the same pack; across packs within rounding"


def promise(shapes: Sequence[tuple[int, int]], device: torch.device) -> str:
    """Find out whether rows of this build's matrix products depend on the other rows; what a run may claim.

    Tries the products of a model whose layers have weights of these shapes [O, I], and of low-rank updates of them, on
    one thread: few rows alone, and many.
    """
    import torch

    if device.type != "cpu":
        return SAME_PACK
    random = torch.Generator().manual_seed(0)
    with on_threads(1):
        for position, (outputs, inputs) in enumerate(shapes):
            weight = torch.randn(outputs, inputs, generator=random)
            a, b = (torch.randn(RANK_MULTIPLE, side, generator=random) for side in (inputs, outputs))
            # Forward, and back, but not to the images; low-rank products are made for a stack of jobs.
            shared = (weight.t(), weight) if position else (weight.t(),)
            frozen = (_depends_on_others(torch.mm, factor, random) for factor in shared)
            low_rank = (_depends_on_others(_stacked, factor, random) for factor in (a.t(), b, b.t(), a))
            if any(frozen) or any(low_rank):
                return SAME_PACK
    return ANY_PACK


def _depends_on_others(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], factor: torch.Tensor, random: torch.Generator
) -> bool:
    """Whether the bits of a row of a product depend on how many other rows there are."""
    import torch

    rows = torch.randn(160, len(factor), generator=random)
    whole = product(rows, factor)
    cuts = (torch.split(rows, few) for few in (LEAST_ROWS, 20, 70))
    return not all(torch.equal(torch.cat([product(part, factor) for part in parts]), whole) for parts in cuts)


def _stacked(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The product of the last of as many jobs as there are tens of rows."""
    import torch

    jobs = len(rows) // 10
    return torch.bmm(rows.expand(jobs, -1, -1), factor.expand(jobs, -1, -1))[-1]


@contextlib.contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """A block whose products run on so many threads, whatever is usual on the machine; those of a pack run on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def frozen_product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """hidden [..., I] times weight' plus bias: [..., O], one matrix product over the rows of all jobs."""
    import torch

    rows = hidden.reshape(-1, hidden.shape[-1])
    outputs = hidden.new_empty(max(len(rows), LEAST_ROWS), len(weight))
    torch.addmm(bias, _enough(rows), weight.t(), out=outputs)
    return outputs[: len(rows)].view(*hidden.shape[:-1], -1)


def rowwise_product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows [..., O] times matrix [O, I]: the gradient [..., I] of what went into a frozen layer, for one."""
    flat = rows.reshape(-1, rows.shape[-1])
    return (_enough(flat) @ matrix)[: len(flat)].view(*rows.shape[:-1], -1)


def _enough(rows: torch.Tensor) -> torch.Tensor:
    """Few rows would take other kernels, whose bits differ: repeat the first until there are LEAST_ROWS."""
    import torch

    missing = LEAST_ROWS - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, -1)]) if missing > 0 else rows


def generator(purpose: str, *parts: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `purpose` and `parts`: the same in any process, on any device.

    Never by a position in a pack or sweep: jobs that differ only in rank, alpha or learning rate draw the same images
    in the same order (common random numbers), so that differences between them are differences of the setting.
    """
    import torch

    seed = int(digest([purpose, *parts])[:15], 16)
    return torch.Generator().manual_seed(seed)
