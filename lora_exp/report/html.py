"""The report as one HTML file: styles, script, Plotly and data are inside, so it loads nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lora_exp.report.document import Picture, Section, on_one_line

TEMPLATES = Path(__file__).parent / "page"


def html(
    title: str, first: Sequence[Section], runs: Section | None, last: Sequence[Section], data: Any, figures: Path
) -> str:
    """Write the page: the `first` sections, charts of `data` (from `page_data`), the table `runs`, the `last` sections.

    Without `runs` there are no charts. The pictures in the sections are files of the folder `figures`.
    """
    from plotly.offline import get_plotlyjs

    page, style, script = ((TEMPLATES / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    pictures = [block.file for section in (*first, *last) for block in section.blocks if isinstance(block, Picture)]
    images = {name: base64.b64encode((figures / name).read_bytes()).decode() for name in pictures}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(page)
    return template.render(
        title=title,
        first=first,
        runs=runs,
        last=last,
        only_ranks=all(kind.startswith("rank ") for kind in data["kinds"]),
        images={name: f"data:image/png;base64,{picture}" for name, picture in images.items()},
        kind=lambda value: type(value).__name__,
        heading=on_one_line,
        # A browser unescapes nothing in a script element, so `<` must not occur there.
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        style=style,
        script=script,
        plotly=get_plotlyjs() if runs else "",
    )
