"""What a reader chose to look at, as the address says it: kept, shared and understood without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

EVENTS = 40
"""Events shown at first; 'show older' asks for more."""

_MOST_EVENTS = 5_000
_LONGEST = 200
_SORTS = (
    "name", "contact", "studies", "participation", "norm", "cosine", "weight", "bytes", "seconds",
    "auroc", "gain", "personalised",
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    """The query of a page; whatever it does not understand counts as not said."""

    metric: str = "auroc"
    finding: str = ""
    site: str = ""
    round: int | None = None
    sort: str = "name"
    descending: bool = False
    filter: str = ""
    events: int = EVENTS
    theme: str = ""
    projector: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Address:
        """Read a query.

        >>> Address.of({"metric": "loss", "round": "x", "theme": "pink"})
        Address(metric='loss', finding='', site='', round=None, sort='name', descending=False, filter='', \
events=40, theme='', projector=False)
        """

        def text(name: str) -> str:
            return query.get(name, "")[:_LONGEST]

        def whole(name: str, most: int) -> int | None:
            digits = query.get(name, "")
            known = digits.isascii() and digits.isdigit() and len(digits) < 10
            return min(int(digits), most) if known else None

        sort = text("sort").lstrip("-")
        return cls(
            metric=text("metric") or "auroc",
            finding=text("finding"),
            site=text("site"),
            round=whole("round", 10**9),
            sort=sort if sort in _SORTS else "name",
            descending=text("sort").startswith("-") and sort in _SORTS,
            filter=text("filter"),
            events=max(whole("events", _MOST_EVENTS) or EVENTS, EVENTS),
            theme=text("theme") if text("theme") in ("dark", "light") else "",
            projector=text("projector") == "1",
        )

    def link(self, **changes: Any) -> str:
        """Return the query of the same view with some choices changed, ``?`` included.

        >>> Address(metric="loss").link(finding="edema")
        '?metric=loss&finding=edema'
        """
        pairs = replace(self, **changes).pairs()
        return f"?{urlencode(pairs)}" if pairs else "?"

    def pairs(self, without: tuple[str, ...] = ()) -> dict[str, str]:
        """Return name -> value of what differs from a fresh page, for addresses and hidden fields."""
        said: dict[str, str] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "descending" or field.name in without or value == field.default:
                continue
            said[field.name] = "1" if value is True else str(value)
        if "sort" not in without and (self.descending or self.sort != "name"):
            said["sort"] = f"-{self.sort}" if self.descending else self.sort
        return said

    def of_run(self, metrics: list[str], findings: tuple[str, ...], sites: list[str], last: int) -> Address:
        """Keep only choices that this run has, so that no address makes work twice."""
        return replace(
            self,
            metric=self.metric if self.metric in metrics else "auroc",
            finding=self.finding if self.finding in findings else "",
            site=self.site if self.site in sites else "",
            round=self.round if self.round is not None and 1 <= self.round <= last else None,
        )

    def without_look(self) -> Address:
        """Return what is looked at, without how: the script puts theme and projector back into links."""
        return replace(self, theme="", projector=False)


def order(value: float | None) -> float:
    """Return a key that sorts numbers and puts what is absent last."""
    return math.inf if value is None else value
