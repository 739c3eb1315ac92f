"""Alert: something about a run that somebody should know, and Notice: one message about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.monitor.alerts.settings import Severity

Status = Literal["open", "reminder", "over"]


@dataclass(frozen=True)
class Alert:
    """A rule that holds. It names sites and findings, and no patient, no path and no secret."""

    run: str
    rule: str
    """``site-silent``, ``divergence-loss`` ...: stable, for machines."""
    site: str
    """A site, or empty: the federation."""
    severity: Severity
    sentence: str
    since: float
    """When it began, as far as that is known."""
    patience: float = 0.0
    """Seconds it must hold before it is told."""

    @property
    def key(self) -> str:
        """What makes it the same alert as a moment ago: run, rule and site."""
        return f"{self.run}/{self.rule}/{self.site}"


@dataclass(frozen=True)
class Notice:
    """One message: an alert opens, still holds, or is over."""

    id: str
    """The same however often the message is sent, so that a receiver can leave out doubles."""
    status: Status
    alert: Alert
    time: float
    """When it was said."""
