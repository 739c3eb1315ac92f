"""One temperature for all findings, fitted over all sites: what calibration by finding is compared with.

Every logit is scaled by one slope, the inverse of the temperature (Guo et al. 2017, arXiv:1706.04599,
section 4.2), with no bias. The likelihood is that of `server.calibrate`, summed over findings, and its
derivatives come from the same sums, at one slope and bias 0 of every finding: so it too is what the
pooled studies would have given. It cannot undo the shift of a loss that weights the classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import SchemaError
from common.metrics.platt import MOST_EXCHANGES, PlattSums, objective, total
from common.protocol import Value
from server.calibrate import LEAST_SLOPE, SETTLED, alike, read_sums

_FARTHEST = 2.0
"""A step goes at most so far beyond what is known, as a factor: far out the curvature misleads."""


@dataclass(frozen=True)
class Temperature:
    """How all logits are to be scaled: sigmoid(slope z)."""

    slope: float
    """The inverse of the temperature; 1 where none was found."""
    sites: tuple[str, ...]
    findings: tuple[str, ...]
    """Findings and sites whose studies it was fitted on; none where none was found."""
    exchanges: int
    left: str = ""
    """Why none was found."""


class TemperatureFit:
    """The fit, one exchange after another; used as `server.calibrate.Calibration`."""

    def __init__(self, findings: Sequence[str]) -> None:
        self._findings = tuple(findings)
        self._slope, self._low, self._high = 1.0, 0.0, math.inf
        self._kept: dict[tuple[str, str], PlattSums] = {}
        """(site, finding) -> its sums at the last slope; whoever was silent once is gone from here."""
        self._exchanges = 0
        self._over, self._left = False, ""

    @property
    def done(self) -> bool:
        """Whether the temperature is settled, one way or the other."""
        return self._over

    def ask(self) -> dict[str, tuple[float, float]]:
        """Return the slope and bias at which each finding is to be asked for."""
        return {} if self._over else dict.fromkeys(self._findings, (self._slope, 0.0))

    def take(self, answers: Mapping[str, Mapping[str, Value]]) -> dict[str, str]:
        """Take what the sites answered; returns the sites whose answer was no answer, with the reason."""
        refused: dict[str, str] = {}
        told: dict[tuple[str, str], PlattSums] = {}
        for site, metrics in sorted(answers.items()):
            try:
                read = {(site, f): read_sums(metrics, f) for f in self._findings if f"{f}.platt" in metrics}
            except SchemaError as error:
                refused[site] = error.problem
                continue
            told |= read
        self._exchanges += 1
        first, before = self._exchanges == 1, self._kept
        self._kept = {k: s for k, s in told.items() if first or (k in before and alike(s, before[k]))}
        if not first and len(self._kept) < len(before):
            self._low, self._high = 0.0, math.inf  # of other studies the maximum lies elsewhere
        self._step()
        if not self._over and self._exchanges >= MOST_EXCHANGES:
            self._leave(f"no maximum was found in {MOST_EXCHANGES} exchanges")
        return refused

    @property
    def result(self) -> Temperature:
        """The temperature; 1 as long as it is not settled."""
        if not self._over or self._left:
            return Temperature(1.0, (), (), self._exchanges, self._left or "not settled")
        sites = tuple(sorted({site for site, _ in self._kept}))
        findings = tuple(f for f in self._findings if f in self._sums())
        return Temperature(self._slope, sites, findings, self._exchanges)

    def _sums(self) -> dict[str, PlattSums]:
        """Finding -> all sites' sums, of those that some study has and some study lacks."""
        added = {
            finding: total(sums for (_, of), sums in self._kept.items() if of == finding)
            for finding in self._findings
        }
        return {finding: sums for finding, sums in added.items() if sums.positives and sums.negatives}

    def _step(self) -> None:
        """Take Newton's step; where it leaves what is known of the maximum, halve that instead."""
        parts = [objective(sums, self._slope, 0.0) for sums in self._sums().values()]
        if not parts:
            self._leave("no site may tell of enough studies")
            return
        gradient = math.fsum(float(part.gradient[0]) for part in parts)
        curvature = math.fsum(float(part.hessian[0, 0]) for part in parts)
        if curvature <= 0.0:
            self._leave("the scores of all studies are alike")
            return
        step = -gradient / curvature
        if -gradient * step / 2 <= SETTLED:  # what Newton's step would still gain
            self._slope += step
            self._over = True
            if self._slope < LEAST_SLOPE:
                self._leave("the model's scores do not rise with the findings")
            return
        if gradient < 0:
            self._low = self._slope
        else:
            self._high = self._slope
        if self._high <= LEAST_SLOPE:
            self._leave("the model's scores do not rise with the findings")
            return
        most = min(self._high, _FARTHEST * self._slope)
        wanted, halfway = self._slope + step, (self._low + most) / 2
        self._slope = wanted if self._low < wanted < most else most if most < self._high else halfway

    def _leave(self, why: str) -> None:
        self._over, self._left = True, why
