"""pytest tests/test_numerics.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import in_a_fresh_process

from lora_exp import numerics


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
