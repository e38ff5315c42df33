"""A report as data: sections of paragraphs, tables, listings and pictures; and its Markdown form (HTML: `html.py`).

The data are plain text; the two forms escape it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from tabulate import tabulate

# Headings, in which "-\n" and "\n" are where a narrow table may break them, and rows of cells.
Table = tuple[list[str], list[list[str]]]


class Code(str):
    """Text to be shown as code."""


class Strong(str):
    """Text to be shown in bold."""


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table whose first `words` columns hold words, aligned to the left; the others hold numbers."""

    table: Table
    words: int = 0


@dataclass(frozen=True)
class Listing:
    """Commands for a shell."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A figure: its file in `figures/`, its alternative text and a note for the reader."""

    file: str
    alt: str
    note: str


# A text is a paragraph; a tuple of texts is one with parts in code or bold.
Block = str | tuple[str, ...] | Heading | Grid | Listing | Picture


@dataclass(frozen=True)
class Section:
    """A part of the report under a title; the first one has none. The page shows a `folded` one closed."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


def on_one_line(heading: str) -> str:
    """Undo the line breaks of a column's heading."""
    return heading.replace("-\n", "").replace("\n", " ")


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Write the whole report in Markdown."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}"] if section.title else []
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case str():
            return _inline(block)
        case tuple():
            return "".join(map(_inline, block))
        case Heading(text):
            return f"### {_plain(text)}"
        case Listing(lines):
            # Longer than any row of backticks in it, which would end the listing.
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(lines))), default=0))
            return "\n".join([f"{fence}bash", *lines, fence])
        case Picture(file, alt, note):
            image = f"![{_plain(alt)}](figures/{quote(file)})"
            return f"{_plain(note)}\n\n{image}" if note else image
        case Grid((headings, rows), words):
            return tabulate(
                [[_inline(cell).replace("|", "\\|") for cell in row] for row in rows],
                [on_one_line(heading) for heading in headings],
                "pipe",
                disable_numparse=True,
                colalign=["left" if column < words else "right" for column in range(len(headings))] if rows else None,
            )


def _inline(text: str) -> str:
    if isinstance(text, Code) and text:
        return f"`` {text} ``" if "`" in text else f"`{text}`"  # a longer fence for a text with backticks
    return f"**{_plain(text)}**" if isinstance(text, Strong) else _plain(text)


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_\[\]<#])", r"\\\1", re.sub(r"\s+", " ", text).replace("&", "&amp;"))
