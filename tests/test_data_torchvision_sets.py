"""pytest tests/test_data_torchvision_sets.py"""

from __future__ import annotations

import dataclasses
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from lora_exp.data import cifar, embedded, idx, svhn, torchvision_sets
from lora_exp.data.cifar import CIFAR10, CIFAR100, CifarSet
from lora_exp.data.idx import IdxSet, Part
from lora_exp.data.torchvision_sets import EMNIST_SPLITS, IDX_SETS, NAMES, emnist
from lora_exp.errors import LoraExpError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download fail at once, wherever the tests run: nothing listens where the proxy should be."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(LoraExpError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    return line


def small(which: IdxSet, train: int = 40, test: int = 30) -> IdxSet:
    """The same data set with other counts."""
    parts = (
        dataclasses.replace(part, in_file=count, taken=min(part.taken, count))
        for part, count in ((which.train, train), (which.test, test))
    )
    return dataclasses.replace(which, **dict(zip(("train", "test"), parts, strict=True)))


def idx_file(values: NDArray[Any]) -> bytes:
    kind = {"u1": 0x08, "i4": 0x0C}[values.dtype.str[1:]]
    head = bytes([0, 0, kind, values.ndim]) + b"".join(size.to_bytes(4) for size in values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_idx(which: IdxSet, root: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Write a data set of random images; returns the images as they are in the files, and the positions of classes."""
    folder = root / which.folder / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    written = {}
    for name, part in (("train", which.train), ("test", which.test)):
        images = random.integers(0, 256, (part.in_file, 28, 28), np.uint8)
        classes = np.arange(part.in_file) % len(which.classes)
        labels = (classes + which.first_label).astype(np.uint8)
        if part.label_columns > 1:
            labels = np.column_stack([labels, random.integers(0, 99_999, (part.in_file, 7))]).astype(np.int32)
        (folder / part.images).write_bytes(idx_file(images))
        (folder / part.labels).write_bytes(idx_file(labels))
        written[name] = (images, classes)
    return written


def test_mnist_is_read_without_a_network_and_unpacked_into_the_root(tmp_path: Path) -> None:
    found = torchvision_sets.read("mnist", tmp_path)
    assert found.classes == tuple("0123456789")
    assert (found.train.images.shape, found.test.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert (found.train.images.dtype, found.train.labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(found.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert found.train.images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert embedded.damaged_embedded_files() == []
    file = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = refusal(lambda: torchvision_sets.read("mnist", tmp_path))
    assert line == f"data.root={tmp_path}: file {file} is damaged; delete it, and the next run unpacks it again"
    assert embedded.damaged_unpacked_files(tmp_path) == [file]
    shutil.rmtree(tmp_path / "MNIST")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_read_as_debian_packs_it(tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST").mkdir()
    (tmp_path / "FashionMNIST" / "raw").symlink_to(DEBIAN)
    found = torchvision_sets.read("fashion_mnist", tmp_path)
    assert (found.classes[0], found.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert np.bincount(found.train.labels).tolist() == [6000] * 10
    assert np.bincount(found.test.labels).tolist() == [1000] * 10
    assert found.train.images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "qmnist"])
@pytest.mark.parametrize("packing", ["plain", "gz", "xz"])
def test_idx_files_are_read_however_they_are_packed(tmp_path: Path, name: str, packing: str) -> None:
    which = small(IDX_SETS[name])
    written = write_idx(which, tmp_path)
    for file in list((tmp_path / which.folder / "raw").iterdir()):
        if packing != "plain":
            content = file.read_bytes()
            packed = gzip.compress(content, 1) if packing == "gz" else lzma.compress(content)
            file.with_name(f"{file.name}.{packing}").write_bytes(packed)
            file.unlink()
    found = idx.read(which, tmp_path)
    for split, part in ((found.train, "train"), (found.test, "test")):
        images, classes = written[part]
        assert (split.images[:, 0] == images).all()
        assert (split.labels == classes).all()
    assert found.validation is None


def test_of_qmnists_test_images_the_first_ten_thousand_are_taken(tmp_path: Path) -> None:
    which = small(IDX_SETS["qmnist"])
    which = dataclasses.replace(which, test=dataclasses.replace(which.test, taken=20))
    written = write_idx(which, tmp_path)
    assert (idx.read(which, tmp_path).test.images[:, 0] == written["test"][0][:20]).all()
    assert (IDX_SETS["qmnist"].test.in_file, IDX_SETS["qmnist"].test.taken) == (60_000, 10_000)


@pytest.mark.parametrize("split", EMNIST_SPLITS)
def test_emnist_is_upright_and_its_labels_are_positions_of_its_classes(tmp_path: Path, split: str) -> None:
    which = small(emnist(split), 130, 70)
    written = write_idx(which, tmp_path)
    found = idx.read(which, tmp_path)
    assert (found.train.images[:, 0] == written["train"][0].transpose(0, 2, 1)).all()
    assert (found.test.labels == written["test"][1]).all()
    assert len(found.classes) == {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26}.get(split, 10)
    assert found.train.images.flags.c_contiguous


def test_emnist_is_read_from_its_archive(tmp_path: Path) -> None:
    which = small(emnist("letters"))
    write_idx(which, tmp_path)
    folder = tmp_path / "EMNIST" / "raw"
    plain = idx.read(which, tmp_path)
    files = list(folder.iterdir())
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for file in files:
            archive.writestr(f"gzip/{file.name}.gz", gzip.compress(file.read_bytes()))
            file.unlink()
    packed = idx.read(which, tmp_path)
    assert (packed.train.images == plain.train.images).all() and (packed.test.labels == plain.test.labels).all()
    (folder / "gzip.zip").write_bytes((folder / "gzip.zip").read_bytes()[:-100])
    assert refusal(lambda: idx.read(which, tmp_path)).startswith(f"{folder / 'gzip.zip'}: can't be unpacked (")


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("fashion_mnist", None, "FashionMNIST/raw, and the download failed; put these files there: train-images-idx3"),
        ("kmnist", None, "KMNIST/raw, and the download failed; put these files there: train-images-idx3-ubyte.gz, "),
        ("qmnist", None, "QMNIST/raw, and the download failed; put these files there: qmnist-train-images-idx3-ubyt"),
        ("emnist", "letters", "-letters-train-labels-idx1-ubyte.gz, or gzip.zip with all"),
        ("svhn", None, ", and the download failed; put train_32x32.mat and test_32x32.mat there"),
        ("cifar10", None, "put cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html there, or its "),
        ("cifar100", None, "put cifar-100-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html there, or "),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line_that_says_which_files_to_put_where(
    tmp_path: Path, name: str, split: str | None, said: str
) -> None:
    line = refusal(lambda: torchvision_sets.read(name, tmp_path, split))
    assert line.startswith(f"data={name}: not in {tmp_path}") and said in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing half-written"


def test_another_name_or_split_is_refused(tmp_path: Path) -> None:
    assert refusal(lambda: torchvision_sets.read("cifar11", tmp_path)).startswith("data=cifar11: did you mean cifar1")
    assert refusal(lambda: torchvision_sets.read("x", tmp_path)) == f"data=x: must be one of {', '.join(NAMES)}"
    assert "balanced, byclass, bymerge" in refusal(lambda: torchvision_sets.read("emnist", tmp_path))
    assert refusal(lambda: torchvision_sets.read("svhn", tmp_path, "extra")) == (
        "data=svhn: has no split 'extra'; only emnist has several"
    )


def test_few_images_in_files_of_the_right_format_are_refused(tmp_path: Path) -> None:
    write_idx(small(IDX_SETS["kmnist"]), tmp_path)
    raw = tmp_path / "KMNIST" / "raw"
    assert refusal(lambda: torchvision_sets.read("kmnist", tmp_path)) == (
        f"data=kmnist: {raw} does not hold 60000 labelled train images of 28 x 28"
    )


@pytest.mark.parametrize("cut", [50, 10, 8, 4, 2, 0])
def test_a_cut_idx_file_is_called_damaged(tmp_path: Path, cut: int) -> None:
    which = small(IDX_SETS["kmnist"])
    write_idx(which, tmp_path)
    for file in (which.train.labels, which.test.images):
        path = tmp_path / "KMNIST" / "raw" / file
        sound = path.read_bytes()
        path.write_bytes(sound[:cut] if cut < len(sound) else sound[:-1])
        line = refusal(lambda: idx.read(which, tmp_path))
        assert line == f"data=kmnist: a file in {path.parent} is damaged ({file}); delete it and try again"
        path.write_bytes(sound)


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_a_packed_idx_file_that_is_cut_short_is_called_so(tmp_path: Path, suffix: str) -> None:
    which = small(IDX_SETS["kmnist"])
    write_idx(which, tmp_path)
    file = tmp_path / "KMNIST" / "raw" / which.test.labels
    packed = file.with_name(f"{file.name}.{suffix}")
    pack = gzip.compress if suffix == "gz" else lzma.compress
    for content in (pack(file.read_bytes())[:-9], b"no such format"):
        packed.write_bytes(content)
        file.unlink(missing_ok=True)
        assert refusal(lambda: idx.read(which, tmp_path)).startswith(f"{packed}: can't be unpacked (")


def test_a_packed_file_that_unpacks_to_far_more_is_not_unpacked_whole(tmp_path: Path) -> None:
    which = small(IDX_SETS["kmnist"])
    write_idx(which, tmp_path)
    file = tmp_path / "KMNIST" / "raw" / which.train.labels
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes() + bytes(300_000_000), 1))
    file.unlink()
    assert "is damaged (train-labels-idx1-ubyte)" in refusal(lambda: idx.read(which, tmp_path))


def test_idx_labels_that_are_not_the_classes_are_refused(tmp_path: Path) -> None:
    which = small(IDX_SETS["kmnist"])
    write_idx(which, tmp_path)
    for label in (3, 10):  # one class is missing, and one is too many
        labels = np.arange(40, dtype=np.uint8) % 10
        labels[labels == 4] = label
        (tmp_path / "KMNIST" / "raw" / which.train.labels).write_bytes(idx_file(labels))
        assert "does not hold the 10 labels from 0 on" in refusal(lambda: idx.read(which, tmp_path))


def cifar_records(which: CifarSet, count: int, seed: int) -> tuple[bytes, NDArray[np.uint8], NDArray[np.uint8]]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)
    labels = (np.arange(count) % len(which.classes)).astype(np.uint8)
    coarse = np.full((count, which.labels - 1), 99, np.uint8)
    return np.column_stack([coarse, labels, images]).tobytes(), images, labels


def write_cifar(which: CifarSet, root: Path) -> CifarSet:
    folder = root / which.folder
    folder.mkdir()
    which = dataclasses.replace(which, train=100 * len(which.train_files), test=100)
    for seed, name in enumerate((*which.train_files, which.test_file)):
        (folder / name).write_bytes(cifar_records(which, 100, seed)[0])
    return which


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, folder.name)
    shutil.rmtree(folder)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cifar_set", [CIFAR10, CIFAR100], ids=lambda one: one.name)
def test_cifar_is_read_from_its_binary_version(tmp_path: Path, cifar_set: CifarSet, packed: bool) -> None:
    which = write_cifar(cifar_set, tmp_path)
    if packed:
        pack(tmp_path / which.folder, tmp_path / which.archive)
    found = cifar.read(which, tmp_path)
    assert found.train.images.shape == (which.train, 3, 32, 32)
    _, images, labels = cifar_records(which, 100, 0)
    assert (found.train.images[:100].reshape(100, -1) == images).all()
    assert (found.train.labels[:100] == labels).all()
    assert (found.test.images.reshape(100, -1) == cifar_records(which, 100, len(which.train_files))[1]).all()


def test_the_classes_of_cifar_are_ten_and_a_hundred_in_the_order_of_their_labels() -> None:
    assert len(CIFAR10.classes) == 10 and len(CIFAR100.classes) == 100
    for which in (CIFAR10, CIFAR100):
        assert list(which.classes) == sorted(set(which.classes))


def test_of_cifar_the_files_of_the_python_version_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    line = refusal(lambda: torchvision_sets.read("cifar10", tmp_path))
    assert line.endswith("(cifar-10-batches-py is there, and the Python version is not read: it could run code)")
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"")
    line = refusal(lambda: torchvision_sets.read("cifar100", tmp_path))
    assert "put cifar-100-binary.tar.gz" in line and "(cifar-100-python.tar.gz is there" in line


def test_cifar_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    which = write_cifar(CIFAR10, tmp_path)
    folder = tmp_path / which.folder
    assert refusal(lambda: torchvision_sets.read("cifar10", tmp_path)) == (
        f"data=cifar10: data_batch_1.bin in {folder} does not hold 10000 records of 3073 bytes; "
        "put the published file there"
    )
    content = bytearray((folder / "test_batch.bin").read_bytes())
    content[0] = 10
    (folder / "test_batch.bin").write_bytes(content)
    assert f"test_batch.bin in {folder} does not hold the labels 0 to 9" in refusal(lambda: cifar.read(which, tmp_path))
    (folder / "data_batch_3.bin").unlink()
    assert refusal(lambda: cifar.read(which, tmp_path)) == (
        f"data=cifar10: {folder / 'data_batch_3.bin'} is missing; put the whole folder there"
    )
    pack(folder, archive := tmp_path / which.archive)
    assert f"{archive} does not hold data_batch_3.bin" in refusal(lambda: cifar.read(which, tmp_path))
    archive.write_bytes(archive.read_bytes()[:-1000])
    assert refusal(lambda: cifar.read(which, tmp_path)).startswith(f"{archive}: can't be unpacked (")
    archive.write_bytes(b"no archive")
    assert refusal(lambda: cifar.read(which, tmp_path)).startswith(f"{archive}: can't be unpacked (")


def test_an_archive_of_cifar_that_holds_far_more_is_not_unpacked(tmp_path: Path) -> None:
    which = dataclasses.replace(CIFAR100, train=100, test=100)
    with tarfile.open(tmp_path / which.archive, "w:gz") as packed:
        member = tarfile.TarInfo("../../train.bin")
        member.size = 5_000_000
        packed.addfile(member, io.BytesIO(bytes(member.size)))
    assert "holds more than the published one" in refusal(lambda: cifar.read(which, tmp_path))


def write_svhn(root: Path, counts: dict[str, int]) -> dict[str, NDArray[np.uint8]]:
    written = {}
    for split, count in counts.items():
        images = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, np.newaxis]
        scipy.io.savemat(root / svhn.FILES[split], {"X": images, "y": labels}, do_compression=True)
        written[split] = images
    return written


def test_svhn_is_read_and_its_label_10_is_the_digit_0(tmp_path: Path) -> None:
    written = write_svhn(tmp_path, counts := {"train": 40, "test": 20})
    found = svhn.read(tmp_path, counts)
    assert found.train.images.shape == (40, 3, 32, 32)
    assert (found.test.images[7] == written["test"][..., 7].transpose(2, 0, 1)).all()
    assert found.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert found.classes[0] == "0"


def test_svhn_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path, counts := {"train": 40, "test": 20})
    train = tmp_path / "train_32x32.mat"
    assert refusal(lambda: torchvision_sets.read("svhn", tmp_path)) == (
        f"data=svhn: {train} does not hold 73257 labelled images of 32 x 32 x 3"
    )
    scipy.io.savemat(train, {"X": np.zeros((32, 32, 3, 40), np.uint8), "y": np.zeros((40, 1), np.uint8)})
    assert "does not hold the labels 1 to 10" in refusal(lambda: svhn.read(tmp_path, counts))
    scipy.io.savemat(train, {"X": np.zeros((32, 32, 3, 40)), "y": np.zeros((40, 1), np.uint8)})
    assert "does not hold 40 labelled images" in refusal(lambda: svhn.read(tmp_path, counts))
    for content in (b"no such file", b"", train.read_bytes()[:-300], train.read_bytes()[:300]):
        train.write_bytes(content)
        line = refusal(lambda: svhn.read(tmp_path, counts))
        assert line.startswith((f"data=svhn: {train} is damaged (", f"data=svhn: {train} does not hold 40 "))


def test_parts_of_all_sets_say_how_many_images_they_hold() -> None:
    every: list[Part] = [part for which in IDX_SETS.values() for part in (which.train, which.test)]
    assert {part.taken for part in every} == {60_000, 10_000}
    assert svhn.COUNTS == {"train": 73_257, "test": 26_032}
