"""Calibrate a model over the sites of a federation: Platt scaling, exact, in a few exchanges.

The centre asks every site for its sums at one slope and bias per finding, adds them, and takes
Newton's step with backtracking (Lin, Lin and Weng 2007, algorithm 1): what the pooled studies of
those sites would have given, to 1e-6. No transport here:

    calibration = Calibration(findings)
    while not calibration.done:
        asked = calibration.ask()            # finding -> (slope, bias)
        calibration.take(answers)            # site -> its answer's metrics
    calibration.result

Findings are independent of each other and stop being asked for as each is settled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import SchemaError
from common.metrics.platt import DECIMALS, MOST_EXCHANGES, Objective, PlattSums, objective, total
from common.protocol import Value

LEAST_SLOPE = 1e-3
"""Below it the scores say nothing of the finding, or the opposite; it is left as it is."""
SETTLED = 1e-11
"""A step that lowers the loss by no more is the last: it goes 0.000005 standard errors of the fit
far, and what remains is of its square."""
_SUFFICIENT = 1e-4
"""Share of the promised decrease that a step must bring (Armijo)."""

Point = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """How the logits of each finding are to be scaled: sigmoid(slope z + bias)."""

    slope: dict[str, float]
    bias: dict[str, float]
    sites: dict[str, tuple[str, ...]]
    """Whose studies each calibrated finding was fitted on."""
    left: dict[str, str]
    """Why a finding is left at slope 1 and bias 0."""
    exchanges: int

    def of(self, findings: Sequence[str]) -> tuple[list[float], list[float]]:
        """Return slope and bias ``[F]`` in the order of the findings."""
        return [self.slope[f] for f in findings], [self.bias[f] for f in findings]


class Calibration:
    """The fit of every finding, one exchange after another.

    With ``bias=False`` only a temperature is fitted (Guo et al. 2017, arXiv:1706.04599, one for each
    finding): it cannot undo the shift of a loss that weights the classes, and is here to compare.
    With ``smooth=False`` the targets are 1 and 0, and separable scores have no maximum.
    """

    def __init__(self, findings: Sequence[str], *, bias: bool = True, smooth: bool = True) -> None:
        self._fits = {finding: _Fit(bias, smooth) for finding in findings}
        self._exchanges = 0

    @property
    def done(self) -> bool:
        """Whether every finding is settled, one way or the other."""
        return all(fit.over for fit in self._fits.values())

    def ask(self) -> dict[str, tuple[float, float]]:
        """Return the slope and bias at which each finding not yet settled is to be asked for."""
        return {
            finding: (float(fit.trial[0]), float(fit.trial[1]))
            for finding, fit in self._fits.items()
            if not fit.over
        }

    def take(self, answers: Mapping[str, Mapping[str, Value]]) -> dict[str, str]:
        """Take what the sites answered; returns the sites whose answer was no answer, with the reason.

        A site that is silent once is not counted from then on, for the findings still open.
        """
        refused: dict[str, str] = {}
        sums: dict[str, dict[str, PlattSums]] = {finding: {} for finding in self.ask()}
        for site, metrics in sorted(answers.items()):
            try:
                read = {f: read_sums(metrics, f) for f in sums if f"{f}.platt" in metrics}
            except SchemaError as error:
                refused[site] = error.problem
                continue
            for finding, told in read.items():
                sums[finding][site] = told
        self._exchanges += 1
        for finding, by_site in sums.items():
            self._fits[finding].take(by_site, last=self._exchanges >= MOST_EXCHANGES)
        return refused

    @property
    def result(self) -> Scaling:
        """The scaling; a finding not settled yet is left as it is."""
        good = {finding: fit for finding, fit in self._fits.items() if fit.over and not fit.left}
        return Scaling(
            slope={f: float(good[f].point[0]) if f in good else 1.0 for f in self._fits},
            bias={f: float(good[f].point[1]) if f in good else 0.0 for f in self._fits},
            sites={finding: tuple(fit.kept) for finding, fit in good.items()},
            left={f: fit.left or "not settled" for f, fit in self._fits.items() if f not in good},
            exchanges=self._exchanges,
        )


def read_sums(metrics: Mapping[str, Value], finding: str) -> PlattSums:
    """Read what a site sent of a finding.

    Raises:
        SchemaError: as `PlattSums.from_list`.
    """
    counts = metrics.get(f"{finding}.positives"), metrics.get(f"{finding}.negatives")
    return PlattSums.from_list(*counts, metrics[f"{finding}.platt"])


@dataclass
class _Fit:
    """One finding: the point that was accepted, and the one that is tried.

    It begins at slope 0 and bias 0, where no score is extreme and the Hessian is at its best.
    """

    bias: bool
    smooth: bool
    point: Point = field(default_factory=lambda: np.zeros(2))
    trial: Point = field(default_factory=lambda: np.zeros(2))
    kept: dict[str, PlattSums] = field(default_factory=dict)
    """The sites' sums at the accepted point; a site that is lost is gone from here."""
    over: bool = False
    left: str = ""

    def take(self, told: Mapping[str, PlattSums], last: bool) -> None:
        """Accept the point that was tried or shorten the step, and choose what to try next."""
        first = not self.kept
        names = [n for n in told if first or (n in self.kept and alike(told[n], self.kept[n]))]
        if not names:
            self._leave("no site may tell of enough studies" if first else "the sites did not answer")
            return
        lost = not first and len(names) < len(self.kept)
        if not first:
            self.kept = {name: self.kept[name] for name in names}
        if first or self._enough(told, names):
            self.point, self.kept = self.trial, {name: told[name] for name in names}
            self._propose(start=first)
        elif lost:
            self._propose(start=False)
        else:
            self.trial = (self.point + self.trial) / 2
        if last and not self.over:
            self._leave(f"no maximum was found in {MOST_EXCHANGES} exchanges")

    def _enough(self, told: Mapping[str, PlattSums], names: Sequence[str]) -> bool:
        before = self._objective(self.kept, self.point)
        after = self._objective({name: told[name] for name in names}, self.trial)
        promised = min(0.0, float(before.gradient @ (self.trial - self.point)))
        blur = (1 + len(names)) * 10.0**-DECIMALS
        return after.loss <= before.loss + _SUFFICIENT * promised + blur

    def _propose(self, start: bool) -> None:
        sums = total(self.kept.values())
        if not sums.positives or not sums.negatives:
            without = "without" if sums.positives else "with"
            self._leave(f"no validation study {without} the finding")
            return
        here = self._objective(self.kept, self.point)
        step = _newton(here, self.bias, (1 + len(self.kept)) * 10.0**-DECIMALS)
        if step is None:
            self._leave("the scores of all studies are alike")
            return
        if -float(here.gradient @ step) / 2 <= SETTLED:
            self.point = self.point + step
            self.over = True
            if self.point[0] < LEAST_SLOPE:
                self._leave("the model's scores do not rise with the finding")
            return
        guess = _discriminant(sums) if start and self.bias else None
        self.trial = self.point + step if guess is None else guess

    def _objective(self, kept: Mapping[str, PlattSums], point: Point) -> Objective:
        return objective(total(kept.values()), float(point[0]), float(point[1]), self.smooth)

    def _leave(self, why: str) -> None:
        self.over, self.left = True, why


