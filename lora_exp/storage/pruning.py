"""What is in the store, whether it is whole, and which entries go first to free space: those used longest ago."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lora_exp.errors import LoraExpError
from lora_exp.storage.leases import held_and_abandoned, leased_folder, remove_abandoned
from lora_exp.storage.store import DAMAGED, ENTRY, KINDS, LOCKS, PARTIAL, DamagedError, EntryId, Store

log = logging.getLogger(__name__)

# Each running process leases a folder here; the time of the folder is when the process began to use the store.
USERS = "users"
DAY, GIB = 86_400, 2**30


@dataclass(frozen=True)
class Entry:
    """One entry, or one that was set aside as damaged; `made` and `used` are seconds since 1970, `size` is in bytes."""

    kind: str
    key: str
    folder: Path
    size: int
    made: float
    used: float


@dataclass(frozen=True)
class Activity:
    """How many entries are being written, locks held and processes running; and what killed processes left."""

    writing: int
    locks: int
    processes: int
    left: list[Path]


def entries(store: Store) -> list[Entry]:
    """All entries, damaged ones too, those used longest ago first; none where there is no store yet.

    Raises LoraExpError when something else is in its place.
    """
    if store.root.exists() and not store.root.is_dir():
        raise LoraExpError(f"store.folder={store.root}: is not a folder")
    found = []
    for kind in (*KINDS, DAMAGED):
        for folder in (store.root / kind).glob("*" if kind == DAMAGED else "*/*"):
            with contextlib.suppress(FileNotFoundError):  # removed by another process just now
                found.append(_entry(kind, folder))
    return sorted(found, key=lambda entry: (entry.used, entry.key))


def damage(store: Store, entry: Entry, full: bool = True) -> str | None:
    """What is wrong with an entry; None when it is whole, or gone. Without `full`, checksums are not compared."""
    try:
        (store.read if full else store.names)(entry.kind, entry.key)
    except DamagedError as error:
        return str(error)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return None


def verify(store: Store) -> tuple[int, list[tuple[Entry, str, Path]]]:
    """Compare every checksum and set damaged entries aside.

    Returns the number of entries checked, and of each damaged one the reason and where it is now.
    """
    checked = [entry for entry in entries(store) if entry.kind in KINDS]
    damaged = [(entry, reason) for entry in checked if (reason := damage(store, entry)) is not None]
    return len(checked), [(entry, why, store.set_aside(entry.kind, entry.key, why)) for entry, why in damaged]


def prune(
    store: Store,
    unused_days: float | None = None,
    to_size: float | None = None,
    made_before: float | None = None,
    dry_run: bool = False,
) -> list[Entry]:
    """Remove entries not used for so many days, then more until `to_size` bytes are left; return what was removed.

    Those used longest ago go first, bases of stored results last. Entries that a running process used since it
    started, or whose lock it holds, stay; so do those not made before `made_before`.
    """
    if not dry_run:
        remove_abandoned(store.root / PARTIAL)
    found, now = entries(store), time.time()
    left, removed = sum(entry.size for entry in found), []
    if unused_days is None and (to_size is None or left <= to_size):
        return []
    running = [path.stat().st_mtime for path in held_and_abandoned(store.root / USERS)[0]]
    for entry in _in_order(store, found):
        old = unused_days is not None and now - entry.used > unused_days * DAY
        goes = old or (to_size is not None and left > to_size)
        stays = entry.used >= min(running, default=now) or entry.made >= (now if made_before is None else made_before)
        if goes and not stays and not _is_held(Path(store.lock(entry.kind, entry.key).lock_file)):
            if not dry_run:
                _remove(store, entry)
            left -= entry.size
            removed.append(entry)
    return removed


@contextlib.contextmanager
def kept_within(store: Store, limit: float | None) -> Iterator[None]:
    """A block in which this process uses the store: other processes prune nothing that it reads or makes there.

    At the end the store is pruned to `limit` GiB (None: not at all); what was made in the block stays.
    """
    remove_abandoned(store.root / USERS)
    with contextlib.ExitStack() as lease:
        began = lease.enter_context(leased_folder(store.root / USERS)).stat().st_mtime
        try:
            yield
        finally:
            lease.close()
            if limit is not None and (removed := prune(store, to_size=limit * GIB, made_before=began)):
                log.info("store.limit=%g: %d entries removed, %s", limit, len(removed), size_text(removed))


def activity(store: Store) -> Activity:
    """What goes on in a store at this moment. Raises OSError when it can't be read."""
    partial, users = (held_and_abandoned(store.root / name) for name in (PARTIAL, USERS))
    locks = sum(_is_held(path) for path in (store.root / LOCKS).glob("*.lock"))
    return Activity(len(partial[0]), locks, len(users[0]), partial[1])


def size_text(found: Sequence[Entry]) -> str:
    """The size of all of these entries: `1.2 MiB`."""
    size = sum(entry.size for entry in found)
    for unit, length in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size} B"


def _entry(kind: str, folder: Path) -> Entry:
    """An entry by its files' times: content is written once, and a use touches `entry.json`."""
    files = {path.name: path.stat() for path in folder.iterdir()} if folder.is_dir() else {}
    of_folder = folder.stat()
    made = min((stat.st_mtime for name, stat in files.items() if name != ENTRY), default=of_folder.st_mtime)
    used = files[ENTRY].st_mtime if ENTRY in files else of_folder.st_mtime
    return Entry(kind, folder.name, folder, sum(stat.st_size for stat in files.values()), made, max(made, used))


def _in_order(store: Store, found: Sequence[Entry]) -> list[Entry]:
    """The entries in the order in which they go. One that others need counts as used when the last of these was.

    Entries from before `Store.put` took `needs` name none: their bases go by their own last use.
    """
    needed: dict[EntryId, float] = {}
    for entry in found:
        for other in store.needs(entry.kind, entry.key) if entry.kind in KINDS else ():
            needed[other] = max(entry.used, needed.get(other, 0.0))
    used = [dataclasses.replace(own, used=max(own.used, needed.get((own.kind, own.key), 0.0))) for own in found]
    return sorted(used, key=lambda entry: ((entry.kind, entry.key) in needed, entry.used, entry.key))


def _is_held(lock: Path) -> bool:
    """Whether a process holds this lock; a lock file that doesn't exist is not created."""
    try:
        with FileLock(lock).acquire(blocking=False) if lock.exists() else contextlib.nullcontext():
            return False
    except Timeout:
        return True


def _remove(store: Store, entry: Entry) -> None:
    """In one move, so that no reader sees half an entry; a removal that is killed leaves the rest under `partial/`."""
    with leased_folder(store.root / PARTIAL) as folder, contextlib.suppress(FileNotFoundError):
        entry.folder.rename(folder / entry.key)
