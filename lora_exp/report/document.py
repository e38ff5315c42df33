"""A page as data: sections of paragraphs, tables, listings and pictures, to be written as Markdown or as HTML.

Text is plain: whoever writes it out escapes what its format would take for marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_exp.report.tables import Table


class Code(str):
    """Text to be shown as code."""


class Strong(str):
    """Text to be set off."""


@dataclass(frozen=True)
class Paragraph:
    """Runs of text, some of them code or set off."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table whose first `words` columns are aligned as words and the others as numbers."""

    table: Table
    words: int = 0


@dataclass(frozen=True)
class Listing:
    """Lines for a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its file in `figures/`, its alternative text and what a reader should know."""

    file: str
    alt: str
    note: str


Block = Paragraph | Heading | Grid | Listing | Picture


@dataclass(frozen=True)
class Section:
    """A part of the page, under a title of its own."""

    title: str
    blocks: tuple[Block, ...]


def paragraphs(texts: Sequence[str]) -> list[Block]:
    """Each text as a paragraph."""
    return [Paragraph((text,)) for text in texts]
