"""Matrix products, Adam's step and random generators whose bits depend on no other job and no number of threads.

By default MKL chooses a kernel by the shape of the product. With conditional numerical reproducibility, requested as
`MKL_CBWR=<code path>,STRICT` (oneMKL Developer Guide, "Obtaining Numerically Reproducible Results"), and one thread per
product, the bits of a row don't depend on the other rows. With `MKL_CBWR=COMPATIBLE` they don't either if the number of
rows is a multiple of four. MKL reads the request once, when it is loaded.

Shapes: I inputs and O outputs of a layer.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.config.spec import digest
from lora_exp.errors import LoraExpError

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
EVERY_SETTING, NO_REQUEST = -1, 1  # an argument and an answer of MKL's function for the request in force
# The requests of `device.portable=true`, to MKL and to torch's own kernels. On processors of other makers than Intel,
# MKL takes any request but COMPATIBLE as AUTO: small products, `exp`, `sqrt` and decompositions have other bits there.
PORTABLE = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2"}


def request_reproducible_products() -> None:
    """Request one code path from MKL, unless the user has requested one; call before torch is imported.

    MKL's own memory manager is switched off: its list of buffers by thread has been seen to become a ring after forks,
    and a pack in a forked process then searched it for ever (oneMKL 2024.0, in `sgesdd`).
    """
    os.environ.setdefault("MKL_CBWR", f"{widest_code_path()},STRICT")
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")


def request_portable_kernels() -> None:
    """Request the kernels that every x86-64 processor with AVX2 has: `device.portable=true`.

    Raises LoraExpError on other processors, and when torch, which reads the request once, is loaded already.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise LoraExpError(f"device.portable=true: is for x86-64 processors only, and this is {platform.machine()}")
    if all(os.environ.get(name) == value for name, value in PORTABLE.items()):
        return
    if "torch" in sys.modules:
        wanted = " ".join(f"{name}={value}" for name, value in PORTABLE.items())
        raise LoraExpError(f"device.portable=true: torch is loaded already, with other kernels; start with {wanted}")
    os.environ |= PORTABLE


def check_reproducible_products() -> None:
    """Raise LoraExpError when MKL has computed before it could read the request: each product then chooses a kernel.

    That happens in a Python session that computes with torch and imports this package afterwards.
    """
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with contextlib.suppress(OSError, AttributeError):  # another build, without MKL or with another name
        if ctypes.CDLL(str(library)).mkl_serv_cbwr_get(EVERY_SETTING) == NO_REQUEST:
            raise LoraExpError(
                "torch has computed before lora_exp was imported, so that bits can't be kept equal; import lora_exp "
                f"first, or start Python with MKL_CBWR={requested()}"
            )


def requested() -> str:
    """Return the request in force: the value of MKL_CBWR."""
    return os.environ.get("MKL_CBWR", "")


def kernels() -> str:
    """Return what decides about the kernels of MKL and torch on this machine's CPU, and so about bits.

    Such as `AVX2,STRICT avx2 AuthenticAMD`: MKL chooses by maker too. `COMPATIBLE avx2` is the same on every processor.
    """
    has_wide = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= _flags()
    chosen = [requested(), os.environ.get("ATEN_CPU_CAPABILITY") or ("avx512" if has_wide else "avx2")]
    return " ".join(chosen if requested() == PORTABLE["MKL_CBWR"] else [*chosen, maker()]).strip()


def widest_code_path() -> str:
    """Return AVX512 if the processor has it, else AVX2."""
    return "AVX512" if {"avx512f", "avx512vl"} <= _flags() else "AVX2"


def maker() -> str:
    """Return the maker of the processor, such as `GenuineIntel`; "" where Linux does not tell."""
    return _about_processor("vendor_id")


def _flags() -> set[str]:
    """The features of the processor; none where Linux does not list them."""
    return set(_about_processor("flags").split())


def _about_processor(field: str) -> str:
    """What Linux says of the first processor; "" where it doesn't. To read on takes long on a machine with many."""
    with contextlib.suppress(OSError), CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    return ""


# Below 4 rows (10 if two threads share a narrow product) some processors use other kernels in spite of the request.
MIN_ROWS = 16
# Of rows that are no multiple of this, MKL computes the last ones with another kernel if the request is COMPATIBLE.
ROW_MULTIPLE = 4
# torch computes a stacked product of fewer multiplications with a loop of its own, whose sums have other bits.
LEAST_MULTIPLICATIONS = 400
# Ranks are padded with zeros to a multiple of this. No product then uses a matrix-vector kernel, whose bits differ, and
# the products of a job have the same shape in every pack.
RANK_MULTIPLE = 8
ANY_PACK = "same bits alone or in any pack"
SAME_PACK = "same bits in the same pack; across packs within rounding"
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual constants (Kingma & Ba 2014, Algorithm 1)


