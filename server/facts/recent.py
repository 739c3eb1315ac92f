"""What was found in a ledger lately, while no round and no evaluation has come that would change it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from server.facts.view import LedgerView

MOST = 6
"""Findings kept; the largest, a curve of fifty sites over five hundred rounds, takes a megabyte."""

Found = TypeVar("Found")


class Recent:
    """The facts asked for last: a page shows each in a table, in words and in figures."""

    def __init__(self) -> None:
        self._mark: object = None
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def update(self, view: LedgerView) -> None:
        """Forget everything if there is a newer round or evaluation."""
        mark = view.results()
        if mark != self._mark:
            self._mark = mark
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()

    def of(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """Return what is kept under ``key``, or what ``find`` finds now; nobody may change it."""
        if key not in self._found:
            self._found[key] = find()
            if len(self._found) > MOST:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        found: Found = self._found[key]
        return found
