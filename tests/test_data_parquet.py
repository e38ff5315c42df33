"""pytest tests/test_data_parquet.py"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from lora_exp.data import parquet
from lora_exp.data.raw import RawData, Wanted
from lora_exp.errors import LoraExpError

NAMES = ["cat", "dog", "emu"]


def pixels(seed: int, height: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, 5, 3), np.uint8)


def png(seed: int, height: int = 6) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels(seed, height)).save(file, "PNG")
    return file.getvalue()


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [png(first + at) for at in range(count)]


def write(path: Path, columns: dict[str, Any], names: Sequence[str] | None = None, label: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        features = {label: {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7)


def structs(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(first + at), "path": f"{at}.png"} for at in range(count)]


def hugging_face(root: Path) -> Path:
    """As `save_to_disk` of a hub's data set: 30 rows of train in two files, 12 of validation, 15 of test."""
    labels = [at % 3 for at in range(30)]
    for at in range(2):
        columns = {"image": structs(15, 15 * at), "label": labels[15 * at : 15 * at + 15]}
        write(root / "data" / f"train-0000{at}-of-00002.parquet", columns, NAMES)
    for split, count, first in (("validation", 12, 100), ("test", 15, 200)):
        columns = {"image": structs(count, first), "label": labels[:count]}
        write(root / "data" / f"{split}-00000-of-00001.parquet", columns, NAMES)
    return root


def refusal(path: Path, wanted: Wanted | None = None) -> str:
    with pytest.raises(LoraExpError) as caught:
        parquet.read(path, wanted or Wanted())
    line = str(caught.value)
    assert "\n" not in line
    return line


def check_hugging_face(found: RawData) -> None:
    assert found.classes == tuple(NAMES)
    assert found.validation is not None
    for split, count, first in ((found.train, 30, 0), (found.validation, 12, 100), (found.test, 15, 200)):
        assert split.labels.tolist() == [at % 3 for at in range(count)]
        assert split.images.shape == (count, 3, 6, 5)
        for at in range(count):
            assert (split.images[at] == pixels(first + at).transpose(2, 0, 1)).all()


def test_a_folder_as_hugging_face_has_it_is_read_in_the_order_of_its_rows(tmp_path: Path) -> None:
    check_hugging_face(parquet.read(hugging_face(tmp_path), Wanted()))
    check_hugging_face(parquet.read(tmp_path / "data", Wanted()))


def test_a_file_or_a_folder_for_each_split_is_read(tmp_path: Path) -> None:
    data = hugging_face(tmp_path) / "data"
    files = sorted(data.iterdir())
    for file in files:
        split = file.name.split("-")[0]
        (tmp_path / "folders" / split).mkdir(parents=True, exist_ok=True)
        os.link(file, tmp_path / "folders" / split / file.name.removeprefix(f"{split}-"))
    check_hugging_face(parquet.read(tmp_path / "folders", Wanted()))
    (tmp_path / "plain").mkdir()
    for file in files:
        if "train" not in file.name:
            os.link(file, tmp_path / "plain" / f"{file.name.split('-')[0].replace('validation', 'val')}.parquet")
    pq.write_table(
        pa.concat_tables([pq.read_table(file) for file in files if "train" in file.name]),
        tmp_path / "plain/train.parquet",
    )
    (tmp_path / "plain" / "README.md").write_text("x")
    check_hugging_face(parquet.read(tmp_path / "plain", Wanted()))


