"""`lora-exp store`: what is in the store, whether it is whole, and what was removed, in lines."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lora_exp.storage.pruning import DAY, Entry, entries, size_text, verify
from lora_exp.storage.store import DAMAGED, KINDS, Store


def list_lines(store: Store) -> list[str]:
    """Every entry, those used last first, and the totals by kind."""
    found, now = entries(store), time.time()
    lines = [entry_line(entry, now) for kind in (*KINDS, DAMAGED) for entry in reversed(found) if entry.kind == kind]
    for kind in (*KINDS, DAMAGED):
        own = [entry for entry in found if entry.kind == kind]
        lines.append(f"{kind:8} {len(own)} entries, {size_text(own)}")
    return [*lines, f"in all   {size_text(found)} in {store.root}"]


def verify_lines(store: Store) -> tuple[list[str], bool]:
    """Verify the store; the damaged entries, the number of entries, and whether all are whole."""
    checked, damaged = verify(store)
    lines = [f"{entry.kind} {entry.key}: {reason}; set aside in {target}" for entry, reason, target in damaged]
    return [*lines, f"{checked} entries checked, {len(damaged)} damaged"], not damaged


def prune_lines(removed: Sequence[Entry], dry_run: bool) -> list[str]:
    """The entries that were removed, or would be, and the total."""
    now, done = time.time(), "to remove" if dry_run else "removed"
    lines = [entry_line(entry, now) for entry in removed]
    return [*lines, f"{len(removed)} entries {done}, {size_text(removed)}"]


def entry_line(entry: Entry, now: float) -> str:
    """Kind, key, size and age of an entry; `now` is in seconds since 1970."""
    made, used = (_ago(now - moment) for moment in (entry.made, entry.used))
    return f"{entry.kind:8} {entry.key[:12]} {size_text([entry]):>10}  made {made} ago, used {used} ago"


def _ago(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
