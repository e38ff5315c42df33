"""python -m pytest tests/test_store.py"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from lora_exp.store import ENTRY, Store, StoreError

KEY = "ab" * 32
FILES = {"one.bin": b"1" * 1000, "two.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store with spaces")
    made.prepare()
    return made


def entry(store: Store, key: str = KEY) -> Path:
    return store.root / "results" / key[:2] / key


def test_what_was_put_is_what_is_got(store: Store) -> None:
    assert store.get("results", KEY) is None
    store.put("results", KEY, FILES)
    assert store.get("results", KEY) == FILES
    assert store.has("results", KEY)
    assert not store.has("bases", KEY)


def test_no_partial_entry_is_left_after_a_put(store: Store) -> None:
    store.put("results", KEY, FILES)
    store.put("results", KEY, FILES)
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.parametrize("name", [*FILES, ENTRY])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove", "swap"])
def test_a_damaged_entry_is_set_aside_and_can_be_made_anew(store: Store, name: str, damage: str) -> None:
    store.put("results", KEY, FILES)
    path = entry(store) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "swap":
        path.write_bytes(b"[" + bytes(content))
    else:
        path.unlink()
    assert store.get("results", KEY) is None
    assert len(list((store.root / "damaged").iterdir())) == 1
    store.put("results", KEY, FILES)
    assert store.get("results", KEY) == FILES


def test_a_put_that_fails_half_way_leaves_nothing_readable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_exp.store.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.put("results", KEY, FILES)
    assert store.get("results", KEY) is None
    assert list((store.root / "partial").iterdir()) == []


def _put(root: Path, number: int) -> None:
    Store(root).put("results", KEY, {"who.txt": str(number).encode()})


def test_of_racing_writers_one_wins_and_none_fails(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put, args=(store.root, number)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 6
    files = store.get("results", KEY)
    assert files is not None and files["who.txt"] in [str(number).encode() for number in range(6)]


def test_a_folder_that_cannot_be_made_is_one_line_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file" / "store").prepare()
    assert "store.folder=" in str(caught.value) and "\n" not in str(caught.value)
