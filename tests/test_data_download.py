"""pytest tests/test_data_download.py"""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_exp.data.download import fetch

CONTENT = b"published" * 10_000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serve files without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine that has `set.gz`; its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "set.gz").write_bytes(CONTENT)
    handler = functools.partial(Silent, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_the_first_url_that_has_the_file_is_taken(server: str, tmp_path: Path) -> None:
    target = tmp_path / "root" / "raw" / "set.gz"
    assert fetch([f"{server}/none.gz", f"{server}/set.gz"], MD5, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_another_file_than_the_published_one_is_not_kept(server: str, tmp_path: Path) -> None:
    target = tmp_path / "root" / "set.gz"
    assert not fetch([f"{server}/set.gz"], "0" * 32, target)
    assert not list(target.parent.iterdir())


def test_where_a_download_was_cut_short_it_is_begun_anew(server: str, tmp_path: Path) -> None:
    target = tmp_path / "set.gz"
    (tmp_path / "set.gz.part").write_bytes(CONTENT[:100])
    assert fetch([f"{server}/set.gz"], MD5, target)
    assert target.read_bytes() == CONTENT
    assert not (tmp_path / "set.gz.part").exists()
