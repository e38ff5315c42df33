"""python -m pytest tests/test_data.py: splits as tensors, from prepared files. How they are read: test_data_*.py."""

from __future__ import annotations

import hashlib
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import data_in

import lora_exp
from lora_exp.config.images import MNIST, ImageFacts
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import DataSpec
from lora_exp.data.embedded import EMBEDDED, MNIST_SHA256
from lora_exp.data.header import header
from lora_exp.data.prepared import prepare, prepared_sha256
from lora_exp.errors import LoraExpError
from lora_exp.model import data
from lora_exp.model.data import ImageData, Images, Split

CPU = torch.device("cpu")
WHOLE = DataSpec("mnist")


def loaded(spec: DataSpec, root: Path) -> ImageData:
    return data.load(spec, data_in(root)(spec), CPU)


def refusal(spec: DataSpec, root: Path) -> str:
    with pytest.raises(LoraExpError) as caught:
        loaded(spec, root)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def whole(data_root: Path, mnist: ImageData) -> ImageData:
    return loaded(WHOLE, data_root)


def own(folder: Path, images: np.ndarray, labels: list[int], **more: np.ndarray) -> DataFolder:
    """A data set of one's own, in a file as Keras has it; train and test are the same."""
    file = folder / "own.npz"
    splits = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(file, **splits, **more)
    return DataFolder(str(folder), str(file), str(folder / "prepared"))


