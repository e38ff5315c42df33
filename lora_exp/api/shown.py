"""How runs, sweeps and figures look in a notebook."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lora_exp.report.document import Table, on_one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 20  # of a table in a notebook


def page(title: str, lines: Sequence[str], *tables: Table) -> str:
    """A title, lines of text, and tables as HTML; everything is escaped. Long tables are cut, and say so."""
    parts = [f"<strong>{html.escape(title)}</strong>", *(f"<div>{html.escape(line)}</div>" for line in lines)]
    for headings, rows in tables:
        shown = pd.DataFrame(rows[:MOST_ROWS], columns=[on_one_line(heading) for heading in headings], dtype=object)
        parts.append(shown.to_html(index=False, border=0, escape=True))
        if len(rows) > MOST_ROWS:
            parts.append(f"<div>{len(rows) - MOST_ROWS:,} more rows; .frame has all</div>")
    return f"<div>{''.join(parts)}</div>"


def for_notebooks(figure: Figure) -> Figure:
    """Return the figure; let a notebook show it. By itself it shows only those that pyplot has made."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(type(figure), _png)
    return figure


def _png(figure: Figure) -> bytes:
    from lora_exp.report.figures import save

    written = io.BytesIO()
    save(figure, written)
    return written.getvalue()
