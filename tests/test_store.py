"""python -m pytest tests/test_store.py"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lora_exp.errors import LoraExpError
from lora_exp.storage import leases
from lora_exp.storage import store as store_module
from lora_exp.storage.leases import held_and_abandoned, leased_folder, locked
from lora_exp.storage.store import ENTRY, DamagedError, Store

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


def test_entries_are_found_by_the_content_of_a_file(store: Store) -> None:
    others = {"ab": b"1", "cd": b"2", "ef": b"1"}
    for key, content in others.items():
        store.put("bases", key, {"name.txt": content})
    store.put("results", "12", {"name.txt": b"1"})
    assert list(store.holding("bases", "name.txt", b"1")) == ["ab", "ef"]
    assert list(store.holding("bases", "name.txt", b"3")) == list(store.holding("bases", "other.txt", b"1")) == []


def test_an_entry_is_on_disk_with_its_record_last_before_it_is_shown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that neither a crash of the machine nor a loss of power leaves an entry of half its content."""
    done: list[int | str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.fstat(descriptor).st_ino)

    def noted_rename(self: Path, target: Path) -> Path:
        done.append("shown")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    store.put("results", KEY, FILES)
    folder = entry(store)
    *files, own, parent = (
        path.stat().st_ino for path in [*(folder / n for n in (*FILES, ENTRY)), folder, folder.parent]
    )
    assert done == [*files, own, "shown", parent]


def test_of_two_that_find_the_same_damage_both_go_on(store: Store) -> None:
    store.put("results", KEY, FILES)
    first, second = (store.set_aside("results", KEY, "a test") for _ in range(2))
    assert (first / ENTRY).exists() and not second.exists()


def test_the_names_of_an_entry_are_told_only_if_all_of_its_files_are_there(store: Store) -> None:
    store.put("results", KEY, FILES)
    assert store.names("results", KEY) == list(FILES)
    (entry(store) / "two.json").unlink()
    with pytest.raises(DamagedError, match="a file is missing"):
        store.names("results", KEY)


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


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"kind": "results", "key": "KEY", "files": {}}',
        b'{"kind": "results", "key": "KEY", "files": []}',
        b'{"kind": "results", "key": "KEY", "files": {"../../../secret": "0"}}',
        b'{"kind": "results", "key": "KEY", "files": {"one.bin": 5}}',
        b'{"kind": "results", "key": "KEY", "files": {"a\\u0000b": "0"}}',
        b'{"kind": "bases", "key": "KEY", "files": {"one.bin": "0"}}',
        b'{"files": {"one.bin": "0"}}',
    ],
)
def test_any_other_record_of_an_entry_is_damage(store: Store, content: bytes) -> None:
    store.put("results", KEY, FILES)
    (entry(store) / ENTRY).write_bytes(content.replace(b"KEY", KEY.encode()))
    with pytest.raises(DamagedError):
        store.read("results", KEY)
    assert store.get("results", KEY) is None
    assert not store.has("results", KEY)


