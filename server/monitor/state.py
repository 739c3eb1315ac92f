"""Monitor: what every handler of the page works on, kept at ``app.state.monitor``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.centre.doors import Doors
from server.monitor.settings import MonitorSettings
from server.monitor.watch import Watch

if TYPE_CHECKING:
    from server.centre.folder import CentreFolder
    from server.facts.runs import Runs
    from server.monitor.access import Access


@dataclass
class Monitor:
    """The runs that are shown, how, and to whom."""

    runs: Runs
    settings: MonitorSettings = field(default_factory=MonitorSettings)
    access: Access | None = None
    """Who may look; None: whoever reaches the page, as on loopback without users."""
    secure: bool = False
    """Whether the page is served over TLS."""
    names: frozenset[str] = frozenset()
    """Host names by which the page may be called, beside loopback's and bare addresses."""
    centre: str = ""
    """The name of the centre whose runs these are; empty for a folder of runs."""
    folder: CentreFolder | None = None
    """That centre's folder."""
    doors: Doors = field(default_factory=Doors)
    """The connections of the listener."""
    clock: Callable[[], float] = time.time
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.runs, self.settings.late, self.settings.silent, self.clock)

    def now(self) -> float:
        """Return the time that ages are told by, in seconds since 1970."""
        return self.clock()