def test_a_file_alone_is_split_by_what_its_pictures_are(tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    write(file, {"image": pictures(60), "label": [at % 2 for at in range(60)]})
    found = parquet.read(file, Wanted(test=0.3))
    assert len(found.train.labels) + len(found.test.labels) == 60
    assert found.classes == ("0", "1")
    order = np.random.default_rng(0).permutation(60)
    write(file, {"image": [png(at) for at in order], "label": [int(at) % 2 for at in order]})
    other = parquet.read(file, Wanted(test=0.3))
    assert {one.tobytes() for one in other.test.images} == {one.tobytes() for one in found.test.images}


def test_labels_of_text_are_classes_sorted_as_folders_are(tmp_path: Path) -> None:
    for labels in (["10", "9", "Bär"] * 10, pa.array(["10", "9", "Bär"] * 10).dictionary_encode()):
        for split, first in (("train", 0), ("test", 100)):
            write(tmp_path / f"{split}.parquet", {"img": pictures(30, first), "labels": labels})
        found = parquet.read(tmp_path, Wanted())
        assert found.classes == ("9", "10", "Bär")
        assert found.train.labels.tolist() == [1, 0, 2] * 10


def test_of_several_columns_the_usual_names_are_taken(tmp_path: Path) -> None:
    columns = {"id": list(range(30)), "thumb": [b"x"] * 30, "img": structs(30)}
    columns |= {"fine_label": [at % 3 for at in range(30)], "coarse_label": [at % 2 for at in range(30)]}
    write(tmp_path / "train.parquet", columns, NAMES, "fine_label")
    found = parquet.read(tmp_path, Wanted())
    assert found.classes == tuple(NAMES)


def test_classes_size_and_channels_are_as_wanted(tmp_path: Path) -> None:
    found = parquet.read(hugging_face(tmp_path), Wanted((3, 4), 1, ("emu", "cat")))
    assert found.classes == ("cat", "emu")
    assert found.train.images.shape == (20, 1, 3, 4)
    assert found.train.labels.tolist() == [0, 1] * 10


def no_such_file(root: Path) -> str:
    (root / "train.parquet").rename(root / "moved")
    (root / "test.parquet").unlink()
    return f"{root}: holds no parquet file; train.parquet and test.parquet, say, are read"


def no_train(root: Path) -> str:
    (root / "train.parquet").unlink()
    return f"{root}: has files of test and none of train"


def no_image_column(root: Path) -> str:
    write(root / "train.parquet", {"image": ["text"] * 3, "label": [0, 1, 0]})
    return f"{root}: has no column of pictures (bytes, or a struct with bytes); it has image (string), label (int64)"


def no_label_column(root: Path) -> str:
    write(root / "train.parquet", {"image": pictures(3), "label": [0.0, 1.0, 0.0]})
    return f"{root}: has no column of labels (integers or text); it has image (binary), label (double)"


def two_image_columns(root: Path) -> str:
    write(root / "train.parquet", {"left": pictures(3), "right": pictures(3), "label": [0, 1, 0]})
    return f"{root}: several columns could hold pictures (bytes, or a struct with bytes): left, right; name one 'image'"


def two_label_columns(root: Path) -> str:
    write(root / "train.parquet", {"image": pictures(3), "kind": [0, 1, 0], "age": [0, 1, 0]})
    return f"{root}: several columns could hold labels (integers or text): kind, age; name one 'label'"


def other_columns_in_test(root: Path) -> str:
    write(root / "test.parquet", {"image": pictures(3), "labels": [0, 1, 0]})
    return f"{root / 'test.parquet'}: has no column 'label' as the first file has it"


def text_in_test(root: Path) -> str:
    write(root / "test.parquet", {"image": pictures(3), "label": ["0", "1", "0"]})
    return f"{root}: labels are text in some splits and numbers in others"


def missing_label(root: Path) -> str:
    write(root / "train.parquet", {"image": pictures(3), "label": [0, None, 1]})
    return f"{root / 'train.parquet'}: label is missing in 1 rows; every picture needs a label"


def negative_label(root: Path) -> str:
    write(root / "test.parquet", {"image": pictures(3), "label": [-1, -1, -1]})
    return f"{root}: test: label -1 is negative; labels must count from 0"


def gap(root: Path) -> str:
    for split in ("train", "test"):
        write(root / f"{split}.parquet", {"image": pictures(3), "label": [0, 2, 0]})
    return f"{root}: no image has label 1, and one has label 2; labels must count from 0 without a gap"


def only_in_train(root: Path) -> str:
    write(root / "train.parquet", {"image": pictures(3), "label": [0, 2, 1]})
    return f"{root}: class '2' is in train and has no picture in test; every split must have every class"


def text_only_in_test(root: Path) -> str:
    write(root / "train.parquet", {"image": pictures(3), "label": ["a", "b", "a"]})
    write(root / "test.parquet", {"image": pictures(3), "label": ["a", "b", "c"]})
    return f"{root}: class 'c' is in test and has no picture in train; every split must have every class"


def only_case_differs(root: Path) -> str:
    for split in ("train", "test"):
        write(root / f"{split}.parquet", {"image": pictures(3), "label": ["a", "A", "c"]})
    return f"{root}: the classes 'A' and 'a' differ only in case; rename or merge them"


def one_class(root: Path) -> str:
    for split in ("train", "test"):
        write(root / f"{split}.parquet", {"image": pictures(3), "label": [0, 0, 0]})
    return f"{root}: has only the class '0'; at least 2 classes are needed"


def other_names(root: Path) -> str:
    write(root / "train.parquet", {"image": pictures(3), "label": [0, 1, 0]}, NAMES)
    return f"{root}: 3 class names for 2 classes; there must be as many"


def no_rows(root: Path) -> str:
    empty = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}
    write(root / "test.parquet", empty)
    return f"{root}: test: holds no image; at least one of each class is needed"


