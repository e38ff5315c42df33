"""The content-addressed store of base models and results: an entry is whole, and is never computed twice.

An entry is a folder of files, named by a hash of what determines them. It is written under `partial/`, every
file flushed to disk, `entry.json` with the SHA-256 of each file last, and then renamed into place: a reader
sees a whole entry or none. An entry whose files do not match their hashes is set aside in `damaged/` and computed
again. The time of `entry.json` is that of the entry's last use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lora_exp.errors import DISK_FULL, MAKE_ROOM, writable_folder
from lora_exp.storage.leases import leased_folder, remove_abandoned

log = logging.getLogger(__name__)

ENTRY = "entry.json"
KINDS = ("bases", "results", "rungs", "checkpoints", "promises")
PARTIAL, DAMAGED, LOCKS = "partial", "damaged", "locks"
EntryId = tuple[str, str]  # kind and key


class DamagedError(ValueError):
    """An entry is not what `put` wrote; the message is one line."""


@dataclass(frozen=True)
class Store:
    """Entries under `root`, by kind (KINDS) and key (hex)."""

    root: Path

    def prepare(self) -> None:
        """Create the folders of the store, and remove what killed processes left half written.

        Raises LoraExpError when that is not possible.
        """
        with writable_folder("store.folder", self.root):
            for name in (*KINDS, PARTIAL, LOCKS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self.discard_partial()
            with tempfile.TemporaryFile(dir=self.root / PARTIAL):
                pass

    def discard_partial(self) -> None:
        """Remove what killed processes left half written."""
        remove_abandoned(self.root / PARTIAL)

    def lock(self, kind: str, key: str) -> FileLock:
        """The lock of the one process that computes an entry, for which others wait."""
        return FileLock(self.root / LOCKS / f"{kind}-{key}.lock")

    def get(self, kind: str, key: str) -> dict[str, bytes] | None:
        """The files of an entry by name, checked against their hashes; None when there is no whole entry."""
        try:
            files = self.read(kind, key)
        except DamagedError as error:
            self.set_aside(kind, key, str(error))
            return None
        with contextlib.suppress(OSError):  # a read-only store
            os.utime(self.folder(kind, key) / ENTRY)
        return files

    def read(self, kind: str, key: str) -> dict[str, bytes] | None:
        """Like `get`, but not counted as a use. Raises DamagedError for an entry that is not whole."""
        folder = self.folder(kind, key)
        with _damaged_unless_gone(folder):
            hashes = _hashes(folder, kind, key)
            files = {name: (folder / name).read_bytes() for name in hashes}
            for name, content in files.items():
                if hashlib.sha256(content).hexdigest() != hashes[name]:
                    raise DamagedError(f"{name} is damaged")
            return files
        return None

    def names(self, kind: str, key: str) -> list[str]:
        """The names of an entry's files, all of which exist; [] without such an entry. Raises DamagedError."""
        folder = self.folder(kind, key)
        with _damaged_unless_gone(folder):
            return list(_hashes(folder, kind, key))
        return []

    def has(self, kind: str, key: str) -> bool:
        """Whether an entry exists; its content is checked when it is read."""
        return (self.folder(kind, key) / ENTRY).is_file()

    def needs(self, kind: str, key: str) -> list[EntryId]:
        """The entries that this one belongs to; [] when it says nothing about that, or can't be read."""
        try:
            return [(str(needed), str(of)) for needed, of in _about(self.folder(kind, key)).get("needs", ())]
        except (OSError, DamagedError, TypeError, ValueError):
            return []

    def holding(self, kind: str, name: str, content: bytes) -> Iterator[str]:
        """The keys of the entries of `kind` whose file `name` has this content; only that file is read."""
        for path in sorted((self.root / kind).glob(f"*/*/{name}")):
            with contextlib.suppress(OSError):  # removed by another process just now
                if path.read_bytes() == content:
                    yield path.parent.name

    def put(self, kind: str, key: str, files: Mapping[str, bytes], needs: Sequence[EntryId] = ()) -> None:
        """Store an entry; where there is one already (another process was faster) it stays.

        `needs` names the entries that this one belongs to, such as the base of a result: they are pruned after it.
        Raises OSError, with what to do, when the disk is full; nothing is left of the entry then.
        """
        with _explained_when_full(self.root), leased_folder(self.root / PARTIAL) as partial:
            for name, content in files.items():
                _write_flushed(partial / name, content)
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            about = {"kind": kind, "key": key, "files": hashes, **({"needs": list(needs)} if needs else {})}
            _write_flushed(partial / ENTRY, json.dumps(about, indent=1).encode())
            _flush_folder(partial)
            folder = self.folder(kind, key)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.rename(folder)
            except OSError:
                if not self.has(kind, key):
                    raise
            _flush_folder(folder.parent)

    def folder(self, kind: str, key: str) -> Path:
        """The folder of an entry, whether it exists or not."""
        return self.root / kind / key[:2] / key

    def set_aside(self, kind: str, key: str, reason: str) -> Path:
        """Move a damaged entry out of the way of a new one, for inspection; return where."""
        target = self.root / DAMAGED / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process did it first
            self.folder(kind, key).rename(target)
            log.warning("store entry %s %s: %s; set aside in %s, made anew when needed", kind, key[:12], reason, target)
        return target


@contextlib.contextmanager
def _explained_when_full(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(error.errno, f"{error.strerror}; {MAKE_ROOM}", str(root)) from error


@contextlib.contextmanager
def _damaged_unless_gone(folder: Path) -> Iterator[None]:
    """Leave the block silently when the folder doesn't exist (any more)."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if folder.exists():
            raise DamagedError("a file is missing") from error


def _about(folder: Path) -> dict[str, Any]:
    """The content of `entry.json`. Raises DamagedError when it is no JSON object."""
    try:
        return dict(json.loads((folder / ENTRY).read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{ENTRY} is damaged") from error


def _hashes(folder: Path, kind: str, key: str) -> dict[str, str]:
    """SHA-256 by file name, from `entry.json`. Raises DamagedError when that is not what `put` wrote for this entry."""
    about = _about(folder)
    try:
        hashes, owner = dict(about["files"]), (about["kind"], about["key"])
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedError(f"{ENTRY} is damaged") from error
    if owner != (kind, key):
        raise DamagedError(f"{ENTRY} is that of another entry")
    if not hashes or set(hashes) - {path.name for path in folder.iterdir()}:
        raise DamagedError("a file is missing")
    return hashes


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
