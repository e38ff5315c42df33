"""pytest tests/test_data.py"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.datasets import mnist as torchvision_mnist

import lora_exp
from lora_exp.config.spec import MEAN, STD, DataSpec
from lora_exp.errors import LoraExpError
from lora_exp.model import data
from lora_exp.model.data import EMBEDDED, MNIST_SHA256, ImageData

CPU = torch.device("cpu")
MNIST = DataSpec("mnist")


@pytest.fixture
def copied_root(data_root: Path, mnist: ImageData, tmp_path: Path) -> Iterator[Path]:
    """A data root of this test's own, with MNIST unpacked and prepared; 100 MB, so it goes with the test."""
    yield shutil.copytree(data_root, tmp_path / "root")
    shutil.rmtree(tmp_path / "root")


@pytest.fixture
def kmnist_root(copied_root: Path) -> Path:
    """A data root in which the files of MNIST lie where those of KMNIST are looked for."""
    (copied_root / "MNIST").rename(copied_root / "KMNIST")
    return copied_root


def refusal(spec: DataSpec, root: Path) -> str:
    with pytest.raises(LoraExpError) as caught:
        data.load(spec, root, CPU)
    line = str(caught.value)
    assert "\n" not in line
    return line


def pixels(split: data.Split) -> torch.Tensor:
    """Pixel values from 0 to 1, as they were before normalisation."""
    return split.images * STD + MEAN


@pytest.mark.parametrize("name", list(MNIST_SHA256))
def test_the_embedded_files_are_the_published_ones(name: str) -> None:
    content = lzma.decompress((EMBEDDED / f"{name}.xz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == MNIST_SHA256[name]


def test_mnist_has_60000_and_10000_images_with_the_usual_mean_and_deviation(data_root: Path, mnist: ImageData) -> None:
    whole = data.load(MNIST, data_root, CPU)
    assert whole.train.images.shape == (60_000, 784)
    assert whole.test.images.shape == (10_000, 784)
    assert whole.validation is None
    assert (whole.train.images.dtype, whole.train.labels.dtype) == (torch.float32, torch.int64)
    std, mean = torch.std_mean(pixels(whole.train).double())
    assert (round(float(mean), 4), round(float(std), 4)) == (0.1307, 0.3081)
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(whole.train.labels).tolist() == train_counts
    assert torch.bincount(whole.test.labels).tolist() == test_counts


def test_images_are_the_bytes_of_the_idx_files(mnist: ImageData) -> None:
    content = lzma.decompress((EMBEDDED / "t10k-images-idx3-ubyte.xz").read_bytes())[16:]
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(10_000, 784)
    assert torch.equal((pixels(mnist.test) * 255).round().to(torch.uint8), raw)


def test_limit_keeps_the_first_training_images_and_validation_is_the_last(data_root: Path, mnist: ImageData) -> None:
    whole = data.load(MNIST, data_root, CPU)
    assert torch.equal(mnist.train.images, whole.train.images[:6000])
    assert torch.equal(mnist.train.labels, whole.train.labels[:6000])
    assert mnist.validation is not None
    assert torch.equal(mnist.validation.images, whole.train.images[-500:])
    assert torch.equal(mnist.validation.labels, whole.train.labels[-500:])


def test_no_validation_image_is_ever_trained_on(data_root: Path, mnist: ImageData) -> None:
    for limit in (None, 60_000):
        held = data.load(DataSpec("mnist", validation=500, limit=limit), data_root, CPU)
        assert held.validation is not None
        assert len(held.train.labels) == 59_500
        assert torch.equal(held.validation.images, data.load(MNIST, data_root, CPU).train.images[59_500:])


def test_the_hash_of_the_data_is_that_of_the_whole_set(data_root: Path, mnist: ImageData) -> None:
    assert mnist.sha256 == data.load(MNIST, data_root, CPU).sha256
    assert mnist.sha256 == data.load(DataSpec("mnist", limit=100), data_root, CPU).sha256


def test_of_classes_lists_the_images_with_these_labels_in_order(mnist: ImageData) -> None:
    found = mnist.train.of_classes((3, 7))
    assert found.tolist() == [at for at, label in enumerate(mnist.train.labels.tolist()) if label in (3, 7)]


def test_a_later_start_imports_no_torchvision(data_root: Path, mnist: ImageData) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from lora_exp.model import data; from lora_exp.config.spec import DataSpec\n"
        "print(data.load(DataSpec('mnist'), Path(sys.argv[1]), torch.device('cpu')).sha256)\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data_root)],
        cwd=Path(lora_exp.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [mnist.sha256, "False"]


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "empty", "other values"])
def test_a_damaged_prepared_file_is_made_anew(copied_root: Path, mnist: ImageData, damage: str) -> None:
    prepared = copied_root / "mnist.safetensors"
    sound = prepared.read_bytes()
    if damage == "other values":
        prepared.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    else:
        left = {"cut short": sound[:1_000_000], "overwritten": b"x" * 1000, "empty": b""}
        prepared.write_bytes(left[damage])
    assert data.load(MNIST, copied_root, CPU).sha256 == mnist.sha256
    assert prepared.read_bytes() == sound
    assert not list(copied_root.glob("*.tmp"))


@pytest.mark.parametrize("name", list(MNIST_SHA256))
def test_a_damaged_idx_file_is_refused_in_one_line_that_names_it(copied_root: Path, name: str) -> None:
    (copied_root / "mnist.safetensors").unlink()
    file = copied_root / "MNIST" / "raw" / name
    content = file.read_bytes()
    for wrong in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(wrong)
        line = refusal(MNIST, copied_root)
        assert line.startswith(f"data.root={copied_root}: file {file} is damaged; delete it")
        assert data.damaged_unpacked_files(copied_root) == [file]
        assert not (copied_root / "mnist.safetensors").exists()
    file.unlink()
    data.load(MNIST, copied_root, CPU)
    assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "qmnist"])
