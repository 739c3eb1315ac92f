"""What a page of a run has chosen to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace


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

    def only(self, *choices: str) -> Query:
        """Return the query with every choice but these as on a fresh page.

        >>> Query(metric="loss", site="north").only("site")
        Query(metric='auroc', finding='', site='north', round=None)
        """
        return replace(Query(), **{name: getattr(self, name) for name in choices})
