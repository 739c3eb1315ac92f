"""The page's figures: Plotly's ``data`` and ``layout`` as plain dicts, drawn of `server.facts`."""

from server.monitor.figures.gallery import FIGURES, LIVELY, compare_figure
from server.monitor.figures.query import Query
from server.monitor.figures.style import Figure

__all__ = ["FIGURES", "LIVELY", "Figure", "Query", "compare_figure"]
