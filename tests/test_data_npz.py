"""pytest tests/test_data_npz.py"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lora_exp.data import npz
from lora_exp.data.raw import RawData, Wanted
from lora_exp.errors import LoraExpError

Arrays = dict[str, NDArray[Any]]


def medmnist(channels: tuple[int, ...] = (3,), classes: int = 3) -> Arrays:
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for split, count in (("train", 30), ("val", 12), ("test", 15)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 6, 5, *channels), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, np.newaxis]
    return arrays


def keras(dtype: str = "uint8") -> Arrays:
    arrays = medmnist(())
    return {
        f"{kind}_{split}": arrays[f"{split}_{name}"].astype(dtype) if kind == "x" else arrays[f"{split}_{name}"][:, 0]
        for split in ("train", "test")
        for kind, name in (("x", "images"), ("y", "labels"))
    }


def read(tmp_path: Path, arrays: Arrays, wanted: Wanted | None = None) -> RawData:
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    return npz.read(tmp_path / "set.npz", wanted or Wanted())


def refusal(tmp_path: Path, arrays: Arrays | None, wanted: Wanted | None = None) -> str:
    with pytest.raises(LoraExpError) as caught:
        if arrays is None:
            npz.read(tmp_path / "set.npz", wanted or Wanted())
        else:
            read(tmp_path, arrays, wanted)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_the_files_of_medmnist_are_read(tmp_path: Path, channels: tuple[int, ...]) -> None:
    found = read(tmp_path, arrays := medmnist(channels))
    assert found.validation is not None
    for split, name in ((found.train, "train"), (found.validation, "val"), (found.test, "test")):
        images = arrays[f"{name}_images"]
        images = images[..., np.newaxis] if not channels else images
        assert (split.images.transpose(0, 2, 3, 1) == images).all()
        assert (split.labels == arrays[f"{name}_labels"][:, 0]).all()
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
    assert found.classes == ("0", "1", "2")


def test_the_files_of_keras_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, arrays := keras())
    assert (found.test.images[:, 0] == arrays["x_test"]).all()
    assert found.validation is None
    assert (
        read(tmp_path, arrays | {"x_train": np.asfortranarray(arrays["x_train"])}).train.images == found.train.images
    ).all()


def test_floats_are_read_from_0_to_1_and_from_0_to_255(tmp_path: Path) -> None:
    whole = read(tmp_path, keras())
    for dtype in ("float16", "float32", "float64", ">f4"):
        same = read(tmp_path, keras(dtype))
        assert (same.train.images == whole.train.images).all()
        scaled = {name: values / 255 if name[0] == "x" else values for name, values in keras(dtype).items()}
        assert np.abs(read(tmp_path, scaled).train.images.astype(int) - whole.train.images).max() <= (
            dtype == "float16"
        )


def test_the_scale_of_floats_is_that_of_the_whole_file(tmp_path: Path) -> None:
    arrays = keras("float32")
    arrays["x_test"] = np.minimum(arrays["x_test"], 1)
    assert read(tmp_path, arrays).test.images.max() == 1


def test_without_a_test_split_images_are_split_by_their_values(tmp_path: Path) -> None:
    arrays = {name: values for name, values in medmnist().items() if not name.startswith("test")}
    found = read(tmp_path, arrays, Wanted(test=0.4))
    assert len(found.train.labels) + len(found.test.labels) == 30
    assert found.validation is not None and len(found.validation.labels) == 12
    order = np.random.default_rng(1).permutation(30)
    arrays |= {name: arrays[name][order] for name in ("train_images", "train_labels")}
    other = read(tmp_path, arrays, Wanted(test=0.4))
    assert {one.tobytes() for one in other.test.images} == {one.tobytes() for one in found.test.images}


def test_names_of_classes_are_in_an_array_of_text(tmp_path: Path) -> None:
    for names in (np.array(["cat", "dog", "emu"]), np.array([b"cat", b"dog", b"emu"])):
        found = read(tmp_path, medmnist() | {"class_names": names}, Wanted(classes=("emu", "cat")))
        assert found.classes == ("cat", "emu")
        assert (found.train.labels.tolist(), len(found.train.labels)) == ([0, 1] * 10, 20)
        assert (found.train.images[1] == medmnist()["train_images"][2].transpose(2, 0, 1)).all()


def test_images_get_the_wanted_size_and_channels(tmp_path: Path) -> None:
    found = read(tmp_path, arrays := medmnist(), Wanted(size=(3, 4), channels=1))
    assert found.train.images.shape == (30, 1, 3, 4)
    expected = Image.fromarray(arrays["train_images"][7]).convert("L").resize((4, 3), Image.Resampling.BILINEAR)
    assert (found.train.images[7, 0] == np.asarray(expected)).all()
    grey = read(tmp_path, medmnist(()), Wanted(channels=3))
    assert (grey.train.images == grey.train.images[:, :1]).all() and grey.train.images.shape[1] == 3


def test_one_split_of_colour_makes_all_have_three_channels(tmp_path: Path) -> None:
    arrays = medmnist(()) | {name: values for name, values in medmnist().items() if name.startswith("test")}
    assert read(tmp_path, arrays).train.images.shape == (30, 3, 6, 5)


def with_nan() -> NDArray[Any]:
    images = medmnist()["train_images"] / 255
    images[29, 2, 2, 1] = np.nan
    return images


TRAIN = medmnist()["train_images"]
LABELS = medmnist()["train_labels"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_labels": LABELS[:-1]}, "train_labels: 29 labels for 30 images; there must be as many"),
        ({"train_labels": LABELS.astype(float)}, "train_labels: labels are of type float64; they must be integers"),
        ({"train_labels": LABELS.astype(str)}, "train_labels: labels are of type <U3; they must be integers"),
        ({"train_labels": LABELS.astype(int) - 1}, "train_labels: label -1 is negative; labels must count from 0"),
        ({"train_labels": np.full(30, 2**63, np.uint64)}, "train_labels: label 9223372036854775808 is too large; "),
        ({"train_labels": np.ones((30, 14), int)}, "train_labels: labels have the shape [30, 14]; one label an image "),
        ({"train_labels": np.array(1)}, "train_labels: labels have the shape []; one label an image"),
        ({"train_labels": np.zeros((30, 1), int)}, "class '1' is in validation and has no picture in train; every "),
        ({"test_labels": np.arange(15)}, "class '3' is in test and has no picture in train; every split must have "),
        ({"train_images": with_nan()}, "train images hold NaN; floats must be from 0 to 1 or from 0 to 255"),
        ({"train_images": TRAIN - 1.0}, "train images hold values from -1 to 254; floats must be from 0 to 1 or "),
        ({"train_images": np.full(TRAIN.shape, np.inf)}, "train images hold values from inf to inf; floats must be "),
        ({"train_images": TRAIN.astype(np.int64)}, "train images are of type int64; uint8, or floats, are read"),
        ({"train_images": TRAIN.astype(complex)}, "train images are of type complex128; uint8, or floats, are read"),
        ({"train_images": TRAIN.transpose(0, 3, 1, 2)}, "train images have the shape [3, 6, 5]; each must be "),
        ({"train_images": TRAIN[:, 0, 0, 0]}, "train images have the shape []; each must be [height, width] or "),
        ({"train_images": TRAIN[:, :0]}, "train images have no pixels: the shape of each is [0, 5, 3]"),
        ({"train_images": TRAIN[:, :4]}, "has train images of 4 x 5 and validation images of 6 x 5; set data.size "),
        ({"train_images": TRAIN[:0], "train_labels": LABELS[:0]}, "train_labels: holds no image; at least one of "),
        ({"train_images": np.array([{}, []], object)}, "train_images holds Python objects, which could run code; "),
        ({"class_names": np.array(["cat", "dog"])}, "2 class names for 3 classes; there must be as many"),
        ({"class_names": np.array(["cat", "Cat", "dog"])}, "the classes 'cat' and 'Cat' differ only in case; rename "),
        ({"class_names": np.array(["cat", "cat", "dog"])}, "the classes 'cat' and 'cat' are the same; rename "),
        ({"class_names": np.arange(3)}, "class_names must be an array [classes] of text"),
        ({"class_names": np.array([b"\xff", b"a", b"b"])}, "class_names must be text in UTF-8"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused_in_one_line(tmp_path: Path, changed: Arrays, said: str) -> None:
    line = refusal(tmp_path, medmnist() | changed)
    assert str(tmp_path / "set.npz") in line and said in line


def test_labels_with_a_gap_are_refused(tmp_path: Path) -> None:
    arrays = medmnist()
    for name in ("train_labels", "val_labels", "test_labels"):
        arrays[name] = arrays[name] * 2
    assert "no image has label 1, and one has label 4; labels must count from 0 without a gap" in refusal(
        tmp_path, arrays
    )


def test_one_class_is_refused(tmp_path: Path) -> None:
    assert "only the class '0'; at least 2 classes are needed" in refusal(tmp_path, medmnist(classes=1))


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    arrays = medmnist()
    del arrays["test_labels"]
    assert refusal(tmp_path, arrays).endswith("has test_images but no test_labels; both are needed")
    assert refusal(tmp_path, {"a": np.ones(3)}).endswith("has no array train_images or x_train; it has 'a'")
    assert refusal(tmp_path, {}).endswith("has no array train_images or x_train; it has none")


def test_a_wanted_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    line = refusal(
        tmp_path, medmnist() | {"class_names": np.array(["cat", "dog", "emu"])}, Wanted(classes=("dgo", "cat"))
    )
    assert line.endswith("set.npz has no class 'dgo'; did you mean 'dog'?")


def test_a_file_that_unpacks_to_more_than_fits_is_refused_before_it_is_read(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)})
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in medmnist(()).items():
            with archive.open(f"{name}.npy", "w") as member:
                if name == "train_images":
                    member.write(head.getvalue() + bytes(10**6))
                else:
                    np.lib.format.write_array(member, values)
    assert "set.npz: its arrays need 784.0 GB of memory and " in refusal(tmp_path, None)


def test_more_than_fits_once_it_is_resized_is_refused(tmp_path: Path) -> None:
    line = refusal(tmp_path, medmnist(), Wanted(size=(100_000, 1_000_000)))
    assert "57 images of 100000 x 1000000 x 3 need 17,100.0 GB of memory and " in line


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "npy", "none"])
def test_a_file_that_is_damaged_or_no_npz_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "set.npz"
    np.savez_compressed(file, **medmnist())
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 3] ^= 255
    file.unlink()
    if damage == "npy":
        np.save(tmp_path / "array.npy", TRAIN)
        (tmp_path / "array.npy").rename(file)
    elif damage != "none":
        file.write_bytes({"cut": content[:-100], "flipped": content, "text": b"text", "empty": b""}[damage])
    assert refusal(tmp_path, None).startswith((f"{file}: is no whole npz file (", f"{file}: can't be read ("))


def test_an_array_that_would_run_code_when_it_is_loaded_does_not(tmp_path: Path) -> None:
    code = f"import os; open({str(tmp_path / 'ran')!r}, 'w')"
    program = (
        "import sys, numpy as np\nclass Evil:\n    def __reduce__(self): return exec, (sys.argv[2],)\n"
        "arrays = dict(np.load(sys.argv[1])); arrays['class_names'] = np.array([Evil()] * 3, object)\n"
        "np.savez(sys.argv[1], **arrays)"
    )
    np.savez(tmp_path / "set.npz", **medmnist())
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "set.npz"), code], check=True)
    assert "class_names holds Python objects" in refusal(tmp_path, None)
    assert not (tmp_path / "ran").exists()


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.npz")
    assert refusal(tmp_path, None) == f"{tmp_path / 'set.npz'}: must be a file"
