"""Matplotlib figures as inline SVG that takes its colours and its font from the page.

A figure is drawn in stand-in colours, each of which becomes a CSS variable or ``currentColor``, so
one drawing serves light, dark and print. Identifiers are prefixed per figure, since all figures
share one document, and every address in the markup is removed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, GRID, WORSE, BETTER, PAGE, MIDDLE = (f"#01010{i}" for i in range(1, 8))
ARMS = ("#010201", "#010202", "#010203", "#010204", "#010205")
SERIES = tuple(f"#0103{i:02x}" for i in range(8))
"""Stand-ins; the page's style sheet holds the Okabe-Ito palette they stand for."""
STEPS = 13
SEQUENTIAL = tuple(f"#0104{i:02x}" for i in range(STEPS))
DIVERGING = tuple(f"#0105{i:02x}" for i in range(STEPS))
"""Steps of the colour scales, from the page's own colour away from it; and from one end to the other."""

_CSS = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    GRID: "var(--grid)",
    WORSE: "var(--worse)",
    BETTER: "var(--better)",
    PAGE: "var(--page)",
    MIDDLE: "var(--on-middle)",
    **{hue: f"var(--arm-{i})" for i, hue in enumerate(ARMS)},
    **{hue: f"var(--series-{i})" for i, hue in enumerate(SERIES)},
    **{hue: f"var(--seq-{i})" for i, hue in enumerate(SEQUENTIAL)},
    **{hue: f"var(--div-{i})" for i, hue in enumerate(DIVERGING)},
}

_LONG = re.compile(r"-?\d+\.\d{3,}")
_PLACED = re.compile(r'\b(?:d|points|x|y|transform)="[^"]*"')
_STEP = re.compile(r"\s*([MLCQz])\s*")
_NUMBER = r"(-?[\d.]+)"
_BOX = re.compile(rf"M{_NUMBER} {_NUMBER}L{_NUMBER} \2L\3 {_NUMBER}L\1 \4(?:L\1 \2)?z")
_BETWEEN = re.compile(r">\s+<")
_EMPTY = re.compile(r"<g[^<>]*/>|<g[^<>]*></g>| transform=\"rotate\(-0 [^\"]*\"")
_GROUP = re.compile(r'<g id="([^"]*)"')

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedcxr",
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.unicode_minus": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """Give a figure of ``width`` x ``height`` inches; draw on it and call `markup` inside.

    Text is taken literally: a ``$`` in a site's name does not start a formula.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # The browser has the letters that the layout's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield Figure(figsize=(width, height), layout="constrained")


def markup(figure: Figure, name: str) -> str:
    """Return the figure as an ``<svg>`` element; ``name`` keeps its identifiers apart."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return inline(buffer.getvalue(), name)


def inline(svg: str, name: str) -> str:
    """Make a stand-alone SVG document fit to stand inside a page with others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    svg = f'<svg {box.group(0) if box else ""} focusable="false">{body}'
    # Only inside tags: a site may be named like an attribute.
    svg = re.sub(r"<[^<>]*>", lambda tag: _local(tag.group(0)), svg).strip()
    used = {*re.findall(r"#([\w-]+)", svg)}
    svg = _GROUP.sub(lambda group: group.group(0) if group.group(1) in used else "<g", svg)
    svg = _EMPTY.sub("", _BETWEEN.sub("><", svg))
    return re.sub(r"<[^<>]*>", lambda tag: _named(tag.group(0), name), svg)


def _named(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'\b(?:xlink:)?href="#', f'href="#{name}-', tag)
    return tag.replace("url(#", f"url(#{name}-")


def _local(tag: str) -> str:
    if "#010" in tag:
        for stand_in, colour in _CSS.items():
            tag = tag.replace(stand_in, colour)
    tag = _PLACED.sub(lambda place: _short(place.group(0)), tag)
    # "font: 9px 'DejaVu Sans', ..., sans-serif" and "font-family: ...": the page's font serves.
    tag = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", tag)
    return re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", tag)


def _short(place: str) -> str:
    """Write a path or a place without spaces nobody needs, to a tenth of a point."""
    place = _LONG.sub(_tenths, place)
    if not place.startswith("d="):
        return place
    return _BOX.sub(r"M\1 \2H\3V\4H\1z", _STEP.sub(r"\1", place))


def _tenths(number: re.Match[str]) -> str:
    """Write a coordinate as finely as anyone can see: a tenth of a point."""
    return f"{float(number.group(0)):.1f}".rstrip("0").rstrip(".")
