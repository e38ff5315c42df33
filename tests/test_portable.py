"""python -m pytest tests/test_portable.py

`device.portable=true`: the same kernels, and so the same bits, on every x86-64 processor with AVX2, of any maker.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import Place

from lora_exp import numerics
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.data import ImageData
from lora_exp.storage.keys import result_key, torch_version
from lora_exp.storage.provenance import processor
from lora_exp.storage.result import read

TINY = ("model=tiny", "data.limit=2000", "base.batch_size=50", "adapter.rank=3", "finetune.steps=30")
REFERENCE = ("experiment=reference", "data.limit=6000")  # 600 steps of its base: on all images they take five minutes
SPEC = RunSpec(ModelSpec((64,)), DataSpec("mnist"), BaseSpec(), AdapterSpec(), FinetuneSpec((2,)))
HERE = Path(__file__).parent
# The beginnings of the hashes of base and adapter: one pair for all processors. Seen on a Xeon with AVX-512, as itself
# and under `as_amd.c`, and on an EPYC with AVX-512. On processors of other makers other hashes don't fail the test: it
# is skipped and shows both pairs.
GOLDEN = {
    ("2.14.1", TINY): ("14f868698d2e", "6ef092e96b3e"),
    ("2.14.1", (*TINY, "adapter=pissa")): ("14f868698d2e", "6af2b26bbd5a"),
    ("2.14.1", REFERENCE): ("1b18866c5d51", "0abf2c2040f8"),
}
SEEN_ON = ("GenuineIntel", "AuthenticAMD")
# With the kernels for AVX2 instead: seen on an EPYC without AVX-512, and on the Xeon.
OF_AN_EPYC, OF_A_XEON = ("b143d875a010", "bf177b1fa1ee"), ("7ee3afe76af2", "5a94ae0a5646")

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86-64 processors only")


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    return Place(tmp_path)


@pytest.fixture(scope="module")
def as_amd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library under which this processor reports itself as one of AMD, for LD_PRELOAD."""
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("library") / "as_amd.so"
    if compiler is None or sys.platform != "linux" or numerics.maker() != "GenuineIntel":
        pytest.skip("needs Linux, a C compiler and a processor of Intel")
    subprocess.run([compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", library, HERE / "as_amd.c"], check=True)
    tried = subprocess.run(["true"], env=os.environ | {"LD_PRELOAD": str(library)})
    if tried.returncode == 77:
        pytest.skip("the kernel can't let CPUID fault on this processor")
    return str(library)


def interpreter(place: Place, *arguments: str, **environment: str) -> str:
    """Run a command in an interpreter of its own, in which torch is not loaded yet; return what it printed."""
    own = {name: value for name, value in os.environ.items() if name not in numerics.PORTABLE}
    own["PYTHONPATH"] = str(HERE.parent)
    command = [sys.executable, "-m", "lora_exp", *arguments]
    done = subprocess.run(command, cwd=place.folder, env=own | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hashes(place: Place, *arguments: str, **environment: str) -> tuple[str, str]:
    """Run a command and return the beginnings of the hashes of its base and its adapter."""
    interpreter(place, *arguments, "tracking=off", "hydra.run.dir=run", **environment)
    base = read(place.folder / "run").outcome.base_sha256_before
    adapter = hashlib.sha256((place.folder / "run" / "adapter.safetensors").read_bytes()).hexdigest()
    return base[:12], adapter[:12]


def golden(arguments: tuple[str, ...]) -> tuple[str, str]:
    version = torch_version().partition("+")[0]
    if (version, arguments) not in GOLDEN:
        pytest.skip(f"there are no hashes of torch {version}")
    return GOLDEN[version, arguments]


@pytest.mark.parametrize(
    "arguments",
    [TINY, (*TINY, "adapter=pissa"), pytest.param(REFERENCE, marks=pytest.mark.long)],
    ids=["tiny", "decomposition", "reference"],
)
def test_a_portable_run_has_the_same_bits_on_every_processor(place: Place, arguments: tuple[str, ...]) -> None:
    expected = golden(arguments)
    found = hashes(place, *arguments, "device.portable=true")
    assert read(place.folder / "run").provenance["kernels"] == "COMPATIBLE avx2"
    if found != expected and numerics.maker() not in SEEN_ON:
        pytest.skip(f"{processor()} has the hashes {found}, not {expected}: docs/safety.md says what is known of this")
    assert found == expected, f"{processor()} computes other bits"


@pytest.mark.parametrize("arguments", [TINY, (*TINY, "adapter=pissa")], ids=["lora", "decomposition"])
def test_a_processor_that_reports_another_maker_has_the_same_bits_too(
    place: Place, arguments: tuple[str, ...], as_amd: str
) -> None:
    assert hashes(place, *arguments, "device.portable=true", LD_PRELOAD=as_amd) == golden(arguments)


def test_without_the_setting_the_bits_are_those_of_the_makers(place: Place, as_amd: str) -> None:
    """Under the library the Xeon has the bits of a real EPYC, so it stands in for one in the test above."""
    golden(TINY)  # there are hashes of this version of torch
    narrow = {"MKL_CBWR": "AVX2,STRICT", "ATEN_CPU_CAPABILITY": "avx2"}
    assert hashes(place, *TINY, "store.folder=one", **narrow) == OF_A_XEON
    assert hashes(place, *TINY, "store.folder=other", **narrow, LD_PRELOAD=as_amd) == OF_AN_EPYC


def test_a_portable_job_has_the_same_bits_alone_and_in_a_sweep(place: Place) -> None:
    jobs = ("adapter.rank=2,3", "finetune.digit=2,5,7", "device.portable=true", "tracking=off")
    interpreter(place, "-m", *TINY[:3], TINY[4], *jobs, "hydra.sweep.dir=sweep")
    alone = (*TINY, "finetune.digit=5", "device.portable=true", "store.folder=other", "tracking=off")
    interpreter(place, *alone, "hydra.run.dir=alone")
    found = read(place.folder / "alone")
    [same] = [
        result
        for result in map(read, (place.folder / "sweep").glob("[0-9]"))
        if (result.spec.adapter.rank, result.spec.finetune.target) == (3, (5,))
    ]
    assert found.provenance["promise"] == same.provenance["promise"] == numerics.ANY_PACK
    assert found.outcome == same.outcome


@pytest.mark.long
def test_every_method_has_the_same_bits_alone_and_in_any_pack_with_the_portable_request() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_same_bits.py")]
    done = subprocess.run(command, cwd=HERE.parent, env=os.environ | numerics.PORTABLE, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-3000:]


def test_what_is_made_of_a_portable_run_uses_its_kernels_again(place: Place) -> None:
    """Merging is a product; an import and a registered model predict."""
    interpreter(place, *TINY, "device.portable=true", "tracking=off", "hydra.run.dir=run")
    merged = place.folder / "run" / "merged.safetensors"
    interpreter(place, "merge", "run")
    content = merged.read_bytes()
    interpreter(place, "merge", "run", **numerics.PORTABLE)
    assert merged.read_bytes() == content
    interpreter(place, "merge", "run", "device.portable=false", MKL_CBWR="AVX2,STRICT")
    assert merged.read_bytes() != content
    interpreter(place, "export", "run")
    imported = ("import", "run/peft", *TINY[:3], "finetune.digit=2", "device.portable=true", "tracking=off")
    interpreter(place, *imported, "hydra.run.dir=imported")
    assert read(place.folder / "imported").provenance["kernels"] == "COMPATIBLE avx2"
    same = read(place.folder / "run").outcome.after
    assert read(place.folder / "imported").outcome.after == same


def test_other_kernels_are_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for mkl, aten in (
        ("AVX2,STRICT", "avx2"),
        ("AVX512,STRICT", "avx2"),
        ("AVX2,STRICT", "avx512"),
        ("COMPATIBLE", "avx2"),
    ):
        monkeypatch.setenv("MKL_CBWR", mkl)
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", aten)
        keys.add(result_key(SPEC, "data", "cpu"))
    assert len(keys) == 4
    assert result_key(SPEC, "data", "cuda") == result_key(SPEC, "data", "cuda")


@pytest.mark.parametrize(("request_to_mkl", "different"), [("AVX2,STRICT", 3), ("COMPATIBLE", 1)])
def test_processors_of_two_makers_share_the_keys_of_portable_runs_only(
    request_to_mkl: str, different: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_CBWR", request_to_mkl)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setattr(numerics, "CPUINFO", tmp_path / "cpuinfo")
    keys = set()
    for line in ("vendor_id\t: GenuineIntel\n", "vendor_id\t: AuthenticAMD\n", ""):
        numerics.CPUINFO.write_text(f"processor\t: 0\n{line}flags\t\t: fpu avx2 fma\n")
        keys.add(result_key(SPEC, "data", "cpu"))
    assert len(keys) == different


def test_kernels_can_not_be_changed_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX512,STRICT")
    with pytest.raises(LoraExpError, match="torch is loaded already, with other kernels; start with"):
        numerics.request_portable_kernels()


def test_another_kind_of_processor_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(LoraExpError, match="x86-64 processors only, and this is aarch64"):
        numerics.request_portable_kernels()


def test_a_run_of_other_kernels_is_compared_within_a_tolerance(place: Place) -> None:
    place.run(*TINY, "tracking=off", "hydra.run.dir=run")
    path = place.folder / "run" / "result.json"
    made = json.loads(path.read_text())
    # Older results don't name the maker.
    made["provenance"]["kernels"] = made["provenance"]["kernels"].removesuffix(f" {numerics.maker()}")
    path.write_text(json.dumps(made))
    assert "have the same bits" in place.run("reproduce", "run")[0]
    others = {"AVX512,STRICT avx512 GenuineIntel", "AVX2,STRICT avx2 AuthenticAMD"} - {numerics.kernels()}
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
