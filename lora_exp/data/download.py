"""One published file, downloaded into a folder whole or not at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = 30.0  # without an answer


def fetch(urls: Sequence[str], md5: str, target: Path) -> bool:
    """Download `target` from the first URL that has it with that MD5; tell whether it is there now.

    Raises OSError when the folder can't be written to.
    """
    from torchvision.datasets.utils import download_url  # takes 4 s to import

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    with _patience():
        for url in urls:
            try:
                download_url(url, str(target.parent), partial.name, md5)
            except (OSError, RuntimeError, ValueError):  # no network, another file than published, a strange answer
                partial.unlink(missing_ok=True)
                continue
            partial.replace(target)
            return True
    return False


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on servers that don't answer: torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
