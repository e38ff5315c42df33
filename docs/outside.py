"""A hook of MkDocs: pages of docs/ may link to files outside it, as in `../CONTRIBUTING.md`, and these join the site.

Links stay as they are in the files, so that they also work where the repository is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    left = [(ROOT / "docs", str(own.content_string)) for own in files.documentation_pages()]
    while left:
        folder, text = left.pop()
        for target in LINK.findall(text):
            path = (folder / target).resolve()
            place = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
            if not place or place.startswith("docs/") or not path.is_file() or files.get_file_from_path(place):
                continue
            files.append(File.generated(config, place, abs_src_path=str(path)))
            if path.suffix == ".md":
                left.append((path.parent, path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Write links as the site has its files: those of docs/ at the top, beside the files from outside it."""
    return re.sub(r"\]\((\.\./|docs/)", "](", markdown)
