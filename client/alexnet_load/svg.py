"""Matplotlib style and SVG output for charts that are embedded in an HTML page and follow its light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TEXT, GRID = "#010203", "#010204"
"""Placeholders: ``to_svg`` replaces them with the text colour (``currentColor``) and the ``--line`` colour of the page."""
BLUE, ORANGE, RED, GREEN = "#2f7fd1", "#e07a1f", "#d0453c", "#2a9d5c"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    "legend.fontsize": 9,
    "svg.hashsalt": "alexnet",
}


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in inches and apply ``STYLE`` while the block runs; pyplot's global state is not used."""
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure) -> str:
    """Render a figure as an ``<svg>`` element without width, height, external references, clip paths and group ids.

    Call it in the same ``rc_context(STYLE)`` in which the figure was drawn.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor").replace(GRID, "var(--line)")
    text = re.sub("<metadata>.*?</metadata>|<clipPath.*?</clipPath>", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="[^"]*"|(?<=<g) id="[^"]*"', "", text)  # group ids would occur twice in one page
    head, rest = text.split(">", 1)
    attributes = [each for each in head.split() if not each.startswith(("width=", "height=", "xmlns"))]
    return " ".join(attributes) + ">" + rest
