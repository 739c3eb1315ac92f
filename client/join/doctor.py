"""``fedcxr-site doctor``: look at everything a site needs, in seconds, and say how to mend what is wrong.

The checks run side by side, each on its own thread that may be left behind: a share that hangs or a
packet that is dropped costs its own check and no other.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.join.checks.case import Case, Check, Level, Outcome, Surroundings, failure, warning
from client.join.checks.data import check_folders, check_studies
from client.join.checks.files import check_keys, check_settings, check_welcome
from client.join.checks.machine import (
    check_device,
    check_environment,
    check_memory,
    check_processor,
    check_python,
)
from client.join.checks.network import check_network
from client.join.checks.node import check_node
from client.join.checks.permission import check_approval, check_audit, check_code, check_policy
from client.place import SiteFolder

SECONDS = 9.0
"""After which whatever has not answered is given up."""

GROUPS: Mapping[str, Sequence[Check]] = {
    "this machine": (
        check_python,
        check_memory,
        check_processor,
        check_device,
        check_environment,
        check_node,
    ),
    "files and keys": (check_settings, check_keys, check_welcome),
    "code and approval": (check_policy, check_code, check_approval, check_audit),
    "network": (check_network,),
    "data": (check_studies, check_folders),
}
"""Group -> checks, in the order they are shown."""


@dataclass(frozen=True)
class Examination:
    """What doctor found."""

    place: Path
    groups: Mapping[str, tuple[Outcome, ...]]
    seconds: float

    def of(self, level: Level) -> list[Outcome]:
        """Return the outcomes of a level, in order."""
        return [
            outcome for outcomes in self.groups.values() for outcome in outcomes if outcome.level == level
        ]

    @property
    def healthy(self) -> bool:
        """Nothing failed."""
        return not self.of("failure")


def examine(place: Path, offline: bool = False, around: Surroundings | None = None) -> Examination:
    """Run every check on a site.

    Raises:
        ConfigError: if there is no site at ``place``.
    """
    began = time.monotonic()
    folder = SiteFolder.of(place)
    case = Case(folder, offline, around or Surroundings())
    _ = case.site, case.welcome, case.invitation  # read once, before the threads ask for them
    running = {group: [_Running(check, case) for check in checks] for group, checks in GROUPS.items()}
    end = began + SECONDS
    groups = {
        group: tuple(outcome for one in checks for outcome in one.outcomes(end))
        for group, checks in running.items()
    }
    return Examination(folder.root, groups, time.monotonic() - began)


class _Running:
    """A check on its thread, which ends with the process if it must."""

    def __init__(self, check: Check, case: Case) -> None:
        self._name = check.__name__.removeprefix("check_").replace("_", " ")
        self._told: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(check, case), daemon=True).start()

    def _run(self, check: Check, case: Case) -> None:
        try:
            for outcome in check(case):
                self._told.put(outcome)
        except BaseException as error:  # noqa: BLE001  (one check's fault is not the next one's)
            # Its words may hold a value of the table.
            told = f"this check itself failed ({type(error).__name__})."
            self._told.put(failure(self._name, told, "report it with fedcxr-site version"))
        self._told.put(None)

    def outcomes(self, end: float) -> Iterator[Outcome]:
        """Yield what was found; what has not come by ``end`` is told of as such."""
        while True:
            try:
                outcome = self._told.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                yield warning(
                    self._name,
                    "took too long and was given up.",
                    "look at what it reads: a share that does not answer, a very large table",
                )
                return
            if outcome is None:
                return
            yield outcome
