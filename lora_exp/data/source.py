"""Whether the files of a source have changed since it was read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from lora_exp.data.folder import is_ignored
from lora_exp.data.raw import shown
from lora_exp.errors import LoraExpError


def fingerprint(path: Path) -> str:
    """Return a hash of the names, sizes and times of change of all files at `path`, a file or a folder.

    What readers ignore is left out. Raises LoraExpError when there is nothing, something can't be listed, or a link
    leads to a folder that holds it.
    """
    try:
        status = path.stat()
        lines = _lines(str(path)) if stat.S_ISDIR(status.st_mode) else [_line("", status)]
    except OSError as error:
        raise LoraExpError(f"{shown(error.filename or path)}: can't be read ({error.strerror})") from error
    total = hashlib.sha256()
    for line in sorted(lines):
        total.update(line)
    return total.hexdigest()


def _lines(root: str) -> list[bytes]:
    """Return a line for each file below a folder, and one for each folder; links are followed."""
    lines: list[bytes] = []
    left = [(root, "", frozenset({os.path.realpath(root)}))]
    while left:
        folder, inside, above = left.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                name = f"{inside}{entry.name}"
                if not entry.is_dir():
                    lines.append(_line(name, entry.stat()))
                    continue
                place = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if place in above:
                    raise LoraExpError(f"{shown(entry.path)}: is a link to a folder that holds it; remove the link")
                lines.append(_encoded(name))
                left.append((entry.path, f"{name}/", above | {os.path.realpath(entry.path)}))
    return lines


def _line(name: str, status: os.stat_result) -> bytes:
    return b"%s\0%d\0%d\n" % (_encoded(name), status.st_size, status.st_mtime_ns)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape") + b"\n"
