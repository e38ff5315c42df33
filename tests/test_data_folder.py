"""pytest tests/test_data_folder.py"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lora_exp.data import decoding, folder
from lora_exp.data.pictures import BadPicture
from lora_exp.data.raw import RawData, Wanted
from lora_exp.errors import LoraExpError


def pixels(seed: int, height: int = 6, width: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def draw(path: Path, seed: int, height: int = 6, width: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path)


def draw_set(
    root: Path, splits: tuple[str, ...] = ("train", "test"), classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
    """Two pictures of each class in each split; the seed of each is its place among all."""
    seed = 0
    for split in splits:
        for name in classes:
            for at in range(2):
                draw(root / split / name / f"{at}.png", seed)
                seed += 1
    return root


def refusal(root: Path, wanted: Wanted | None = None) -> str:
    with pytest.raises(LoraExpError) as caught:
        folder.read(root, wanted or Wanted())
    line = str(caught.value)
    assert "\n" not in line
    return line


def equal(one: RawData, other: RawData) -> bool:
    pairs = [(one.train, other.train), (one.test, other.test)]
    return all((a.images == b.images).all() and (a.labels == b.labels).all() for a, b in pairs)


def test_pictures_are_read_by_split_class_and_name(tmp_path: Path) -> None:
    found = folder.read(draw_set(tmp_path, ("train", "test", "validation")), Wanted())
    assert found.classes == ("cat", "dog")
    assert (found.train.images.shape, found.train.images.dtype) == ((4, 3, 6, 5), np.uint8)
    assert (found.train.labels.tolist(), found.train.labels.dtype) == ([0, 0, 1, 1], np.int64)
    assert found.validation is not None
    for split, first in ((found.train, 0), (found.test, 4), (found.validation, 8)):
        for at in range(4):
            assert (split.images[at] == pixels(first + at).transpose(2, 0, 1)).all()
    assert found.skipped == 0


def test_val_is_another_name_of_validation(tmp_path: Path) -> None:
    draw_set(tmp_path, ("train", "test", "val"))
    assert folder.read(tmp_path, Wanted()).validation is not None
    (tmp_path / "validation").mkdir()
    assert refusal(tmp_path) == f"{tmp_path}: has both val/ and validation/; keep one of them"


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    plain = folder.read(draw_set(tmp_path / "set"), Wanted())
    (tmp_path / "linked" / "train" / "cat").mkdir(parents=True)
    for at in range(2):
        (tmp_path / "linked" / "train" / "cat" / f"{at}.png").symlink_to(
            tmp_path / "set" / "train" / "cat" / f"{at}.png"
        )
    (tmp_path / "linked" / "train" / "dog").symlink_to(tmp_path / "set" / "train" / "dog")
    (tmp_path / "linked" / "test").symlink_to(tmp_path / "set" / "test")
    assert equal(folder.read(tmp_path / "linked", Wanted()), plain)


def test_classes_are_sorted_numbers_by_value_and_then_names(tmp_path: Path) -> None:
    draw_set(tmp_path, classes=("10", "9", "0", "zebra", "Ärger mit Pferd", "apple pie"))
    found = folder.read(tmp_path, Wanted())
    assert found.classes == ("0", "9", "10", "apple pie", "zebra", "Ärger mit Pferd")


def test_umlauts_are_one_name_however_they_are_written(tmp_path: Path) -> None:
    one, other = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))
    draw_set(tmp_path, ("train",), ("Hund", one))
    draw_set(tmp_path, ("test",), ("Hund", other))
    assert folder.read(tmp_path, Wanted(classes=("Hund", other))).classes == (one, "Hund")
    draw(tmp_path / "train" / other / "0.png", 0)
    assert "two folders are named 'Bär', in other Unicode forms" in refusal(tmp_path)


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    draw_set(tmp_path, classes=("Cat", "cat", "dog"))
    assert refusal(tmp_path) == f"{tmp_path}: the classes 'Cat' and 'cat' differ only in case; rename or merge them"


@pytest.mark.parametrize("name", ["two\nlines", "  ", os.fsdecode(b"\xff\xfe")])
def test_a_class_name_that_is_no_text_in_one_line_is_refused(tmp_path: Path, name: str) -> None:
    draw_set(tmp_path, classes=("cat", name))
    assert "must be text in one line; rename it" in refusal(tmp_path)


def test_a_subset_of_the_classes_keeps_the_order_of_the_source(tmp_path: Path) -> None:
    draw_set(tmp_path, classes=("a", "b", "c", "d"))
    (tmp_path / "train" / "b" / "0.png").write_text("not wanted, so never read")
    found = folder.read(tmp_path, Wanted(classes=("d", "a", "c")))
    assert found.classes == ("a", "c", "d")
    assert found.train.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "dgo"), "has no class 'dgo'; did you mean 'dog'?"),
        (("cat", "zzzzz"), "has no class 'zzzzz'; it has 'cat', 'dog'"),
        (("cat", "cat"), "data.classes: 'cat' is named twice; name each class once"),
        (("cat",), "has only the class 'cat'; at least 2 classes are needed"),
        ((), "has no class; at least 2 classes are needed"),
    ],
)
def test_wanted_classes_that_cannot_be_had_are_refused(tmp_path: Path, classes: tuple[str, ...], said: str) -> None:
    line = refusal(draw_set(tmp_path), Wanted(classes=classes))
    assert line.startswith("data.classes") and said in line


def test_without_a_split_a_file_keeps_its_side_whatever_is_added(tmp_path: Path) -> None:
    for at in range(60):
        draw(tmp_path / f"{at % 2}" / f"{at:03}.png", at)
    before = folder.read(tmp_path, Wanted(test=0.3))
    for at in range(60, 120):
        draw(tmp_path / f"{at % 2}" / f"{at:03}.png", at)
    after = folder.read(tmp_path, Wanted(test=0.3))
    for old, new in ((before.train, after.train), (before.test, after.test)):
        assert {one.tobytes() for one in old.images} < {one.tobytes() for one in new.images}
    assert len(after.train.labels) + len(after.test.labels) == 120
    assert 15 < len(after.test.labels) < 60
    for split in (after.train, after.test):
        assert split.labels.tolist() == sorted(split.labels.tolist())


def test_without_test_the_pictures_of_train_are_split(tmp_path: Path) -> None:
    for at in range(40):
        draw(tmp_path / "train" / f"{at % 2}" / f"{at}.png", at)
        draw(tmp_path / "val" / f"{at % 2}" / f"{at}.png", 100 + at)
    found = folder.read(tmp_path, Wanted())
    assert found.validation is not None and len(found.validation.labels) == 40
    assert len(found.train.labels) + len(found.test.labels) == 40
    shutil.rmtree(tmp_path / "val")
    assert equal(folder.read(tmp_path, Wanted()), found)
    shutil.move(tmp_path / "train", tmp_path / "flat")
    assert equal(folder.read(tmp_path / "flat", Wanted()), found)


def test_a_class_of_which_no_picture_is_drawn_for_a_split_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png", 1)
    for at in range(30):
        draw(tmp_path / "b" / f"{at}.png", at)
    assert "class 'a' has no picture in " in (line := refusal(tmp_path))
    assert "with data.test=0.2, nor for " in line


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(tmp_path: Path, share: float) -> None:
    draw_set(tmp_path, ("train",))
    assert refusal(tmp_path, Wanted(test=share)) == f"data.test={share}: must be above 0 and below 1"


def test_hidden_files_and_those_of_systems_are_ignored(tmp_path: Path) -> None:
    draw_set(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (tmp_path / "train" / "cat" / name).write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "LICENSE").write_text("x")
    (tmp_path / "train" / "files.csv").write_text("x")
    assert folder.read(tmp_path, Wanted()).train.labels.tolist() == [0, 0, 1, 1]


def no_such_folder(root: Path) -> str:
    shutil.rmtree(root)
    return f"{root}: there is no such folder"


def a_file(root: Path) -> str:
    shutil.rmtree(root)
    root.write_text("x")
    return f"{root}: is a file; a folder with a folder for each class is needed"


def nothing(root: Path) -> str:
    shutil.rmtree(root)
    root.mkdir()
    return f"{root}: has no folder; each class is a folder of pictures, named for the class"


def an_empty_class(root: Path) -> str:
    for path in (root / "train" / "cat").iterdir():
        path.unlink()
    return f"{root}/train/cat: holds no picture; add some, or remove the class"


def a_class_only_in_train(root: Path) -> str:
    draw(root / "train" / "emu" / "0.png", 9)
    return f"{root}: class 'emu' is in train and has no picture in test; every split must have every class"


def a_class_only_in_test(root: Path) -> str:
    draw(root / "test" / "emu" / "0.png", 9)
    return f"{root}: class 'emu' is in test and has no picture in train; every split must have every class"


def a_class_not_in_validation(root: Path) -> str:
    draw(root / "val" / "cat" / "0.png", 9)
    return f"{root}: class 'dog' is in train and has no picture in validation; every split must have every class"


def one_class(root: Path) -> str:
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "test" / "dog")
    return f"{root}: has only the class 'cat'; at least 2 classes are needed"


def no_train(root: Path) -> str:
    shutil.rmtree(root / "train")
    return f"{root}: has test/ but no train/; put the training pictures into train/CLASS/"


def a_split_in_capitals(root: Path) -> str:
    (root / "test").rename(root / "Test")
    return f"{root}/Test: must be named 'test', in lower case"


def a_folder_in_a_class(root: Path) -> str:
    (root / "train" / "cat" / "more").mkdir()
    return f"{root}/train/cat/more: is a folder; pictures must lie in the folder of their class"


def a_pipe(root: Path) -> str:
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    return f"{root}/train/cat/pipe.png: is neither a file nor a folder; remove it"


def a_link_to_itself(root: Path) -> str:
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    return f"{root}/train/cat/loop.png: is a link that can't be followed (Too many levels of symbolic links)"


def a_link_to_nothing(root: Path) -> str:
    (root / "train" / "cat" / "gone.png").symlink_to("nowhere.png")
    return f"{root}/train/cat/gone.png: is a link that can't be followed (No such file or directory)"


def a_link_up(root: Path) -> str:
    (root / "train" / "emu").symlink_to(root / "train")
    return f"{root}/train/emu: is a link to a folder that holds it; remove the link"


def a_link_up_from_a_class(root: Path) -> str:
    (root / "train" / "cat" / "up").symlink_to("..")
    return f"{root}/train/cat/up: is a link to a folder that holds it; remove the link"


def other_sizes(root: Path) -> str:
    draw(root / "test" / "dog" / "1.png", 1, height=9)
    return (
        f"data.size: the pictures differ in size, {root}/train/cat/0.png has 6 x 5 and {root}/test/dog/1.png 9 x 5; "
        "set data.size for all"
    )


STRUCTURE = [
    no_such_folder,
    a_file,
    nothing,
    an_empty_class,
    a_class_only_in_train,
    a_class_only_in_test,
    a_class_not_in_validation,
    one_class,
    no_train,
    a_split_in_capitals,
    a_folder_in_a_class,
    a_pipe,
    a_link_to_itself,
    a_link_to_nothing,
    a_link_up,
    a_link_up_from_a_class,
    other_sizes,
]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("break_it", STRUCTURE, ids=lambda case: case.__name__)
def test_folders_that_are_no_data_set_are_refused_in_one_line(
    tmp_path: Path, break_it: Callable[[Path], str], skip_bad: bool
) -> None:
    root = draw_set(tmp_path / "set")
    said = break_it(root)
    assert refusal(root, Wanted(skip_bad=skip_bad)).startswith(said)


def text(path: Path) -> str:
    path.write_text("no image")
    return "is no image; PNG, JPEG, BMP, GIF, TIFF, WEBP are read"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "is empty"


def truncated(path: Path) -> str:
    Image.fromarray(pixels(1)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-30])
    return "is damaged (image file is truncated"


def say_size(path: Path, width: int, height: int) -> None:
    """Write another size into the header of a PNG, with the checksum that belongs to it."""
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4) + height.to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    path.write_bytes(content)


def huge(path: Path) -> str:
    say_size(path, 20_000, 10_000)
    return "has 200 megapixels; at most 50 are read"


def no_pixels(path: Path) -> str:
    say_size(path, 0, 6)
    return "has no pixels"


BAD_FILES = [text, empty, truncated, huge, no_pixels]


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(size=(6, 5), channels=3)], ids=["open", "given"])
@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda case: case.__name__)
def test_a_bad_file_is_refused_or_left_out_and_counted(
    tmp_path: Path, spoil: Callable[[Path], str], wanted: Wanted
) -> None:
    root = draw_set(tmp_path)
    file = root / "train" / "dog" / "0.png"
    said = spoil(file)
    line = refusal(root, wanted)
    assert line.startswith(f"{file}: {said}")
    assert line.endswith("; replace it, or leave bad pictures out with data.skip_bad=true")
    found = folder.read(root, Wanted(wanted.size, wanted.channels, skip_bad=True))
    assert found.skipped == 1
    assert found.train.labels.tolist() == [0, 0, 1]
    assert (found.train.images[2] == pixels(3).transpose(2, 0, 1)).all()


def test_one_picture_of_colour_makes_all_have_three_channels(tmp_path: Path) -> None:
    root = draw_set(tmp_path)
    for file in sorted(root.rglob("*.png"))[:-1]:
        Image.open(file).convert("L").save(file)
    found = folder.read(root, Wanted())
    assert found.train.images.shape == found.test.images.shape == (4, 3, 6, 5)
    assert sum((image == image[:1]).all() for image in (*found.train.images, *found.test.images)) == 7
    last = max(root.rglob("*.png"))
    Image.open(last).convert("L").save(last)
    assert folder.read(root, Wanted()).train.images.shape == (4, 1, 6, 5)
    assert folder.read(root, Wanted(channels=3)).train.images.shape == (4, 3, 6, 5)


def test_a_class_whose_files_are_all_bad_is_refused_with_skip_bad_too(tmp_path: Path) -> None:
    root = draw_set(tmp_path)
    for file in (root / "train" / "dog").iterdir():
        file.write_text("x")
    line = refusal(root, Wanted(skip_bad=True))
    assert line == f"{root}: class 'dog' has no picture in train: no picture of it can be read"
    for file in root.rglob("*.png"):
        file.write_text("x")
    assert refusal(root, Wanted(skip_bad=True)) == f"{root}: none of its pictures can be read"


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    line = refusal(draw_set(tmp_path), Wanted(size=(500_000, 1_000_000), channels=3))
    assert line.startswith(f"{tmp_path}: 8 images of 500000 x 1000000 x 3 need 12,000.0 GB of memory and ")
    assert "GB are available; choose a smaller data.size" in line


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    draw(file, 0)
    status = file.stat()
    seen = (status.st_size, status.st_mtime_ns)
    assert decoding.file_content(str(file), seen) == file.read_bytes()
    os.utime(file, ns=(0, 0))
    with pytest.raises(LoraExpError, match="changed while the data set was read"):
        decoding.file_content(str(file), seen)
    file.unlink()
    with pytest.raises(LoraExpError, match="changed while the data set was read"):
        decoding.file_content(str(file), seen)


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(decoding.MOST_BYTES + 1)
    with pytest.raises(BadPicture, match="has 400 MB; a file of at most 400 MB is read"):
        decoding.file_content(str(tmp_path / "large.png"), (decoding.MOST_BYTES + 1, 0))


READ = """
import os, sys
from pathlib import Path
from lora_exp.data import folder
from lora_exp.data.raw import Wanted
from lora_exp.errors import LoraExpError
import multiprocessing.context, numpy, PIL.Image, psutil, tqdm  # which another user may not be able to read

