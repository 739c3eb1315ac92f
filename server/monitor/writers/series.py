"""The names by which a run's numbers are written, and reading them out of its ledger.

    MEASURE/SITE                       loss/north
    MEASURE/FINDING/SITE               auroc/edema/north; auroc/macro/north over its findings
    MEASURE/_federation                lora-error/_federation
    MEASURE/.../_mean  .../_worst      over the sites that have a value
    test-MEASURE/MODEL/FINDING/SITE    test-auroc/federated/macro/north

What begins with ``_`` is no site: a site's name cannot. The steps of a series are rounds; 0 is the
adapter the run began with. Figures of the test stand at the round whose adapter was tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from server.facts.curves import curve, metrics_of
from server.facts.view import LedgerView

BY_FINDING = ("auroc", "pr-auc", "ece")
MEANS = (*BY_FINDING, "loss")
"""Measures whose mean over the sites, and worst site, are written too."""
_OF_ALL = ("aggregate-norm", "lora-error", "epsilon", "seconds", "up", "down")
TEST = "test-"


class Scalar(NamedTuple):
    """One number of one round."""

    name: str
    round: int
    value: float


_ROWS = "SELECT site, round, value FROM measures WHERE name = ? AND finding = ? AND round >= ?"


def scalars(view: LedgerView, since: int) -> Iterator[Scalar]:
    """Yield every number of the rounds from ``since`` on, and of the test."""
    config = view.config()
    findings = config.data.findings if config is not None else ()
    names = [*metrics_of(view), *_OF_ALL]
    last = view.last_round()
    for name in dict.fromkeys(names):
        for finding in ("", *(findings if name in BY_FINDING else ())):
            yield from _of(view, name, finding, since)
        if name in MEANS:
            yield from _means(view, name, since)
    yield from _tested(view, last)


def is_settled(scalar: Scalar, last: int) -> bool:
    """Tell whether a number of a run that has not finished will stay as it is.

    Sites measure the last adapter, and are tested, one by one: until the run has finished its means
    are of some of them only.
    """
    if scalar.name.startswith(TEST):
        return False
    mean = scalar.name.endswith(("/_mean", "/_worst")) and not scalar.name.startswith("loss/")
    return not mean or scalar.round < last


def _of(view: LedgerView, name: str, finding: str, since: int) -> Iterator[Scalar]:
    for site, number, value in _points(view, name, finding, since):
        if number >= since and math.isfinite(value):
            yield Scalar(_path(name, finding, site or "_federation"), number, value)


def _points(view: LedgerView, name: str, finding: str, since: int) -> list[tuple[str, int, float]]:
    """Read only what is new, where the ledger's layout allows it."""
    if since and (rows := view.rows(_ROWS, (name, finding, since))):
        return rows
    return [(site, *point) for site, points in view.series(name, finding).items() for point in points]


def _means(view: LedgerView, name: str, since: int) -> Iterator[Scalar]:
    found = curve(view, name)
    for place, number in enumerate(found.rounds):
        for what, values in (("_mean", found.mean), ("_worst", found.worst)):
            value = values[place]
            if value is not None and number >= since:
                yield Scalar(_path(name, "", what), number, value)


def _tested(view: LedgerView, last: int) -> Iterator[Scalar]:
    config = view.config()
    released = view.get("released") or {}
    number = int(released.get("round", last))
    keys = {("auroc", "macro"): "macro-auroc"}
    for finding in config.data.findings if config is not None else ():
        keys |= {(name, finding): f"{finding}.{name}" for name in BY_FINDING}
    for arm, sites in view.evaluations("test").items():
        for site, metrics in sites.items():
            for (name, finding), key in keys.items():
                value = metrics.get(key)
                if isinstance(value, int | float) and math.isfinite(value):
                    yield Scalar(f"{TEST}{name}/{arm}/{finding}/{site}", number, float(value))


def _path(name: str, finding: str, site: str) -> str:
    if name in BY_FINDING:
        return f"{name}/{finding or 'macro'}/{site}"
    return f"{name}/{site}"
