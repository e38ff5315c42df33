"""Which arithmetic the matrix products use, and what that promises about bits.

MKL chooses kernels by the shape of a product unless it is asked for conditional numerical reproducibility
(oneMKL Developer Guide, "Obtaining Numerically Reproducible Results"): with `<code path>,STRICT` and one
thread per product a row of a product has the same bits whatever the other rows are. It reads the request
once, when it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def request_reproducible_products() -> None:
    """Ask MKL for one code path; call before torch is imported. A request made by the user is left alone."""
    os.environ.setdefault("MKL_CBWR", f"{_widest_code_path()},STRICT")


def requested() -> str:
    """The request that MKL was given, or would have been."""
    return os.environ.get("MKL_CBWR", "")


def _widest_code_path() -> str:
    """AVX512 where the processor has it, else AVX2."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "AVX2"
    return "AVX512" if "avx512f" in flags and "avx512vl" in flags else "AVX2"


# Below 4 rows (10 where two threads share a narrow product) some processors take other kernels whatever is asked.
LEAST_ROWS = 16
ANY_PACK = "same bits alone or in any pack"
SAME_PACK = "same bits in the same pack; across packs within rounding"


def promise(shapes: Sequence[tuple[int, int]], device: torch.device) -> str:
    """Find out whether rows of this build's matrix products depend on the other rows; what a run may claim.

    Tries the products of a model whose layers have weights of these shapes [O, I] on one thread, with few rows and
    with many.
    """
    import torch

    if device.type != "cpu":
        return SAME_PACK
    random = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for outputs, inputs in shapes:
            weight = torch.randn(outputs, inputs, generator=random)
            for factor, columns in ((weight.t(), inputs), (weight, outputs)):  # forward, and back
                rows = torch.randn(160, columns, generator=random)
                whole = rows @ factor
                for few in (LEAST_ROWS, 20, 70):
                    parts = [part @ factor for part in torch.split(rows, few)]
                    if not torch.equal(torch.cat(parts), whole):
                        return SAME_PACK
    finally:
        torch.set_num_threads(before)
    return ANY_PACK
