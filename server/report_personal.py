"""The report's part on personalisation: which site kept what it made of the released adapter, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeInt

from server.report_run import Name, Part, Share

PERSONAL = "personal"
"""Fact of a ledger: the adapter's digest, the method, and under ``sites`` what each site said."""


class PersonalSite(Part):
    """What one site made of the released adapter."""

    kept: bool
    """Whether it was better on the site's own validation studies; else the site went back."""
    steps: NonNegativeInt
    """Optimiser steps it took."""
    validation_before: Share | None
    """Macro AUROC of the released adapter on the site's validation studies; `null`: undefined or
    withheld."""
    validation_after: Share | None
    """The same of what the site made, kept or not."""


class PersonalPart(Part):
    """How the sites made the released adapter their own."""

    method: Name
    """What each site did, `personalise.method` of the plan."""
    sites: dict[Name, PersonalSite]
    """Site to what came of it; a site that could not is absent."""


def personal_part(told: Mapping[str, Any] | None) -> PersonalPart | None:
    """Lay out what the ledger tells of the stage; None where there was none."""
    if not told:
        return None
    sites = {
        site: PersonalSite(
            kept=of["kept"],
            steps=of["steps"],
            validation_before=of.get("before"),
            validation_after=of.get("after"),
        )
        for site, of in sorted(told["sites"].items())
    }
    return PersonalPart(method=told["method"], sites=sites)