PIL.Image.init()
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(folder.read(Path(sys.argv[1]), Wanted(skip_bad='skip' in sys.argv)).skipped)
except LoraExpError as error:
    print(error)
"""


def read_without_rights(root: Path, *arguments: str) -> str:
    """What another user's process says that reads `root`."""
    done = subprocess.run([sys.executable, "-c", READ, str(root), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_what_may_not_be_read_is_refused_in_one_line() -> None:
    root = Path(subprocess.check_output(["mktemp", "-d", "/tmp/lora-exp-rights-XXXXXX"], text=True).strip())
    try:
        root.chmod(0o755)
        draw_set(root)
        assert read_without_rights(root) == "0"
        file = root / "train" / "cat" / "0.png"
        file.chmod(0)
        assert read_without_rights(root).startswith(f"{file}: can't be read (Permission denied)")
        assert read_without_rights(root, "skip") == "1"
        file.parent.chmod(0)
        assert read_without_rights(root, "skip") == f"{file.parent}: can't be read (Permission denied)"
    finally:
        (root / "train" / "cat").chmod(0o755)
        shutil.rmtree(root)


def test_a_pictures_place_in_memory_is_not_much_more_than_its_pixels(tmp_path: Path) -> None:
    for at in range(40):
        draw(tmp_path / f"{at % 2}" / f"{at}.png", at)
    found = folder.read(tmp_path, Wanted(size=(64, 64), channels=1))
    assert found.train.images.shape[1:] == (1, 64, 64)
    assert found.train.images.flags.c_contiguous and found.test.images.flags.c_contiguous
