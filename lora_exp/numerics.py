"""Which arithmetic the matrix products use, and what that promises about bits.

MKL chooses kernels by the shape of a product unless it is asked for conditional numerical reproducibility
(oneMKL Developer Guide, "Obtaining Numerically Reproducible Results"): with `<code path>,STRICT` and one
thread per product a row of a product has the same bits whatever the other rows are. It reads the request once, when it is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path


def request_reproducible_products() -> None:
    """Ask MKL for one code path; call before torch is imported. A request made by the user is left alone."""
    os.environ.setdefault("MKL_CBWR", f"{_widest_code_path()},STRICT")


def _widest_code_path() -> str:
    """AVX512 where the processor has it, else AVX2."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "AVX2"
    return "AVX512" if "avx512f" in flags and "avx512vl" in flags else "AVX2"
