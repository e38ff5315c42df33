"""pytest tests/test_data_source.py"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_exp.data.source import fingerprint
from lora_exp.errors import LoraExpError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train/cat/0.png", "train/dog/1.png", "test/cat/ä.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(name)
    return tmp_path / "set"


def touch(folder: Path) -> None:
    os.utime(folder / "train/cat/0.png", ns=(1, 1))


def rename(folder: Path) -> None:
    (folder / "train/cat/0.png").rename(folder / "train/cat/2.png")


def grow(folder: Path) -> None:
    file = folder / "train/cat/0.png"
    times = file.stat()
    file.write_text("another content, longer, with the same time")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def add(folder: Path) -> None:
    (folder / "new").write_text("")


def add_folder(folder: Path) -> None:
    (folder / "train/emu").mkdir()


def remove(folder: Path) -> None:
    (folder / "train/cat/0.png").unlink()


@pytest.mark.parametrize("change", [touch, rename, grow, add, add_folder, remove], ids=lambda case: case.__name__)
def test_any_change_of_a_folder_changes_its_fingerprint(folder: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    change(folder)
    assert fingerprint(folder) != before


def test_where_a_folder_lies_and_what_readers_ignore_do_not_matter(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    (folder / "train" / "Thumbs.db").write_text("x")
    (folder / ".DS_Store").write_text("x")
    shutil.move(folder, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == before
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert fingerprint(tmp_path / "link") == before


def test_a_file_has_a_fingerprint_too(folder: Path) -> None:
    file = folder / "train/cat/0.png"
    before = fingerprint(file)
    touch(folder)
    assert fingerprint(file) != before


def refusal(path: Path) -> str:
    with pytest.raises(LoraExpError) as caught:
        fingerprint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_listed_is_refused_in_one_line(folder: Path) -> None:
    assert refusal(folder / "none") == f"{folder / 'none'}: can't be read (No such file or directory)"
    (folder / "loop").symlink_to("loop")
    assert refusal(folder) == f"{folder / 'loop'}: can't be read (Too many levels of symbolic links)"
    (folder / "loop").unlink()
    (folder / "train" / "up").symlink_to(folder)
    assert refusal(folder) == f"{folder / 'train/up'}: is a link to a folder that holds it; remove the link"


def test_two_links_to_one_folder_are_no_loop(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).symlink_to("train")
    assert len(fingerprint(folder)) == 64


def test_sixty_thousand_files_take_less_than_a_second(tmp_path: Path) -> None:
    for at in range(10):
        (tmp_path / str(at)).mkdir()
        for number in range(6000):
            os.close(os.open(f"{tmp_path}/{at}/{number}.png", os.O_CREAT))
    started = time.process_time()  # of this process: other tests want the machine too
    fingerprint(tmp_path)
    took = time.process_time() - started
    shutil.rmtree(tmp_path)
    assert took < 1
