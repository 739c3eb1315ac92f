"""Platt scaling as sums over studies, so that sites together fit what their pooled studies would.

A finding's probability becomes p = sigmoid(a z + b), z the model's logit, a the slope and b the
bias, both by maximum likelihood (Platt 1999). With targets t, u = a z + b and p as above,

    loss      L = sum log(1 + exp(u)) - t u        (Lin, Lin and Weng 2007, doi:10.1007/s10994-007-5018-6)
    gradient      sum (p - t) z,  sum (p - t)
    Hessian       sum p (1 - p) z z,  sum p (1 - p) z,  sum p (1 - p)

and t is one value for every study with the finding and one for every study without it, so these
are linear in sums that a site can make without knowing t: `PlattSums`. Adding the sites' sums and
taking Newton's step is the step on the pooled studies. The mean of the sites' own slopes is not: a
site's maximum is no linear function of its studies.

The sums travel with 8 decimals: fewer would move the maximum by more than 1e-6. That is more than
other figures have, so what it tells should be known: a centre that chose its points badly and asked
often could solve for the scores of a site's studies, if they are few. Hence a site tells of no
finding that fewer than ``min_cell`` studies have or lack, and answers `MOST_EXCHANGES` times at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, SchemaError
from common.metrics.discrimination import annotated

Floats = NDArray[np.float64]

DECIMALS = 8
MOST_EXCHANGES = 16
"""Asked at most so often. Four to six are usual; the wildest scores we could make took twelve."""
MOST_LOGIT = 104.0
"""Beyond the logit of every float32 between 0 and 1; a probability of 0 or 1 is given a logit here."""


@dataclass(frozen=True)
class PlattSums:
    """Sums over one finding's annotated studies at one slope and bias; ``p`` and ``u`` as above."""

    positives: int
    negatives: int
    softplus: float
    """sum log(1 + exp(u))"""
    pz: float
    """sum p z"""
    p: float
    """sum p"""
    wzz: float
    """sum p (1 - p) z z"""
    wz: float
    """sum p (1 - p) z"""
    w: float
    """sum p (1 - p)"""
    z_positive: float
    """sum z over the studies with the finding"""
    z_negative: float
    """sum z over the studies without it"""

    @property
    def studies(self) -> int:
        """How many studies were annotated."""
        return self.positives + self.negatives

    def to_list(self) -> list[float]:
        """Return the eight sums as they travel, rounded; the two counts travel beside them.

        >>> site_sums(np.array([1.0, -1.0, 0.5]), np.array([1, 0, np.nan]), 0.0, 0.0).to_list()
        [1.38629436, 0.0, 1.0, 0.5, 0.0, 0.5, 1.0, -1.0]
        """
        return [round(float(value), DECIMALS) + 0.0 for value in astuple(self)[2:]]

    @classmethod
    def from_list(cls, positives: object, negatives: object, sums: object) -> PlattSums:
        """Read what a site sent, and refuse what no studies could have given.

        Raises:
            SchemaError: if a number is missing, not finite, or beyond what so many studies can sum to.
        """
        counted = all(type(n) is int and n >= 0 for n in (positives, negatives))
        if not (counted and isinstance(sums, Sequence) and len(sums) == len(SUMS)):
            raise SchemaError("a site's sums for calibration are not two counts and eight numbers")
        if not all(type(value) is float and math.isfinite(value) for value in sums):
            raise SchemaError("a site's sums for calibration are not all numbers")
        read = cls(positives, negatives, *sums)  # type: ignore[arg-type]
        if not read._possible():
            raise SchemaError(f"a site's sums for calibration cannot come from {read.studies} studies")
        return read

    def _possible(self) -> bool:
        n, slack = self.studies, (self.studies + 1) * 1e-6  # of rounding, here and at the site
        most = MOST_LOGIT * n + slack
        return (
            n > 0
            and -slack <= self.softplus
            and -slack <= self.p <= n + slack
            and abs(self.pz) <= most
            and -slack <= self.w <= n / 4 + slack
            and -slack <= self.wzz <= MOST_LOGIT * most / 4 + slack
            and abs(self.wz) <= most / 4 + slack
            and abs(self.z_positive) <= MOST_LOGIT * self.positives + slack
            and abs(self.z_negative) <= MOST_LOGIT * self.negatives + slack
        )


