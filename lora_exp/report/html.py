"""The report as one HTML file: styles, script, Plotly and data are inside, so it loads nothing else."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from lora_exp.report.document import Picture, Section, on_one_line

PARTS = Path(__file__).parent / "page"


def html(
    title: str,
    first: Sequence[Section],
    runs: Section | None,
    last: Sequence[Section],
    data: dict[str, Any],
    figures: Path,
) -> str:
    """Write the page: the `first` sections, charts of `data` (from `page_data`), the table `runs`, the `last` sections.

    Without `runs` there are no charts. The pictures in the sections are files of the folder `figures`.
    """
    pictures = [block.file for section in (*first, *last) for block in section.blocks if isinstance(block, Picture)]
    return _template().render(
        title=title,
        first=first,
        runs=runs,
        last=last,
        only_ranks=all(kind.startswith("rank ") for kind in data["kinds"]),
        images={name: _data_url(figures / name) for name in pictures},
        kind=lambda value: type(value).__name__,
        heading=on_one_line,
        # A browser unescapes nothing in a script element, so `<` must not occur there.
        data=Markup(json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")),  # noqa: S704
        style=_part("page.css"),
        script=_part("page.js"),
        plotly=_plotly() if runs else "",
    )


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string((PARTS / "page.html").read_text(encoding="utf-8"))


def _part(name: str) -> str:
    return Markup((PARTS / name).read_text(encoding="utf-8"))  # noqa: S704  # our own file


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())  # noqa: S704  # Plotly's own file


def _data_url(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