@pytest.mark.parametrize("name", list(MNIST_SHA256))
def test_the_embedded_files_are_the_published_ones(name: str) -> None:
    content = lzma.decompress((EMBEDDED / f"{name}.xz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == MNIST_SHA256[name]


def test_mnist_has_60000_and_10000_images_with_the_usual_mean_and_deviation(whole: ImageData) -> None:
    assert whole.train.images.pixels.shape == (60_000, 784)
    assert whole.test.images.pixels.shape == (10_000, 784)
    assert whole.validation is None
    assert (whole.train.images.pixels.dtype, whole.train.labels.dtype) == (torch.uint8, torch.int64)
    std, mean = torch.std_mean(whole.train.images.pixels.double() / 255)
    assert (round(float(mean), 4), round(float(std), 4)) == (0.1307, 0.3081)
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(whole.train.labels).tolist() == train_counts
    assert torch.bincount(whole.test.labels).tolist() == test_counts
    assert whole.facts == MNIST


def test_pixels_are_the_bytes_of_the_idx_files(mnist: ImageData) -> None:
    content = lzma.decompress((EMBEDDED / "t10k-images-idx3-ubyte.xz").read_bytes())[16:]
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(10_000, 784)
    assert torch.equal(mnist.test.images.pixels, raw)


def test_an_image_is_normalised_by_channel_with_the_same_bits_in_any_batch() -> None:
    facts = ImageFacts((3, 2, 2), ("a", "b"), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    pixels = torch.randint(0, 256, (50, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, facts)
    together = images[:]
    expected = (pixels.double().view(50, 3, 4) / 255 - torch.tensor(facts.mean)[:, None]) / torch.tensor(facts.std)[
        :, None
    ]
    torch.testing.assert_close(together.double(), expected.view(50, 12), rtol=1e-5, atol=1e-6)
    assert together.dtype == torch.float32
    for at in (torch.tensor([7]), slice(3, 20), torch.tensor([[1, 2], [49, 0]])):
        assert torch.equal(images[at], together[at])


def test_limit_keeps_the_first_training_images_of_those_that_are_not_held_out(
    mnist: ImageData, whole: ImageData
) -> None:
    assert torch.equal(mnist.train.images.pixels, whole.train.images.pixels[:6000])
    assert torch.equal(mnist.train.labels, whole.train.labels[:6000])


@pytest.mark.parametrize("wanted", [500, 0.1, 2, 59_000])
def test_validation_images_are_the_last_of_each_class_and_each_class_has_its_share(
    data_root: Path, whole: ImageData, wanted: float
) -> None:
    held = loaded(DataSpec("mnist", validation=wanted), data_root)
    assert held.validation is not None
    number = wanted if wanted >= 1 else round(60_000 * wanted)
    assert (len(held.validation.labels), len(held.train.labels)) == (number, 60_000 - number)
    for label in range(10):
        of_class = whole.train.where(whole.train.of_classes((label,))).images.pixels
        kept = held.train.where(held.train.of_classes((label,))).images.pixels
        out = held.validation.where(held.validation.of_classes((label,))).images.pixels
        assert torch.equal(torch.cat([kept, out]), of_class)
        assert abs(len(out) - number * len(of_class) / 60_000) < 1


def test_a_class_that_keeps_no_training_image_is_named(data_root: Path, whole: ImageData) -> None:
    assert refusal(DataSpec("mnist", validation=60_000), data_root).startswith("data.validation=60000: must leave some")
    told = refusal(DataSpec("mnist", validation=59_995), data_root)
    assert told.startswith("data.validation=59995, data.limit=None: leave no training image of class ")


def test_the_hash_of_the_data_is_that_of_the_whole_set(data_root: Path, mnist: ImageData, whole: ImageData) -> None:
    assert mnist.sha256 == whole.sha256 == loaded(DataSpec("mnist", limit=100), data_root).sha256


def test_of_classes_lists_the_images_with_these_labels_in_order(mnist: ImageData) -> None:
    found = mnist.train.of_classes((3, 7))
    assert found.tolist() == [at for at, label in enumerate(mnist.train.labels.tolist()) if label in (3, 7)]


def test_a_later_start_imports_nothing_that_reads_sources(data_root: Path, mnist: ImageData) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from lora_exp.model import data; from lora_exp.config.spec import DataSpec\n"
        "from lora_exp.config.settings import DataFolder; from lora_exp.data.prepared import prepare\n"
        "spec = DataSpec('mnist')\n"
        "print(data.load(spec, prepare(spec, DataFolder(sys.argv[1])), torch.device('cpu')).sha256)\n"
        "print([name for name in ('torchvision', 'PIL', 'pyarrow', 'sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data_root)],
        cwd=Path(lora_exp.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [mnist.sha256, "[]"]


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "empty", "other values", "of an older version"])
def test_a_prepared_file_that_is_not_whole_is_made_anew(tmp_path: Path, damage: str) -> None:
    images, labels = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6).repeat(60, axis=0), [0] * 60 + [1] * 60
    folder, spec = own(tmp_path, images, labels), DataSpec("npz")
    path = prepare(spec, folder)
    sound = path.read_bytes()
    if damage == "other values":
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    elif damage == "of an older version":
        from safetensors.numpy import save_file

        save_file({"train_images": images}, path, metadata={"sha256": "ab"})
    else:
        path.write_bytes({"cut short": sound[:-9], "overwritten": b"x" * 1000, "empty": b""}[damage])
    assert prepare(spec, folder) == path and path.read_bytes() == sound
    assert not list(path.parent.glob("*.tmp"))


def test_the_same_pictures_elsewhere_are_the_same_data_and_a_changed_pixel_or_name_is_not(tmp_path: Path) -> None:
    images, labels = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6).repeat(60, axis=0), [0] * 60 + [1] * 60
    changed = images.copy()
    changed[0, 0, 0] ^= 1
    hashes = []
    for name, own_images, classes in (
        ("one", images, ["a", "b"]),
        ("two", images, ["a", "b"]),
        ("pixel", changed, ["a", "b"]),
        ("name", images, ["a", "c"]),
    ):
        (tmp_path / name).mkdir()
        folder = own(tmp_path / name, own_images, labels, class_names=np.array(classes))
        assert prepared_sha256(DataSpec("npz"), folder) is None
        found = header(prepare(DataSpec("npz"), folder))
        assert found is not None and found.facts.classes == tuple(classes)
        assert prepared_sha256(DataSpec("npz"), folder) == found.sha256
        hashes.append(found.sha256)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_data_of_ones_own_are_read_again_when_their_source_has_changed(tmp_path: Path) -> None:
    images, labels = np.zeros((120, 6, 6), np.uint8), [0] * 60 + [1] * 60
    images[60:] = 200
    folder, spec = own(tmp_path, images, labels), DataSpec("npz")
    before = loaded_own(spec, folder)
    own(tmp_path, images + 10, labels)
    after = loaded_own(spec, folder)
    assert before.sha256 != after.sha256 and int(after.train.images.pixels.min()) == 10
    # As it comes, all of one class would come first.
    first = loaded_own(DataSpec("npz", limit=100), folder).train
    assert len(first.labels) == 100 and 20 < int(first.labels.sum()) < 80
    assert (round(after.facts.mean[0], 4), round(after.facts.std[0], 4)) == (round(110 / 255, 4), round(100 / 255, 4))


def loaded_own(spec: DataSpec, folder: DataFolder) -> ImageData:
    return data.load(spec, prepare(spec, folder), CPU)


def test_known_sets_take_classes_size_and_channels(data_root: Path, mnist: ImageData) -> None:
    some = loaded(DataSpec("mnist", classes=(1, 7), size=(14, 10), channels=3), data_root)
    assert some.facts.shape == (3, 14, 10) and some.facts.classes == ("1", "7")
    assert len(some.train.labels) == 6742 + 6265 and set(some.train.labels.tolist()) == {0, 1}
    plane = some.test.images.pixels.view(-1, 3, 140)
    assert torch.equal(plane[:, 0], plane[:, 2])
    assert "data.classes" in refusal(DataSpec("mnist", classes=("1", "12")), data_root)


def test_the_small_digits_come_with_the_package(tmp_path: Path) -> None:
    found = loaded(DataSpec("digits"), tmp_path)
    assert found.facts.shape == (1, 8, 8) and found.facts.classes == tuple("0123456789")
    assert len(found.train.labels) + len(found.test.labels) == 1797


def test_classes_are_named_as_they_are_or_in_other_letters_or_by_number() -> None:
    facts = ImageFacts((1, 8, 8), ("T-shirt", "Shirt", "10", "Straße", "1"), (0.5,), (0.5,))
    assert facts.positions("k", ["shirt", "T-SHIRT", 10]) == (0, 1, 2)
    assert facts.positions("k", [3]) == facts.positions("k", ["STRASSE"]) == (3,)
    assert facts.positions("k", ["1"]) == (4,) and facts.others((1, 2)) == (0, 3, 4)
    for chosen, says in (
        (["shrit"], "k=shrit: no such class; did you mean Shirt?"),
        (["nothing"], "k=nothing: no such class; k can be T-shirt, Shirt, 10, Straße, 1"),
        ([11], "k=11: no such class; numbers are from 0 to 4"),
        (["Shirt", "shirt"], "k=Shirt,shirt: names a class twice"),
        ([1], "k=1: is the name of class number 4, and may be meant as a number; write the name as 'k=\"1\"', or use "),
    ):
        with pytest.raises(LoraExpError) as caught:
            facts.positions("k", chosen)
        assert str(caught.value).startswith(says)
    # Where all names are numbers, a number is a name.
    numbers = ImageFacts((1, 8, 8), ("2", "0", "1"), (0.5,), (0.5,))
    assert numbers.positions("k", [0, 2]) == (0, 1)


def test_a_root_that_cannot_be_written_to_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "root"
    with pytest.raises(LoraExpError, match=f"^data.root={root}: must be a folder that can be written to "):
        prepare(WHOLE, DataFolder(str(root)))


def test_a_split_keeps_images_and_labels_together() -> None:
    split = Split(Images(torch.arange(12, dtype=torch.uint8).view(4, 3), MNIST), torch.tensor([3, 1, 2, 0]))
    chosen = split.where(torch.tensor([2, 0]))
    assert chosen.images.pixels.tolist() == [[6, 7, 8], [0, 1, 2]] and chosen.labels.tolist() == [2, 3]
