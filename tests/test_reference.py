"""python -m pytest tests/test_reference.py -m "long or not long"

The reference numbers of the project, from the real command: on all of MNIST, and quickly on a part of it.
"""

from __future__ import annotations

from pathlib import Path

import forkserver
import pytest
from places import prepared

from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, RESULT, RunResult, read

PART = "data.limit=2000"
# A base of this size trains on two threads, which takes five times as long beside another process: `make test-long`
# trains it while nothing else runs.
WHOLE = "data.limit=null"


def run(folder: Path, *arguments: str) -> tuple[RunResult, Path]:
    done = forkserver.run([*arguments, "tracking=off"], folder)
    assert done.returncode == 0, done.stderr
    place = max(folder.glob(f"runs/*/*/{RESULT}"), key=lambda path: path.stat().st_mtime).parent
    return read(place), place


@pytest.fixture(scope="module", params=[PART, pytest.param(WHOLE, marks=pytest.mark.long)])
def images(request: pytest.FixtureRequest) -> str:
    """The override that says how many training images there are."""
    return str(request.param)


@pytest.fixture(scope="module")
def lab(images: str, tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Path:
    """A folder, and so a store, for each number of images."""
    return prepared(tmp_path_factory.mktemp("reference"), data_root).folder


@pytest.fixture(scope="module")
def reference(lab: Path, images: str) -> tuple[RunResult, Path]:
    return run(lab, "experiment=reference", images)


def test_the_reference_has_the_stated_parameters(reference: tuple[RunResult, Path]) -> None:
    out = reference[0].outcome
    assert (out.parameters_base, out.parameters_adapter, out.parameters_total) == (2_807_010, 6_794, 2_813_804)
    assert f"{out.overhead_percent:.3f}" == "0.242"
    assert [(row["shape"], row["base"], row["adapter"]) for row in out.layers] == [
        ([1000, 784], 785_000, 1_784),
        ([2000, 1000], 2_002_000, 3_000),
        ([10, 2000], 20_010, 2_010),
    ]


def test_the_reference_mends_digit_2_at_the_price_of_others_and_leaves_the_base_alone(
    reference: tuple[RunResult, Path], images: str
) -> None:
    out = reference[0].outcome
    assert out.steps == 100
    assert out.before.accuracy > (0.94 if images == WHOLE else 0.8)
    assert out.after.errors[2] < out.before.errors[2] / 2
    assert out.forgetting > 0
    assert out.base_unchanged and out.base_sha256_before == out.base_sha256_after
    assert out.adapter_off_equals_base


def test_the_reference_in_a_store_of_its_own_but_on_the_same_base_gives_the_same_bits(
    reference: tuple[RunResult, Path], lab: Path, images: str
) -> None:
    results = list((lab / "cache" / "store" / "results").glob("*/*"))
    assert len(results) == 1
    results[0].rename(lab / "set aside")
    again, place = run(lab, "experiment=reference", images, "device.threads=1")
    assert again.outcome == reference[0].outcome
    assert (place / ADAPTER).read_bytes() == (reference[1] / ADAPTER).read_bytes()


def test_rectified_logits_leave_dead_output_units(tmp_path: Path, data_root: Path, mnist: ImageData) -> None:
    folder = prepared(tmp_path, data_root).folder
    out = run(folder, "experiment=historical", "data.limit=3000", "model=small")[0].outcome
    answered = [sum(row[digit] for row in out.before.confusion) for digit in range(10)]
    dead = [digit for digit in range(1, 10) if answered[digit] == 0]
    assert dead and out.before.accuracy < 0.8
    assert all(out.before.error_rates[digit] == 1 for digit in dead)
