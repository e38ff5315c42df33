"""python -m pytest tests/test_pruning.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forkserver
import pytest

from lora_exp.commands.store import verify_lines
from lora_exp.storage.leases import leased_folder
from lora_exp.storage.pruning import DAY, GIB, USERS, entries, kept_within, prune, verify
from lora_exp.storage.store import ENTRY, EntryId, Store

ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Results r1 to r4, used 40, 30, 20 and 10 days ago; base b1 of r1, b3 of r3, b9 of none, each used 50 days ago."""
    made = Store(tmp_path / "store")
    made.prepare()
    for name, base, days in (("r1", "b1", 40), ("r2", "gone", 30), ("r3", "b3", 20), ("r4", "gone", 10)):
        put(made, "results", name, {"a.bin": bytes(1000), "b.bin": b"content"}, days, [("bases", base)])
    for name in ("b1", "b3", "b9"):
        put(made, "bases", name, {"w.bin": bytes(5000)}, 50)
    return made


def put(
    store: Store, kind: str, name: str, files: dict[str, bytes], days_ago: float, needs: Sequence[EntryId] = ()
) -> None:
    store.put(kind, name, files, needs)
    for path in store.folder(kind, name).iterdir():
        os.utime(path, (time.time() - days_ago * DAY,) * 2)


def names(store: Store) -> set[str]:
    return {entry.key for entry in entries(store)}


def command(*arguments: str, code: int = 0) -> list[str]:
    done = forkserver.run(["store", *arguments], ROOT)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return (done.stdout or done.stderr).splitlines()


def test_an_entry_has_its_size_and_the_times_of_its_making_and_last_use(store: Store) -> None:
    [first] = [entry for entry in entries(store) if entry.key == "r1"]
    assert first.size == sum(path.stat().st_size for path in store.folder("results", "r1").iterdir())
    store.get("results", "r1")
    [later] = [entry for entry in entries(store) if entry.key == "r1"]
    assert later.used - first.used > 39 * DAY and later.made == first.made


def test_what_was_used_longest_ago_goes_first_and_bases_of_results_last(store: Store) -> None:
    assert [entry.key for entry in prune(store, to_size=0, dry_run=True)] == ["b9", "r1", "r2", "r3", "r4", "b1", "b3"]
    assert names(store) == {"r1", "r2", "r3", "r4", "b1", "b3", "b9"}
    sizes = {entry.key: entry.size for entry in entries(store)}
    wanted = sizes["r3"] + sizes["r4"] + sizes["b1"] + sizes["b3"]
    planned, removed = prune(store, to_size=wanted, dry_run=True), prune(store, to_size=wanted)
    assert planned == removed
    assert [entry.key for entry in removed] == ["b9", "r1", "r2"]
    assert names(store) == {"r3", "r4", "b1", "b3"}
    assert [entry.key for entry in prune(store, to_size=0)] == ["b1", "r3", "r4", "b3"]
    assert names(store) == set()
    assert list((store.root / "partial").iterdir()) == []


