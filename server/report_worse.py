"""Who got worse: by federating, by personalisation, or without taking part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from common.metrics.summary import Difference
from server.report_run import Interval, Name, Part, Share

if TYPE_CHECKING:
    from server.report_schema import Arm, SiteResult

MACRO = "macro"


class Shortfall(Part):
    """What one arm loses against another, at a site or in a finding there."""

    site: Name
    """Name of the site."""
    finding: Name
    """Finding, or `macro` for the site's mean over findings."""
    difference: Annotated[float, Field(lt=0)]
    """The arm judged minus the one it is judged against, below 0."""
    interval: Interval
    """95 % paired interval of `difference`."""
    certain: bool
    """Whether the whole interval lies below 0."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.certain != (self.interval[1] < 0):
            raise ValueError(f"certain={self.certain} contradicts the interval {self.interval}")
        return self


class WorseSite(Shortfall):
    """A site, or a finding at a site, where federated scores below local."""

    local: Share
    """AUROC of the local arm."""
    federated: Share
    """AUROC of the federated arm."""


class Loss(Shortfall):
    """A site, or a finding at a site, where one arm scores below another."""

    candidate: Name
    """Arm that is judged."""
    reference: Name
    """Arm it is judged against."""
    before: Share
    """AUROC of the reference."""
    after: Share
    """AUROC of the candidate."""


def find_losses(
    arms: Mapping[str, Arm],
    candidate: str,
    reference: str,
    gaps: Mapping[str, Mapping[str, Difference]],
) -> tuple[Loss, ...]:
    """List every site, and every finding at a site, where ``candidate`` is below ``reference``; worst first.

    ``gaps`` maps a site to the paired differences, by finding or ``macro``.
    """
    found = [
        Loss(
            site=site,
            finding=finding,
            candidate=candidate,
            reference=reference,
            before=before,
            after=after,
            difference=gap.difference,
            interval=gap.interval,
            certain=gap.interval[1] < 0,
        )
        for site, finding, gap in _below(gaps)
        if (before := area_of(arms[reference].sites.get(site), finding)) is not None
        and (after := area_of(arms[candidate].sites.get(site), finding)) is not None
    ]
    return tuple(sorted(found, key=lambda loss: loss.difference))


def _below(gaps: Mapping[str, Mapping[str, Difference]]) -> Iterator[tuple[str, str, Difference]]:
    for site, differences in gaps.items():
        for finding, gap in differences.items():
            if gap.difference < 0:
                yield site, finding, gap


def area_of(result: SiteResult | None, finding: str) -> float | None:
    """Return the AUROC of a finding, or of ``macro``, at one site under one arm; None: undefined."""
    if result is None:
        return None
    if finding == MACRO:
        return result.macro_auroc
    return result.findings[finding].auroc if finding in result.findings else None
