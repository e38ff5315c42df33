"""pytest tests/test_numerics.py"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import lora_exp
from lora_exp import numerics

PACKAGE = Path(lora_exp.__file__).parents[1]


def in_a_fresh_process(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["config.spec", "training.pack", "numerics"])
def test_importing_any_module_requests_one_code_path(module: str) -> None:
    request = in_a_fresh_process(f"import lora_exp.{module}, os; print(os.environ['MKL_CBWR'])")
    assert request in ("AVX512,STRICT", "AVX2,STRICT")


def test_the_memory_manager_in_which_forked_packs_hung_is_off_unless_the_user_wants_it() -> None:
    code = "import lora_exp, os; print(os.environ['MKL_DISABLE_FAST_MM'])"
    clean = {"MKL_DISABLE_FAST_MM": ""}
    assert in_a_fresh_process(f"import os; del os.environ['MKL_DISABLE_FAST_MM']; {code}", **clean) == "1"
    assert in_a_fresh_process(code, MKL_DISABLE_FAST_MM="0") == "0"


def test_the_request_is_made_before_torch_is_loaded() -> None:
    assert in_a_fresh_process("import lora_exp, sys; print('torch' in sys.modules)") == "False"


def test_a_request_of_the_user_is_kept() -> None:
    code = "from lora_exp import numerics; print(numerics.requested())"
    assert in_a_fresh_process(code, MKL_CBWR="COMPATIBLE") == "COMPATIBLE"


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ("flags : fpu avx2 avx512f avx512bw avx512vl", "AVX512"),
        ("flags : fpu avx2", "AVX2"),
        ("flags : fpu avx2 avx512f", "AVX2"),
    ],
)
def test_the_widest_code_path_of_the_processor_is_requested(
    flags: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(numerics, "CPUINFO", tmp_path / "cpuinfo")
    numerics.request_reproducible_products()
    assert numerics.requested() == f"{path},STRICT"


def test_a_system_without_cpuinfo_gets_the_narrower_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr(numerics, "CPUINFO", tmp_path / "absent")
    numerics.request_reproducible_products()
    assert numerics.requested() == "AVX2,STRICT"


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch is not built on MKL")
@pytest.mark.parametrize("widths", [(784, 10), (784, 96, 64, 10), (784, 1000, 2000, 10), (9, 8), (144, 32)])
def test_with_mkl_a_jobs_bits_are_promised_in_any_pack(widths: tuple[int, ...]) -> None:
    threads = torch.get_num_threads()
    assert numerics.promise([(o, i) for i, o in pairwise(widths)], torch.device("cpu")) == numerics.ANY_PACK
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch is not built on MKL")
def test_with_the_portable_request_a_jobs_bits_are_promised_in_any_pack_too() -> None:
    """With it MKL computes the last rows of 70 with another kernel."""
    code = "import lora_exp, torch; from lora_exp import numerics; print(numerics.promise(%s, torch.device('cpu')))"
    shapes = [(1000, 784), (10, 1000), (8, 9), (32, 144)]
    assert in_a_fresh_process(code % shapes, **numerics.PORTABLE) == numerics.ANY_PACK
    product = "import lora_exp, torch; torch.set_num_threads(1); rows, w = torch.randn(72, 784), torch.randn(784, 64); "
    product += "print(torch.equal((rows @ w)[:70], rows[:70] @ w))"
    assert in_a_fresh_process(product, **numerics.PORTABLE) == "False"


def test_on_other_devices_only_the_same_pack_gives_the_same_bits() -> None:
    assert numerics.promise([(10, 784)], torch.device("meta")) == numerics.SAME_PACK


def test_products_whose_rows_depend_on_other_rows_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for another BLAS: its sums end in another bit where there are many rows."""
    products = {name: getattr(torch, name) for name in ("addmm", "matmul", "mm")}
    of_tensor = torch.Tensor.__matmul__

    def off(result: torch.Tensor) -> torch.Tensor:
        return result.mul_(1 + 1e-6) if len(result) > 100 else result

    for name, product in products.items():
        monkeypatch.setattr(torch, name, lambda *given, p=product, **options: off(p(*given, **options)))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: off(of_tensor(one, other)))
    assert numerics.promise([(96, 784), (64, 96), (10, 64)], torch.device("cpu")) == numerics.SAME_PACK


def test_steps_of_adam_have_the_bits_of_torchs_fused_optimizer() -> None:
    random = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=random) for shape in ((33, 17), (33,), (1, 17))]
    theirs = [value.clone().requires_grad_() for value in ours]
    first, second = ([torch.zeros_like(value) for value in ours] for _ in range(2))
    optimizer = torch.optim.Adam(theirs, lr=3e-3, fused=True)
    for number in range(1, 30):
        grads = [torch.randn(value.shape, generator=random) for value in ours]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        numerics.adam_step(ours, grads, first, second, 3e-3, number)
        assert all(map(torch.equal, ours, theirs))