def test_of_200_entries_every_damaged_one_is_found_set_aside_and_made_anew(store: Store) -> None:
    dice = random.Random(0)
    made = {f"{number:064x}": {"a.bin": dice.randbytes(300), "b.json": dice.randbytes(30)} for number in range(200)}
    for key, files in made.items():
        store.put("results", key, files)
    damaged = dice.sample(sorted(made), 80)
    for at, key in enumerate(damaged):
        path = entry(store, key) / dice.choice(["a.bin", "b.json", ENTRY])
        other = entry(store, damaged[at - 1]) / path.name
        content = bytearray(path.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        flipped, cut = bytes(content), path.read_bytes()[: dice.randrange(1, path.stat().st_size)]
        path.write_bytes([flipped, cut, b"", other.read_bytes()][at % 4] if at else flipped)
    found = {key for key, files in made.items() if store.get("results", key) != files}
    assert found == set(damaged)
    assert len(list((store.root / "damaged").iterdir())) == len(damaged)
    for key in damaged:
        store.put("results", key, made[key])
    assert all(store.get("results", key) == files for key, files in made.items())


def test_an_entry_in_the_place_of_another_is_damage(store: Store) -> None:
    store.put("results", KEY, FILES)
    other = "cd" * 32
    entry(store, other).parent.mkdir()
    entry(store).rename(entry(store, other))
    with pytest.raises(DamagedError, match="another entry"):
        store.read("results", other)


def test_only_a_use_changes_the_time_of_last_use_and_it_takes_no_3_ms(store: Store) -> None:
    store.put("results", KEY, FILES)
    record = entry(store) / ENTRY
    os.utime(record, (0, 0))
    store.read("results", KEY)
    assert record.stat().st_mtime == 0
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        store.get("results", KEY)
        seconds.append(time.perf_counter() - started)
    assert time.time() - record.stat().st_mtime < 60
    assert min(seconds) < 3e-3


STEPS = (store_module.__file__, leases.__file__)


def after_lines(count: int, act: Callable[[], None]) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that acts before that many-th line of the store's own code, locking left out.

    A lock that its holder fails to let go of is free when its process ends, and so not in this test.
    """
    left = count

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in STEPS or frame.f_code.co_name == "locked":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                act()
        return trace

    return trace


def put_interrupted(store: Store, at_line: int, act: Callable[[], None]) -> bool:
    """Put an entry and act before a line of it; whether there was such a line."""
    reached = False

    def note() -> None:
        nonlocal reached
        reached = True
        sys.settrace(None)
        act()

    before = sys.gettrace()
    sys.settrace(after_lines(at_line, note))
    try:
        store.put("results", KEY, FILES)
    finally:
        sys.settrace(before)
    return reached


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_whatever_line_of_a_put_fails_there_is_a_whole_entry_or_none(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        raise error

    outcomes = []
    for line in range(1, 200):
        store = Store(tmp_path / f"store {line}")
        store.prepare()
        try:
            if not put_interrupted(store, line, fail):
                break
        except (OSError, KeyboardInterrupt):
            outcomes.append(store.read("results", KEY))
        store.prepare()
        assert list((store.root / "partial").iterdir()) == []
        store.put("results", KEY, FILES)
        assert store.get("results", KEY) == FILES
        assert not (store.root / "damaged").exists()
    assert len(outcomes) > 30  # it was every line
    assert None in outcomes and FILES in outcomes  # before and after the rename
    assert all(files in (None, FILES) for files in outcomes)
    assert outcomes == sorted(outcomes, key=bool)


def test_whatever_line_of_a_put_is_its_processs_last_there_is_a_whole_entry_or_none(tmp_path: Path) -> None:
    kills = []
    for line in range(1, 200, 3):
        store = Store(tmp_path / f"store {line}")
        store.prepare()
        process = multiprocessing.get_context("fork").Process(
            target=put_interrupted, args=(store, line, lambda: os.kill(os.getpid(), signal.SIGKILL))
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills.append(store.read("results", KEY))
        store.prepare()
        assert list((store.root / "partial").iterdir()) == []
        assert kills[-1] in (None, FILES)
    assert len(kills) > 10 and None in kills and FILES in kills


WRITER = """
import sys; from pathlib import Path; from lora_exp.storage.store import Store
store = Store(Path(sys.argv[1])); number = int(sys.argv[2]) * 1000
print("ready", flush=True)
while True:
    store.put("results", f"{number:064x}", {"a.bin": bytes(300_000), "b.bin": b"b" * 1000}); number += 1
"""


def test_a_writer_killed_at_random_moments_leaves_no_partial_entry_and_nothing_for_good(store: Store) -> None:
    dice = random.Random(1)
    left = 0
    for number in range(8):
        command = [sys.executable, "-c", WRITER, str(store.root), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(store_module.__file__).parents[2]) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(dice.uniform(0, 0.1))
            writer.kill()
        left += len(list((store.root / "partial").iterdir()))
        keys = [path.name for path in (store.root / "results").glob("*/*")]
        assert all(store.read("results", key) is not None for key in keys)
    store.prepare()
    assert left > 0 and list((store.root / "partial").iterdir()) == []


@pytest.fixture
def sleeper(store: Store) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of writing an entry."""
    code = """
import sys, time; from pathlib import Path; from lora_exp.storage.leases import leased_folder
with leased_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"x"); print("ready", flush=True); time.sleep(600)
"""
    command = [sys.executable, "-c", code, str(store.root / "partial")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(store_module.__file__).parents[2]) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_what_a_living_process_writes_is_left_alone_until_it_is_dead(
    store: Store, sleeper: subprocess.Popen[bytes]
) -> None:
    store.prepare()
    [folder] = (store.root / "partial").iterdir()
    assert held_and_abandoned(store.root / "partial") == ([folder], [])
    sleeper.kill()
    sleeper.wait()
    assert held_and_abandoned(store.root / "partial") == ([], [folder])
    store.prepare()
    assert not folder.exists()


def test_what_another_machine_writes_is_left_alone_for_a_day(store: Store) -> None:
    folder = store.root / "partial" / f"another-machine-{'0' * 32}"
    folder.mkdir()
    store.prepare()
    assert folder.exists()
    os.utime(folder, (time.time() - 90_000,) * 2)
    store.prepare()
    assert not folder.exists()


@pytest.mark.parametrize("act", ["make one", "look"])
def test_nobody_looks_while_a_folder_is_made_that_is_not_locked_yet(tmp_path: Path, act: str) -> None:
    done = threading.Event()

    def other() -> None:
        if act == "look":
            held_and_abandoned(tmp_path)
        else:
            with leased_folder(tmp_path):
                pass
        done.set()

    with locked(tmp_path):
        threading.Thread(target=other).start()
        assert not done.wait(0.1)
    assert done.wait(60)


def test_a_folder_moved_elsewhere_outlives_its_block(tmp_path: Path) -> None:
    with leased_folder(tmp_path / "parent") as folder:
        folder.rename(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir() and list((tmp_path / "parent").iterdir()) == []


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
    with pytest.raises(LoraExpError) as caught:
        Store(tmp_path / "file" / "store").prepare()
    assert "store.folder=" in str(caught.value) and "\n" not in str(caught.value)
