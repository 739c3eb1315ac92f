"""The page's figures: Plotly's ``data`` and ``layout`` as plain dicts, drawn of `server.facts`."""

from server.monitor.figures.gallery import CHOICES, FIGURES, LIVELY, MEASURED, compare_figure
from server.monitor.figures.query import Query
from server.monitor.figures.style import Figure

__all__ = ["CHOICES", "FIGURES", "LIVELY", "MEASURED", "Figure", "Query", "compare_figure"]