def test_a_data_set_that_cannot_be_had_is_refused_in_one_line_that_says_which_files_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision_mnist, "download_and_extract_archive", no_network)
    line = refusal(DataSpec(name), tmp_path)
    folder = {"fashion_mnist": "FashionMNIST", "kmnist": "KMNIST", "qmnist": "QMNIST"}[name]
    prefix = "qmnist-train" if name == "qmnist" else "train"
    assert line.startswith(f"data={name}: not in {tmp_path / folder / 'raw'}, and the download failed")
    assert f"{prefix}-images-idx3-ubyte.gz" in line
    assert f"{prefix}-labels-idx" in line


def test_another_data_set_is_read_from_where_its_files_were_put(kmnist_root: Path, mnist: ImageData) -> None:
    found = data.load(DataSpec("kmnist"), kmnist_root, CPU)
    assert torch.equal(found.test.images, mnist.test.images)
    assert (kmnist_root / "kmnist.safetensors").is_file()


def test_packed_files_are_read_however_they_were_compressed(kmnist_root: Path, mnist: ImageData) -> None:
    for file in (kmnist_root / "KMNIST" / "raw").iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), compresslevel=1))
        file.unlink()
    assert torch.equal(data.load(DataSpec("kmnist"), kmnist_root, CPU).test.images, mnist.test.images)


def test_a_packed_file_that_is_cut_short_is_called_so(kmnist_root: Path) -> None:
    file = kmnist_root / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    packed = file.with_name(f"{file.name}.gz")
    packed.write_bytes(gzip.compress(file.read_bytes())[:-20])
    file.unlink()
    assert refusal(DataSpec("kmnist"), kmnist_root).startswith(f"{packed}: can't be unpacked (")


def test_a_data_set_of_another_size_is_refused(kmnist_root: Path) -> None:
    raw = kmnist_root / "KMNIST" / "raw"
    for kind in ("images-idx3", "labels-idx1"):
        shutil.copy(raw / f"t10k-{kind}-ubyte", raw / f"train-{kind}-ubyte")
    assert refusal(DataSpec("kmnist"), kmnist_root) == (
        f"data=kmnist: {raw} does not hold 60000 labelled train images of 28 x 28"
    )


@pytest.mark.parametrize("cut", [1000, 10, 8, 4, 2, 0])
def test_a_cut_idx_file_of_another_data_set_is_called_damaged(kmnist_root: Path, cut: int) -> None:
    raw = kmnist_root / "KMNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes()[:cut])
    assert refusal(DataSpec("kmnist"), kmnist_root).startswith(f"data=kmnist: a file in {raw} is damaged")
    assert not (kmnist_root / "kmnist.safetensors").exists()


def test_a_root_that_cannot_be_written_to_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "root"
    assert refusal(MNIST, root).startswith(f"data.root={root}: must be a folder that can be written to (")
