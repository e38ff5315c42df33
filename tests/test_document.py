"""python -m pytest tests/test_document.py: a report in Markdown says what its data say, whatever is in them."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from lora_exp.report.document import Code, Listing, Section, Strong, markdown

HOSTILE = ["```", "````bash", "a ```` b", "` x", "<script>", "[a](b)", "# no heading", "1 | 2", "\\`", "&lt;"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_its_place_in_the_markdown(text: str) -> None:
    blocks = [Listing(["lora-exp", text, f"lora-exp {text}"]), ("says ", Code(text), " and ", Strong(text)), text]
    parsed = MarkdownIt("commonmark").parse(markdown(text, [Section("", blocks)]))
    assert [token.type for token in parsed if token.level == 0 and token.nesting >= 0] == [
        "heading_open",
        "fence",
        "paragraph_open",
        "paragraph_open",
    ]
    [listing] = [token.content for token in parsed if token.type == "fence"]
    assert listing == f"lora-exp\n{text}\nlora-exp {text}\n"
    heading, marked, plain = [token.children or [] for token in parsed if token.type == "inline"]
    assert "".join(child.content for child in heading) == text
    assert [child.content for child in marked if child.type == "code_inline"] == [text]
    assert "".join(child.content for child in plain) == text
    assert all(child.type in ("text", "text_special") for child in plain)