def least_rows(shapes: Sequence[tuple[int, int]]) -> int:
    """How many rows of a job a chunk of an evaluation needs, in a model whose layer weights have these shapes [O, I].

    With fewer, narrow layers would be computed otherwise than in larger chunks.
    """
    narrowest = min(min(shape) for shape in shapes)
    return max(MIN_ROWS, -(-LEAST_MULTIPLICATIONS // (RANK_MULTIPLE * narrowest)))


@contextlib.contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Run the products of a `with` block on so many threads. Those of a pack run on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def portable_convolutions() -> Iterator[None]:
    """A block in which convolutions of torch take no kernels of oneDNN if the request is portable: its code differs
    between processors.
    """
    import torch

    before = bool(torch._C._get_mkldnn_enabled())
    torch._C._set_mkldnn_enabled(before and requested() != PORTABLE["MKL_CBWR"])
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def frozen_product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute `hidden @ weight.T + bias` [..., O] of hidden [..., I], as one product over the rows of all jobs."""
    import torch

    rows = hidden.reshape(-1, hidden.shape[-1])
    whole = _whole_rows(rows)
    # Never a view: autograd forbids others to change a view from inside a function in place.
    outputs = hidden.new_empty(*hidden.shape[:-1], len(weight))
    if len(whole) == len(rows):
        torch.addmm(bias, whole, weight.t(), out=outputs.view(len(rows), -1))
    else:
        outputs.view(len(rows), -1).copy_(torch.addmm(bias, whole, weight.t())[: len(rows)])
    return outputs


def rowwise_product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Compute rows [..., O] times matrix [O, I]: for example the gradient [..., I] of a frozen layer's input."""
    flat = rows.reshape(-1, rows.shape[-1])
    return (_whole_rows(flat) @ matrix)[: len(flat)].view(*rows.shape[:-1], -1)


def stacked_product(rows: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Compute rows [n, B, I] times factors [n, I, O], job by job; a lone row of a lone job is computed twice."""
    import torch

    if _is_lone(rows):
        return torch.bmm(rows.expand(2, -1, -1), factors.expand(2, -1, -1))[:1]
    return torch.bmm(rows, factors)


def add_stacked_product(sums: torch.Tensor, rows: torch.Tensor, factors: torch.Tensor) -> None:
    """Add `stacked_product` to sums [n, B, O] in place."""
    import torch

    if _is_lone(rows):
        twice = (each.expand(2, -1, -1) for each in (sums, rows, factors))
        sums.copy_(torch.baddbmm(*twice)[:1])
    else:
        torch.baddbmm(sums, rows, factors, out=sums)


def _is_lone(rows: torch.Tensor) -> bool:
    """Whether this is one row of one job: for it MKL's code for AVX-512 has another kernel, whose bits differ."""
    return rows.shape[0] == 1 and rows.shape[1] == 1


def _whole_rows(rows: torch.Tensor) -> torch.Tensor:
    """Repeat the first row until there are MIN_ROWS and, with the portable request, a multiple of ROW_MULTIPLE.

    The copy takes up to 7 % of the time of a pack's products, so other requests are spared it.
    """
    import torch

    multiple = ROW_MULTIPLE if requested() == PORTABLE["MKL_CBWR"] else 1
    missing = max(MIN_ROWS - len(rows), -len(rows) % multiple)
    return torch.cat([rows, rows[:1].expand(missing, -1)]) if missing else rows


def adam_step(
    values: list[torch.Tensor],
    grads: list[torch.Tensor],
    first: list[torch.Tensor],
    second: list[torch.Tensor],
    rate: float,
    number: int,
) -> None:
    """Make step `number` (from 1) of Adam in place: `first` and `second` are the moments of each of `values`.

    This is the kernel behind `torch.optim.Adam(fused=True)`. The class takes a second to import, and allows neither
    views nor one step counter for many tensors.
    """
    import torch

    steps = [torch.tensor(float(number), device=values[0].device)] * len(values)
    torch._fused_adam_(
        *(values, grads, first, second, [], steps),
        amsgrad=False,
        lr=rate,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )


def generator(purpose: str, *parts: object) -> torch.Generator:
    """Return a CPU generator seeded with a hash of `purpose` and `parts`: the same in any process, for any device.

    Callers never pass a position in a pack or sweep. Jobs that differ only in rank, alpha or learning rate draw the
    same images in the same order (common random numbers), so differences between them come from the setting alone.
    """
    import torch

    seed = int(digest([purpose, *parts])[:15], 16)
    return torch.Generator().manual_seed(seed)