SUMS = tuple(PlattSums.__dataclass_fields__)[2:]
"""Names of the sums, in the order in which they travel."""


@dataclass(frozen=True)
class Objective:
    """The loss at a slope and bias with its gradient ``[2]`` and Hessian ``[2, 2]``, slope first."""

    loss: float
    gradient: Floats
    hessian: Floats


def logits(probabilities: NDArray[Any]) -> Floats:
    """Return log(p / (1 - p)) in float64, strictly increasing over every float32 from 0 to 1.

    0 and 1, to which a float32 sigmoid rounds extreme logits, become the next logit outwards.

    >>> logits(np.array([0.5, 0.75], dtype=np.float32)).round(4)
    array([0.    , 1.0986])

    Raises:
        DataError: if a probability is not within 0 to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("a probability lies outside 0 to 1", fix="calibrate probabilities, not logits")
    p = np.clip(p, 2.0**-150, 1 - 2.0**-25)  # half of the least float32, half a step below 1
    return np.log(p) - np.log1p(-p)


def calibrated(probabilities: NDArray[Any], slope: NDArray[Any], bias: NDArray[Any]) -> Floats:
    """Return sigmoid(a z + b) in float64 for ``[N, F]`` probabilities and a, b ``[F]``.

    A finding of slope 1 and bias 0 is returned as it came. A positive slope leaves every ranking,
    hence AUROC, as it was. Keep the result in float64: as float32, near ones would become ties.

    Raises:
        DataError: as `logits`.
    """
    a, b = np.asarray(slope, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    same = (a == 1.0) & (b == 0.0)
    return np.where(same, probabilities, _sigmoid(a * logits(probabilities) + b))


def site_sums(z: NDArray[Any], labels: NDArray[Any], slope: float, bias: float) -> PlattSums:
    """Sum one finding's studies ``[N]`` at a slope and bias; studies with the label NaN are left out.

    Raises:
        DataError, LabelError: if a logit is not finite, or a label is not 1, 0 or NaN.
    """
    z, y = annotated(z, labels)
    u = slope * z + bias
    p, w = _sigmoid(u), _sigmoid(u) * _sigmoid(-u)
    return PlattSums(
        positives=int(y.sum()),
        negatives=int((1 - y).sum()),
        softplus=float(np.logaddexp(0.0, u).sum()),
        pz=float((p * z).sum()),
        p=float(p.sum()),
        wzz=float((w * z * z).sum()),
        wz=float((w * z).sum()),
        w=float(w.sum()),
        z_positive=float(z[y == 1].sum()),
        z_negative=float(z[y == 0].sum()),
    )


def total(sums: Iterable[PlattSums]) -> PlattSums:
    """Add sites' sums, correctly rounded, so their order does not matter."""
    rows = [astuple(each) for each in sums]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(PlattSums.__dataclass_fields__)
    positives, negatives = (sum(int(v) for v in column) for column in columns[:2])
    return PlattSums(positives, negatives, *(math.fsum(column) for column in columns[2:]))


def targets(positives: int, negatives: int, smooth: bool = True) -> tuple[float, float]:
    """Return the target of a study with the finding and of one without it.

    Platt's (N+ + 1) / (N+ + 2) and 1 / (N- + 2), of the *pooled* counts: with them the maximum
    exists where scores separate the studies, as they often do on few (Lin et al. 2007, eq. 2).

    >>> targets(8, 98)
    (0.9, 0.01)
    """
    return ((positives + 1) / (positives + 2), 1 / (negatives + 2)) if smooth else (1.0, 0.0)


def objective(sums: PlattSums, slope: float, bias: float, smooth: bool = True) -> Objective:
    """Return the loss and its derivatives at the slope and bias at which the sums were made."""
    high, low = targets(sums.positives, sums.negatives, smooth)
    tz = high * sums.z_positive + low * sums.z_negative
    t = high * sums.positives + low * sums.negatives
    return Objective(
        loss=sums.softplus - slope * tz - bias * t,
        gradient=np.array([sums.pz - tz, sums.p - t]),
        hessian=np.array([[sums.wzz, sums.wz], [sums.wz, sums.w]]),
    )


def _sigmoid(u: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -u))
