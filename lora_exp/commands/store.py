"""`lora-exp store`: list, verify or prune the store of bases and results."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_settings
from lora_exp.storage.pruning import GIB, listed, prune, told, verify
from lora_exp.storage.store import Store


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
        lines = listed(store)
    elif options.action == "verify":
        lines, intact = verify(store)
    else:
        if options.older_than is None and options.to_size is None:
            pruning.error("needs --older-than DAYS, --to-size GIB, or both")
        to_size = None if options.to_size is None else options.to_size * GIB
        lines = told(prune(store, options.older_than, to_size, dry_run=options.dry_run), options.dry_run)
    print("\n".join(lines))
    return 0 if intact else 1


def _amount(text: str) -> float:
    """A number of at least 0. Raises ArgumentTypeError for anything else."""
    with contextlib.suppress(ValueError):
        if 0 <= (amount := float(text)) < float("inf"):
            return amount
    raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")