def alike(now: PlattSums, before: PlattSums) -> bool:
    """Whether a site speaks of the same studies as before."""
    same = (now.positives, now.negatives) == (before.positives, before.negatives)
    drift = abs(now.z_positive - before.z_positive) + abs(now.z_negative - before.z_negative)
    return same and drift <= 1e-4 * now.studies


def _newton(here: Objective, bias: bool, blur: float) -> Point | None:
    """Return Newton's step, or ``None`` where a Hessian rounded by ``blur`` has no inverse."""
    (aa, ab), (_, bb) = here.hessian
    g, h = here.gradient
    if not bias:
        return np.array([-g / aa, 0.0]) if aa > blur else None
    determinant = aa * bb - ab * ab
    if not determinant > blur * (aa + bb + 2 * abs(ab)):
        return None
    step: Point = np.array([ab * h - bb * g, ab * g - aa * h]) / determinant
    return step


def _discriminant(sums: PlattSums) -> Point | None:
    """Return slope and bias by linear discriminant analysis, from the sums at slope 0 and bias 0.

    Exact where each class's logits are Gaussian with one variance (Hastie et al. 2009, eq. 4.9),
    and near the maximum else: it saves half of the exchanges. Where the scores separate the
    studies the slope is held to what the smoothed targets could ask for.
    """
    plus, minus = sums.positives, sums.negatives
    up, down = sums.z_positive / plus, sums.z_negative / minus
    within = 4 * sums.wzz - plus * up * up - minus * down * down  # w = 1/4 at slope 0
    if up == down or within <= 0:
        return None
    most = (math.log(plus + 1) + math.log(minus + 1)) / abs(up - down)
    slope = min(max((up - down) * (plus + minus) / within, -most), most)
    return np.array([slope, math.log((plus + 1) / (minus + 1)) - slope * (up + down) / 2])