def test_an_entry_whose_removal_is_interrupted_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, calls = os.unlink, iter(range(100))

    def interrupted(*path: Any, **how: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        unlink(*path, **how)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(store, to_size=0)
    assert names(store) == {"r1", "r2", "r3", "r4", "b1", "b3"}
    assert verify(store) == (6, [])


def test_a_base_is_as_old_as_the_last_use_of_its_results(store: Store) -> None:
    assert {entry.key for entry in prune(store, unused_days=25)} == {"r1", "b1", "r2", "b9"}
    assert names(store) == {"r3", "b3", "r4"}


def test_results_from_before_entries_named_what_they_need_go_with_their_bases_by_last_use(store: Store) -> None:
    for name in ("r1", "r3"):
        record = store.folder("results", name) / ENTRY
        about, used = json.loads(record.read_bytes()), record.stat().st_mtime
        del about["needs"]
        record.write_text(json.dumps(about))
        os.utime(record, (used, used))
    assert [entry.key for entry in prune(store, to_size=0)] == ["b1", "b3", "b9", "r1", "r2", "r3", "r4"]


def test_a_record_that_can_not_be_read_needs_nothing(store: Store) -> None:
    assert store.needs("results", "r1") == [("bases", "b1")]
    for content in (b"", b"[]", b'{"needs": null}', b'{"needs": [1]}', b'{"needs": [["bases"]]}'):
        (store.folder("results", "r1") / ENTRY).write_bytes(content)
        assert store.needs("results", "r1") == []
    assert store.needs("results", "r9") == []
    assert "b1" in [entry.key for entry in prune(store, to_size=0)][:2]


def test_damaged_entries_are_counted_and_go_too(store: Store) -> None:
    aside = store.set_aside("results", "r4", "a test")
    assert aside.name in names(store)
    prune(store, to_size=0)
    assert names(store) == set()


def test_what_a_running_process_uses_stays(store: Store) -> None:
    with leased_folder(store.root / USERS):
        store.get("results", "r1")
        store.put("results", "r5", {"a.bin": b"made meanwhile"})
        with store.lock("bases", "b1"):
            prune(store, to_size=0)
        assert names(store) == {"r1", "r5", "b1"}
    prune(store, to_size=0)
    assert names(store) == set()


def test_what_was_used_since_the_oldest_running_process_began_stays(store: Store) -> None:
    with leased_folder(store.root / USERS) as older, leased_folder(store.root / USERS) as newer:
        for folder, days in ((older, 25), (newer, 5)):
            os.utime(folder, (time.time() - days * DAY,) * 2)
        prune(store, to_size=0)
    assert names(store) == {"r3", "r4", "b3"}


def test_an_entry_that_a_process_is_making_stays_however_old_it_is(store: Store) -> None:
    with store.lock("bases", "b9"):
        prune(store, to_size=0)
    assert names(store) == {"b9"}


def test_what_a_killed_process_used_does_not_stay(store: Store) -> None:
    code = """
import os, signal, sys; from pathlib import Path; from lora_exp.storage.leases import leased_folder
with leased_folder(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(store.root / USERS)], cwd=ROOT)
    store.get("results", "r1")
    assert len(list((store.root / USERS).iterdir())) == 1
    prune(store, to_size=0)
    assert names(store) == set()
    with kept_within(store, None):
        assert len(list((store.root / USERS).iterdir())) == 1


def test_after_a_run_the_store_is_within_its_limit_and_what_the_run_made_stays(store: Store) -> None:
    with kept_within(store, limit=0):
        store.get("results", "r4")
        store.put("results", "r5", {"a.bin": b"made in this run"})
        assert prune(store, to_size=0, dry_run=True)
    assert names(store) == {"r5"}
    with kept_within(store, limit=None):
        pass
    assert names(store) == {"r5"}
    with pytest.raises(ValueError, match="the run failed"), kept_within(store, limit=0):
        raise ValueError("the run failed")
    assert names(store) == set()


def test_the_limit_leaves_what_was_used_last(store: Store) -> None:
    sizes = {entry.key: entry.size for entry in entries(store)}
    with kept_within(store, limit=(sum(sizes.values()) - sizes["b9"]) / GIB):
        pass
    assert names(store) == {"r1", "r2", "r3", "r4", "b1", "b3"}


def test_verify_finds_names_and_sets_aside_what_is_damaged(store: Store) -> None:
    assert verify_lines(store) == (["7 entries checked, 0 damaged"], True)
    (store.folder("results", "r1") / "a.bin").write_bytes(b"\1" + bytes(999))
    (store.folder("bases", "b1") / ENTRY).unlink()
    lines, whole = verify_lines(store)
    assert not whole and lines[-1] == "7 entries checked, 2 damaged"
    assert sorted(line.split(";")[0] for line in lines[:-1]) == [
        "bases b1: a file is missing",
        "results r1: a.bin is damaged",
    ]
    assert verify(store) == (5, [])
    assert len(list((store.root / "damaged").iterdir())) == 2


def test_verifying_is_no_use(store: Store) -> None:
    before = entries(store)
    verify(store)
    assert entries(store) == before


def test_the_commands_list_verify_and_prune(store: Store) -> None:
    where = f"store.folder={store.root}"
    listed = command("list", where)
    assert [line.split()[1] for line in listed[:7]] == ["b9", "b3", "b1", "r4", "r3", "r2", "r1"]
    assert listed[3].split()[2:] == ["1.2", "KiB", "made", "10", "d", "ago,", "used", "10", "d", "ago"]
    assert listed[7].startswith("bases    3 entries, ") and listed[-1].endswith(f" in {store.root}")
    (store.folder("results", "r1") / "a.bin").write_bytes(b"")
    assert command("verify", where, code=1)[-1] == "7 entries checked, 1 damaged"
    assert command("verify", where)[-1] == "6 entries checked, 0 damaged"
    assert command("prune", "--older-than", "35", "--dry-run", where)[-1].startswith("3 entries to remove, ")
    removed = command("prune", "--older-than", "35", "--to-size", "1", where)
    assert [line.split()[0] for line in removed[:-1]] == ["bases", "bases", "damaged"]
    assert removed[-1].startswith("3 entries removed, ")
    command("prune", "--to-size", "0", where)
    assert names(store) == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune"], "needs --older-than DAYS"),
        (["prune", "--to-size", "-1"], "must be a number of at least 0"),
        (["prune", "--older-than", "nan"], "must be a number of at least 0"),
        (["list", "store.folder=/dev/null"], "store.folder=/dev/null: is not a folder"),
        (["list", "store.foldr=x"], "store.foldr: no such key"),
    ],
)
def test_a_wrong_command_is_refused_with_what_is_allowed(arguments: list[str], says: str) -> None:
    assert says in command(*arguments, code=2)[-1]


def test_where_there_is_no_store_there_is_nothing_and_none_is_made(tmp_path: Path) -> None:
    where = f"store.folder={tmp_path / 'none'}"
    assert command("verify", where) == ["0 entries checked, 0 damaged"]
    assert command("prune", "--to-size", "0", where) == ["0 entries removed, 0 B"]
    assert command("list", where)[-1] == f"in all   0 B in {tmp_path / 'none'}"
    assert list(tmp_path.iterdir()) == []