def other_sizes(root: Path) -> str:
    write(root / "test.parquet", {"image": [png(1), png(2, 9)], "label": [0, 1]})
    return (
        f"data.size: the pictures differ in size, {root}/train.parquet: row 0 has 6 x 5 and {root}/test.parquet: row 1 "
        "9 x 5; set data.size for all"
    )


def text(root: Path) -> str:
    (root / "test.parquet").write_text("no such file, and longer than its last bytes")
    return f"{root / 'test.parquet'}: is no whole parquet file ("


def cut(root: Path) -> str:
    content = (root / "test.parquet").read_bytes()
    (root / "test.parquet").write_bytes(content[: len(content) // 2])
    return f"{root / 'test.parquet'}: is no whole parquet file ("


STRUCTURE = [
    no_such_file,
    no_train,
    no_image_column,
    no_label_column,
    two_image_columns,
    two_label_columns,
    other_columns_in_test,
    text_in_test,
    missing_label,
    negative_label,
    gap,
    only_in_train,
    text_only_in_test,
    only_case_differs,
    one_class,
    other_names,
    no_rows,
    other_sizes,
    text,
    cut,
]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("spoil", STRUCTURE, ids=lambda case: case.__name__)
def test_files_that_are_no_data_set_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], str], skip_bad: bool
) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", {"image": pictures(10), "label": [at % 2 for at in range(10)]})
    assert parquet.read(tmp_path, Wanted()).classes == ("0", "1")
    said = spoil(tmp_path)
    assert refusal(tmp_path, Wanted(skip_bad=skip_bad)).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"text", "is no image; "), (None, "is empty"), (b"", "is empty"), (png(1)[:-40], "is damaged (")],
)
def test_a_bad_picture_is_refused_or_left_out_and_counted(tmp_path: Path, content: bytes | None, said: str) -> None:
    images = structs(10)
    images[3]["bytes"] = content
    write(tmp_path / "train.parquet", {"image": images, "label": [at % 2 for at in range(10)]})
    write(tmp_path / "test.parquet", {"image": structs(4), "label": [0, 1, 0, 1]})
    assert refusal(tmp_path).startswith(f"{tmp_path / 'train.parquet'}: row 3: {said}")
    found = parquet.read(tmp_path, Wanted(skip_bad=True))
    assert found.skipped == 1
    assert found.train.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_a_flipped_bit_is_refused_or_read_and_never_more_than_a_line(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    sound = file.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        content = bytearray(sound)
        content[random.integers(len(sound))] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
        try:
            parquet.read(tmp_path, Wanted())
        except LoraExpError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: there is no such file or folder"


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    line = refusal(hugging_face(tmp_path), Wanted(size=(100_000, 1_000_000)))
    assert "57 images of 100000 x 1000000 x 3 need 17,100.0 GB of memory and " in line
