"""python -m pytest tests/test_portable.py

`device.portable=true`: the same kernels, and so the same bits, on every x86-64 processor with AVX2.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from places import Place

from lora_exp import numerics
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, ModelSpec, RunSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.data import ImageData
from lora_exp.storage.keys import result_key, torch_version
from lora_exp.storage.provenance import processor
from lora_exp.storage.result import read

TINY = ("model=tiny", "data.limit=2000", "base.batch_size=50", "adapter.rank=3", "finetune.steps=30")
SPEC = RunSpec(ModelSpec((64,)), DataSpec("mnist"), BaseSpec(), AdapterSpec(), FinetuneSpec((2,)))
# The beginnings of the hashes of base and adapter, by version of torch and maker of the processor.
GOLDEN = {
    ("2.14.1", "AuthenticAMD"): ("b143d875a010", "bf177b1fa1ee"),  # an EPYC without AVX-512
    ("2.14.1", "GenuineIntel"): ("7ee3afe76af2", "5a94ae0a5646"),  # a Xeon with AVX-512
}

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86-64 processors only")


def interpreter(place: Place, *arguments: str, **environment: str) -> None:
    """Run a command in an interpreter of its own, in which torch is not loaded yet."""
    own = {name: value for name, value in os.environ.items() if name not in numerics.PORTABLE}
    own["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "lora_exp", *arguments]
    done = subprocess.run(command, cwd=place.folder, env=own | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_portable_run_has_the_same_bits_on_every_processor_of_a_maker(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    maker = next((line.split(":")[1].strip() for line in about.splitlines() if line.startswith("vendor_id")), "")
    golden = GOLDEN.get((torch_version().partition("+")[0], maker))
    if golden is None:
        pytest.skip(f"there are no hashes of torch {torch_version()} on a processor of {maker or 'an unknown maker'}")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    interpreter(Place(tmp_path), *TINY, "device.portable=true", "tracking=off", "hydra.run.dir=run")
    found = read(tmp_path / "run")
    adapter = hashlib.sha256((tmp_path / "run" / "adapter.safetensors").read_bytes()).hexdigest()
    where = f"{processor()} computes other bits: docs/safety.md says what is known of this"
    assert (found.outcome.base_sha256_before[:12], adapter[:12]) == golden, where
    assert found.provenance["kernels"] == "AVX2,STRICT avx2"


def test_other_kernels_are_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for mkl, aten in (("AVX2,STRICT", "avx2"), ("AVX512,STRICT", "avx2"), ("AVX2,STRICT", "avx512")):
        monkeypatch.setenv("MKL_CBWR", mkl)
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", aten)
        keys.add(result_key(SPEC, "data", "cpu"))
    assert len(keys) == 3
    assert result_key(SPEC, "data", "cuda") == result_key(SPEC, "data", "cuda")


def test_a_processor_without_wider_kernels_has_the_keys_of_portable_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "_flags", lambda: {"avx2", "fma"})
    for name in numerics.PORTABLE:
        monkeypatch.delenv(name, raising=False)
    numerics.request_reproducible_products()
    assert numerics.kernels() == "AVX2,STRICT avx2"
    numerics.request_portable_kernels()  # nothing to change, though torch is loaded


def test_kernels_can_not_be_changed_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX512,STRICT")
    with pytest.raises(LoraExpError, match="torch is loaded already, with other kernels; start with"):
        numerics.request_portable_kernels()


def test_another_kind_of_processor_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(LoraExpError, match="x86-64 processors only, and this is aarch64"):
        numerics.request_portable_kernels()


def test_a_run_of_other_kernels_is_compared_within_a_tolerance(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    place = Place(tmp_path)
    place.run(*TINY, "tracking=off", "hydra.run.dir=run")
    path = tmp_path / "run" / "result.json"
    made = json.loads(path.read_text())
    others = {"AVX512,STRICT avx512", "AVX2,STRICT avx2"} - {numerics.kernels()}
    made["provenance"]["kernels"] = other = min(others)
    made["outcome"]["target_error"] += 0.04
    path.write_text(json.dumps(made))
    out, _ = place.run("reproduce", "run")
    assert f"was computed by other kernels ({other}) than this processor uses" in out
    assert "error rates differ by at most 5 percentage points" in out
    made["outcome"]["target_error"] += 0.02
    path.write_text(json.dumps(made))
    out, _ = place.run("reproduce", "run", code=1)
    assert "not reproduced: 1 of" in out and "target_error" in out
