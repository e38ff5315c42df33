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
# In the order in which they are put into the page: each uses what stands before it.
SCRIPTS = (
    *("base", "recommendation", "filters", "colours", "charts", "maps", "plots", "parallel", "curves", "run"),
    *("tables", "start"),
)


def html(
    title: str,
    head: Section,
    lead: Sequence[Section],
    runs: Section | None,
    last: Sequence[Section],
    data: Any,
    figures: Path,
) -> str:
    """Write the page: `head` and `lead`, charts of `data` (from `page_data`), the table `runs`, the `last` sections.

    Without `runs` there are no charts. The pictures in the sections are files of the folder `figures`.
    """
    from plotly.offline import get_plotlyjs

    page, style = (_template(f"page.{kind}") for kind in ("html", "css"))
    pictures = [block.file for section in (*lead, *last) for block in section.blocks if isinstance(block, Picture)]
    images = {name: base64.b64encode((figures / name).read_bytes()).decode() for name in pictures}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(page)
    return template.render(
        title=title,
        head=head,
        lead=lead,
        runs=runs,
        last=last,
        several=len(data["runs"]) > 1,
        explained=bool(data["importance"]),
        images={name: f"data:image/png;base64,{picture}" for name, picture in images.items()},
        kind=lambda value: type(value).__name__,
        heading=on_one_line,
        # A browser unescapes nothing in a script element, so `<` must not occur there.
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        style=style,
        script="\n".join(_template(f"{name}.js") for name in SCRIPTS),
        plotly=get_plotlyjs() if runs else "",
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
