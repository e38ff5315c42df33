"""Keeping the store: what is in it, whether it is whole, and making room by removing what was used longest ago."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lora_exp.errors import LoraExpError
from lora_exp.storage.leases import alive_and_abandoned, living_folder, remove_abandoned
from lora_exp.storage.result import RESULT
from lora_exp.storage.store import DAMAGED, ENTRY, KINDS, LOCKS, PARTIAL, DamagedError, Store

log = logging.getLogger(__name__)

# Here each running process has a folder of its own, whose time says since when it uses the store.
USERS = "users"
DAY, GIB = 86_400, 2**30


@dataclass(frozen=True)
class Entry:
    """One entry, or one that was set aside as damaged; `made` and `used` are seconds since 1970."""

    kind: str
    key: str
    folder: Path
    size: int
    made: float
    used: float

    def line(self, now: float) -> str:
        """The entry in one line of a list."""
        made, used = (_ago(now - moment) for moment in (self.made, self.used))
        return f"{self.kind:8} {self.key[:12]} {_size(self.size):>10}  made {made} ago, used {used} ago"


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


def listed(store: Store) -> list[str]:
    """The store in lines: every entry, and the totals by kind."""
    found, now = entries(store), time.time()
    lines = [entry.line(now) for kind in (*KINDS, DAMAGED) for entry in reversed(found) if entry.kind == kind]
    for kind in (*KINDS, DAMAGED):
        own = [entry.size for entry in found if entry.kind == kind]
        lines.append(f"{kind:8} {len(own)} entries, {_size(sum(own))}")
    return [*lines, f"in all   {_size(sum(entry.size for entry in found))} in {store.root}"]


def damage(store: Store, entry: Entry, full: bool = True) -> str | None:
    """What is wrong with an entry, its checksums tried or only its names; None for one that is whole, or gone."""
    try:
        if full:
            store.read(entry.kind, entry.key)
        else:
            store.names(entry.kind, entry.key)
    except DamagedError as error:
        return str(error)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return None


def verify(store: Store) -> tuple[list[str], bool]:
    """Try every checksum and set damaged entries aside; what was found, in lines, and whether all is whole."""
    sound = [entry for entry in entries(store) if entry.kind in KINDS]
    lines = []
    for entry in sound:
        reason = damage(store, entry)
        if reason is not None:
            target = store.set_aside(entry.kind, entry.key, reason)
            lines.append(f"{entry.kind} {entry.key}: {reason}; set aside in {target}")
    return [*lines, f"{len(sound)} entries checked, {len(lines)} damaged"], not lines


def prune(
    store: Store,
    unused_days: float | None = None,
    to_size: float | None = None,
    made_before: float | None = None,
    dry_run: bool = False,
) -> list[Entry]:
    """Remove entries that nobody used for so many days, then more until `to_size` bytes are left; return them.

    Those used longest ago go first, bases that stored results belong to last. Entries that a running process
    used since it started, or holds the lock of, stay; so do those not made before `made_before`.
    """
    if not dry_run:
        remove_abandoned(store.root / PARTIAL)
    found, now = entries(store), time.time()
    left, removed = sum(entry.size for entry in found), []
    if unused_days is None and (to_size is None or left <= to_size):
        return []
    running = [path.stat().st_mtime for path in alive_and_abandoned(store.root / USERS)[0]]
    for entry in _bases_last(store, found):
        old = unused_days is not None and now - entry.used > unused_days * DAY
        wanted = old or (to_size is not None and left > to_size)
        stays = entry.used >= min(running, default=now) or entry.made >= (now if made_before is None else made_before)
        if wanted and not stays and not _is_held(store.lock(entry.kind, entry.key)):
            if not dry_run:
                _remove(store, entry)
            left -= entry.size
            removed.append(entry)
    return removed


@contextlib.contextmanager
def kept_within(store: Store, limit: float | None) -> Iterator[None]:
    """A block in which this process uses the store: nobody prunes what it takes or makes there meanwhile.

    At the end the store is pruned to `limit` GiB (None: not at all); what was made in the block stays.
    """
    remove_abandoned(store.root / USERS)
    with contextlib.ExitStack() as presence:
        began = presence.enter_context(living_folder(store.root / USERS)).stat().st_mtime
        try:
            yield
        finally:
            presence.close()
            if limit is not None and (removed := prune(store, to_size=limit * GIB, made_before=began)):
                log.info("store.limit=%g: %s", limit, told(removed)[-1])


def told(removed: Sequence[Entry], dry_run: bool = False) -> list[str]:
    """What was removed, or would be, in lines; the last has the total."""
    now = time.time()
    total = _size(sum(entry.size for entry in removed))
    return [
        *(entry.line(now) for entry in removed),
        f"{len(removed)} entries {'to remove' if dry_run else 'removed'}, {total}",
    ]


def _entry(kind: str, folder: Path) -> Entry:
    """What the file system knows of an entry: its files are never written again, `entry.json` is touched by use."""
    known = {path.name: path.stat() for path in folder.iterdir()} if folder.is_dir() else {}
    of_folder = folder.stat()
    made = min((stat.st_mtime for name, stat in known.items() if name != ENTRY), default=of_folder.st_mtime)
    used = known[ENTRY].st_mtime if ENTRY in known else of_folder.st_mtime
    return Entry(kind, folder.name, folder, sum(stat.st_size for stat in known.values()), made, max(made, used))


def _bases_last(store: Store, found: Sequence[Entry]) -> list[Entry]:
    """The entries as they are to go; a base was used, at the latest, when the last of its results was."""
    from lora_exp.training.base import SHA256  # loads torch

    used: dict[str, float] = {}
    for entry in found:
        if entry.kind == "results":
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                base = json.loads((entry.folder / RESULT).read_bytes())["outcome"]["base_sha256_before"]
                used[base] = max(entry.used, used.get(base, 0.0))
    order = []
    for entry in found:
        needed = None
        if entry.kind == "bases":
            with contextlib.suppress(OSError, ValueError):
                needed = used.get((entry.folder / SHA256).read_text())
        own = entry if needed is None else dataclasses.replace(entry, used=max(needed, entry.used))
        order.append((needed is not None, own.used, own.key, own))
    return [entry for *_, entry in sorted(order, key=lambda row: row[:3])]


def held_locks(store: Store) -> int:
    """How many locks of entries a process holds now."""
    return sum(_is_held(FileLock(path)) for path in (store.root / LOCKS).glob("*.lock"))


def _is_held(lock: FileLock) -> bool:
    """Whether a process holds the lock. A lock without a file is held by none, and stays without one."""
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(blocking=False):
            return False
    except Timeout:
        return True


def _remove(store: Store, entry: Entry) -> None:
    """In one move, so that no reader sees half an entry; what is left of a killed removal lies under `partial/`."""
    with living_folder(store.root / PARTIAL) as folder, contextlib.suppress(FileNotFoundError):
        entry.folder.rename(folder / entry.key)


def _size(size: int) -> str:
    for unit, length in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size} B"


def _ago(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
