"""`lora-exp store`: list, verify or prune the store of bases and results."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_settings
from lora_exp.storage.pruning import DAY, GIB, Entry, entries, prune, size_text, verify
from lora_exp.storage.store import DAMAGED, KINDS, Store


def main(arguments: Sequence[str]) -> int:
    """List, verify or prune the store of bases and results."""
    parser = argparse.ArgumentParser(prog="lora-exp store", description=main.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="print every entry with its size, age and last use, and the totals")
    actions.add_parser("verify", help="check all checksums; set damaged entries aside and exit with code 1")
    pruning = actions.add_parser("prune", help="remove the entries used longest ago that no running process uses")
    pruning.add_argument("--older-than", type=_amount, metavar="DAYS", help="remove what was not used for DAYS")
    pruning.add_argument("--to-size", type=_amount, metavar="GIB", help="remove until at most GIB are left")
    pruning.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    for action in actions.choices.values():
        add_overrides(action, "store.folder=elsewhere")
    options = parse(parser, arguments)
    store = Store(Path(compose_settings(options.overrides).store.folder).absolute())
    intact = True
    if options.action == "list":
        lines = list_lines(store)
    elif options.action == "verify":
        lines, intact = verify_lines(store)
    else:
        if options.older_than is None and options.to_size is None:
            pruning.error("needs --older-than DAYS, --to-size GIB, or both")
        to_size = None if options.to_size is None else options.to_size * GIB
        removed, now = prune(store, options.older_than, to_size, dry_run=options.dry_run), time.time()
        done = "to remove" if options.dry_run else "removed"
        lines = [entry_line(entry, now) for entry in removed]
        lines.append(f"{len(removed)} entries {done}, {size_text(removed)}")
    print("\n".join(lines))
    return 0 if intact else 1


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


def entry_line(entry: Entry, now: float) -> str:
    """Kind, key, size and age of an entry; `now` is in seconds since 1970."""
    made, used = (_ago(now - moment) for moment in (entry.made, entry.used))
    return f"{entry.kind:8} {entry.key[:12]} {size_text([entry]):>10}  made {made} ago, used {used} ago"


def _ago(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _amount(text: str) -> float:
    """A number of at least 0. Raises ArgumentTypeError for anything else."""
    with contextlib.suppress(ValueError):
        if 0 <= (amount := float(text)) < float("inf"):
            return amount
    raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")
