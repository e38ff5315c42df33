"""python -m pytest tests/test_probe.py: whether a job's bits depend on its pack is found out before it is promised."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import in_a_fresh_process

from lora_exp import numerics
from lora_exp.training.probe import promise_of_products


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch is not built on MKL")
@pytest.mark.parametrize("widths", [(784, 10), (784, 96, 64, 10), (784, 1000, 2000, 10), (9, 8), (144, 32)])
def test_with_mkl_a_jobs_bits_are_promised_in_any_pack(widths: tuple[int, ...]) -> None:
    threads = torch.get_num_threads()
    assert promise_of_products([(o, i) for i, o in pairwise(widths)], torch.device("cpu")) == numerics.ANY_PACK
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch is not built on MKL")
def test_with_the_portable_request_a_jobs_bits_are_promised_in_any_pack_too() -> None:
    """With it MKL computes the last rows of 70 with another kernel."""
    code = "import torch; from lora_exp.training.probe import promise_of_products as promise; "
    code += "print(promise(%s, torch.device('cpu')))"
    shapes = [(1000, 784), (10, 1000), (8, 9), (32, 144)]
    assert in_a_fresh_process(code % shapes, **numerics.PORTABLE) == numerics.ANY_PACK
    product = "import lora_exp, torch; torch.set_num_threads(1); rows, w = torch.randn(72, 784), torch.randn(784, 64); "
    product += "print(torch.equal((rows @ w)[:70], rows[:70] @ w))"
    assert in_a_fresh_process(product, **numerics.PORTABLE) == "False"


def test_on_other_devices_only_the_same_pack_gives_the_same_bits() -> None:
    assert promise_of_products([(10, 784)], torch.device("meta")) == numerics.SAME_PACK


def test_products_whose_rows_depend_on_other_rows_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for another BLAS: its sums end in another bit where there are many rows."""
    products = {name: getattr(torch, name) for name in ("addmm", "matmul", "mm")}
    of_tensor = torch.Tensor.__matmul__

    def off(result: torch.Tensor) -> torch.Tensor:
        return result.mul_(1 + 1e-6) if len(result) > 100 else result

    for name, product in products.items():
        monkeypatch.setattr(torch, name, lambda *given, p=product, **options: off(p(*given, **options)))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: off(of_tensor(one, other)))
    assert promise_of_products([(96, 784), (64, 96), (10, 64)], torch.device("cpu")) == numerics.SAME_PACK
