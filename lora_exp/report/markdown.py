"""A page in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from tabulate import tabulate

from lora_exp.report.document import Block, Code, Grid, Heading, Listing, Paragraph, Picture, Section, Strong


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole page; what stands before the first title is a section without one."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}"] if section.title else []
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Paragraph(parts):
            return "".join(_inline(part) for part in parts)
        case Heading(text):
            return f"### {_plain(text)}"
        case Listing(lines):
            return "```bash\n" + "\n".join(lines) + "\n```"
        case Picture(file, alt, note):
            image = f"![{_plain(alt)}](figures/{quote(file)})"
            return f"{_plain(note)}\n\n{image}" if note else image
        case Grid((headings, rows), words):
            return tabulate(
                [[_inline(cell).replace("|", "\\|") for cell in row] for row in rows],
                [heading.replace("-\n", "").replace("\n", " ") for heading in headings],
                "pipe",
                disable_numparse=True,
                colalign=["left" if column < words else "right" for column in range(len(headings))] if rows else None,
            )


def _inline(text: str) -> str:
    if isinstance(text, Code):
        return _code(text)
    return f"**{_plain(text)}**" if isinstance(text, Strong) else _plain(text)


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_\[\]<#])", r"\\\1", re.sub(r"\s+", " ", text).replace("&", "&amp;"))


def _code(text: str) -> str:
    """An inline code span; a longer fence where the text has backticks of its own."""
    if not text:
        return ""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
