"""The content-addressed store of base models and results: what is in it is whole, and is never computed again.

An entry is a folder of files, named by a hash of what determines them. It is written under `partial/`, every
file flushed to disk, `entry.json` with the SHA-256 of each file last, and then renamed into place: a reader
sees a whole entry or none. An entry whose files do not match their hashes is set aside and made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

ENTRY = "entry.json"


class StoreError(OSError):
    """The store's folder can't be written to; the message is one line."""


@dataclass(frozen=True)
class Store:
    """Entries under `root`, by kind (`bases`, `results`) and key (hex)."""

    root: Path

    def prepare(self) -> None:
        """Make the folders of the store.

        Raises StoreError when that is not possible.
        """
        try:
            for name in ("bases", "results", "partial", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / "partial" / uuid.uuid4().hex
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"store.folder={self.root}: must be a folder that can be written to ({error.strerror})"
            ) from error

    def lock(self, kind: str, key: str) -> FileLock:
        """Held by the one process that makes an entry, while others wait for it."""
        return FileLock(self.root / "locks" / f"{kind}-{key}.lock")

    def get(self, kind: str, key: str) -> dict[str, bytes] | None:
        """The files of an entry by name, checked against their hashes; None when there is no whole entry."""
        folder = self._folder(kind, key)
        try:
            hashes = json.loads((folder / ENTRY).read_bytes())
            files = {name: (folder / name).read_bytes() for name in hashes}
        except FileNotFoundError:
            if folder.exists():
                self._set_aside(folder, "a file is missing")
            return None
        except (ValueError, TypeError):
            self._set_aside(folder, f"{ENTRY} is damaged")
            return None
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != hashes[name]:
                self._set_aside(folder, f"{name} is damaged")
                return None
        return files

    def has(self, kind: str, key: str) -> bool:
        """Whether an entry is there; its content is checked when it is read."""
        return (self._folder(kind, key) / ENTRY).is_file()

    def put(self, kind: str, key: str, files: Mapping[str, bytes]) -> None:
        """Store an entry; where there is one already (another process was faster) it stays."""
        partial = self.root / "partial" / uuid.uuid4().hex
        partial.mkdir(parents=True)
        try:
            for name, content in files.items():
                _write_flushed(partial / name, content)
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            _write_flushed(partial / ENTRY, json.dumps(hashes, indent=1).encode())
            _flush_folder(partial)
            folder = self._folder(kind, key)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.rename(folder)
            except OSError:
                if not self.has(kind, key):
                    raise
            _flush_folder(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def _set_aside(self, folder: Path, reason: str) -> None:
        """Keep a damaged entry for inspection, out of the way of a new one."""
        damaged = self.root / "damaged"
        damaged.mkdir(exist_ok=True)
        target = damaged / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            folder.rename(target)
        except FileNotFoundError:  # another process did it first
            return
        log.warning("store entry %s: %s; set aside in %s and made anew", folder.name[:12], reason, target)


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
