"""What a page of a run has chosen to look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """The choices in a page's address."""

    metric: str = "auroc"
    """A name in `metrics_of`."""
    finding: str = ""
    """A finding, or empty: over all of them."""
    site: str = ""
    """A site, or empty: all of them."""
    round: int | None = None
    """A round of the aggregation view; the newest if None."""
