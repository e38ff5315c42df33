"""The content-addressed store of base models and results: what is in it is whole, and is never computed again.

An entry is a folder of files, named by a hash of what determines them. It is written under `partial/`, every
file flushed to disk, `entry.json` with the SHA-256 of each file last, and then renamed into place: a reader
sees a whole entry or none. An entry whose files do not match their hashes is set aside in `damaged/` and made
anew. The time of `entry.json` is that of the entry's last use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lora_exp.errors import LoraExpError
from lora_exp.storage.leases import living_folder, remove_abandoned

log = logging.getLogger(__name__)

ENTRY = "entry.json"
KINDS = ("bases", "results", "rungs", "checkpoints")
PARTIAL, DAMAGED, LOCKS = "partial", "damaged", "locks"
# The disk, the quota, or the greatest size of a file that this process may write.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedError(ValueError):
    """An entry is not what was put; the message is one line."""


@dataclass(frozen=True)
class Store:
    """Entries under `root`, by kind (KINDS) and key (hex)."""

    root: Path

    def prepare(self) -> None:
        """Make the folders of the store, and remove what killed processes left half written.

        Raises LoraExpError when that is not possible.
        """
        try:
            for name in (*KINDS, PARTIAL, LOCKS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.root / PARTIAL)
            with tempfile.TemporaryFile(dir=self.root / PARTIAL):
                pass
        except OSError as error:
            raise LoraExpError(
                f"store.folder={self.root}: must be a folder that can be written to ({error.strerror})"
            ) from error

    def lock(self, kind: str, key: str) -> FileLock:
        """Held by the one process that makes an entry, while others wait for it."""
        return FileLock(self.root / LOCKS / f"{kind}-{key}.lock")

    def get(self, kind: str, key: str) -> dict[str, bytes] | None:
        """The files of an entry by name, checked against their hashes; None when there is no whole entry."""
        try:
            files = self.read(kind, key)
        except DamagedError as error:
            self.set_aside(kind, key, str(error))
            return None
        with contextlib.suppress(OSError):  # a store that may only be read
            os.utime(self.folder(kind, key) / ENTRY)
        return files

    def read(self, kind: str, key: str) -> dict[str, bytes] | None:
        """The same, without counting as a use. Raises DamagedError for an entry that is not whole."""
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
        """The names of an entry's files, which are all there; none when there is no entry. Raises DamagedError."""
        folder = self.folder(kind, key)
        with _damaged_unless_gone(folder):
            return list(_hashes(folder, kind, key))
        return []

    def has(self, kind: str, key: str) -> bool:
        """Whether an entry is there; its content is checked when it is read."""
        return (self.folder(kind, key) / ENTRY).is_file()

    def put(self, kind: str, key: str, files: Mapping[str, bytes]) -> None:
        """Store an entry; where there is one already (another process was faster) it stays.

        Raises OSError, with what to do, when the disk is full; nothing is left of the entry then.
        """
        with _told_when_full(self.root), living_folder(self.root / PARTIAL) as partial:
            for name, content in files.items():
                _write_flushed(partial / name, content)
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            about = {"kind": kind, "key": key, "files": hashes}
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
        """Where an entry lies, if it is there."""
        return self.root / kind / key[:2] / key

    def set_aside(self, kind: str, key: str, reason: str) -> Path:
        """Keep a damaged entry for inspection, out of the way of a new one; return where."""
        target = self.root / DAMAGED / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process did it first
            self.folder(kind, key).rename(target)
            log.warning("store entry %s %s: %s; set aside in %s, made anew when needed", kind, key[:12], reason, target)
        return target


@contextlib.contextmanager
def _told_when_full(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        hint = "the store is as it was; make room (lora-exp store prune) and the same command goes on from there"
        raise OSError(error.errno, f"{error.strerror}; {hint}", str(root)) from error


@contextlib.contextmanager
def _damaged_unless_gone(folder: Path) -> Iterator[None]:
    """Leaves the block silently when there is no such folder (any more)."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if folder.exists():
            raise DamagedError("a file is missing") from error


def _hashes(folder: Path, kind: str, key: str) -> dict[str, str]:
    """SHA-256 by file name, from an entry's `entry.json`.

    Raises DamagedError when that is not what `put` wrote for this entry.
    """
    try:
        about = json.loads((folder / ENTRY).read_bytes())
        hashes, owner = dict(about["files"]), (about["kind"], about["key"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
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
