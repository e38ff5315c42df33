"""Pieces of Markdown: tables, pictures, and text that is shown as it is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from tabulate import tabulate

from lora_exp.tables import Table


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its file in `figures/`, its alternative text and what a reader should know."""

    file: str
    alt: str
    note: str


def markdown_table(table: Table, words: int = 0) -> str:
    """A table whose first `words` columns are aligned as words and the others as numbers."""
    headings, rows = table
    align = ["left" if column < words else "right" for column in range(len(headings))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(
        cells,
        [heading.replace("-\n", "").replace("\n", " ") for heading in headings],
        "pipe",
        disable_numparse=True,
        colalign=align if rows else None,
    )


def picture(shown: Picture | str) -> str:
    """The picture under its note, or why there is none."""
    if isinstance(shown, str):
        return plain(shown)
    image = f"![{plain(shown.alt)}](figures/{quote(shown.file)})"
    return f"{shown.note}\n\n{image}" if shown.note else image


def plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    for mark in "\\`*_[]<>#":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("&", "&amp;").split())


def code(text: str) -> str:
    """An inline code span; a longer fence where the text has backticks of its own."""
    if not text:
        return ""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
