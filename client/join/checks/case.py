"""What a check is given and what it says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from client.place import SiteFolder
from client.site import SiteConfig, load_site
from common.credentials import Invitation, WelcomeFile
from common.errors import FedcxrError

T = TypeVar("T")
Level = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """One thing that was looked at. Holds nothing about a patient: it is made to be sent on."""

    check: str
    level: Level
    found: str
    """One sentence."""
    fix: str = ""
    """One sentence on how to mend it; empty where there is nothing to mend."""


@dataclass(frozen=True)
class Surroundings:
    """What a check asks the machine for and a test may set."""

    now: Callable[[], float] = time.time
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    memory: Callable[[], int] = lambda: available_memory()
    """Bytes that a new process could use."""


class Case:
    """A site under examination; its settings and its welcome are read once and may be absent."""

    def __init__(self, folder: SiteFolder, offline: bool, around: Surroundings) -> None:
        self.folder = folder
        self.offline = offline
        self.around = around

    @cached_property
    def site(self) -> SiteConfig | FedcxrError:
        """The settings, or why they cannot be read."""
        return _or_error(lambda: load_site(self.folder.settings))

    @cached_property
    def welcome(self) -> WelcomeFile | FedcxrError | None:
        """What the centre answered, why that cannot be used, or None: it has not answered yet."""
        if not self.folder.welcome.exists():
            return None
        return _or_error(lambda: WelcomeFile.read(self.folder.welcome))

    @cached_property
    def invitation(self) -> Invitation | FedcxrError | None:
        """The centre's invitation while there is no welcome, or why it cannot be used."""
        if not self.folder.invitation.exists():
            return None
        return _or_error(lambda: Invitation.read(self.folder.invitation))

    @property
    def centre(self) -> WelcomeFile | Invitation | None:
        """Who the centre is, as far as it is known."""
        for known in (self.welcome, self.invitation):
            if isinstance(known, WelcomeFile | Invitation):
                return known
        return None


Check = Callable[[Case], Iterator[Outcome]]


def ok(check: str, found: str) -> Outcome:
    """Say that something is as it should be."""
    return Outcome(check, "ok", found)


def warning(check: str, found: str, fix: str) -> Outcome:
    """Say that something works and should be looked at."""
    return Outcome(check, "warning", found, fix)


def failure(check: str, found: str, fix: str) -> Outcome:
    """Say that something must be mended."""
    return Outcome(check, "failure", found, fix)


def skipped(check: str, why: str) -> Outcome:
    """Say that something could not be looked at."""
    return Outcome(check, "skipped", why)


def broken(check: str, error: FedcxrError, fix: str = "") -> Outcome:
    """Turn one of our errors into a failure; what was found is left out where it may be a value."""
    return failure(check, f"{error.problem} ({error.code})", error.fix or fix or "see docs/deployment.md")


def size(count: float) -> str:
    """Write bytes for people.

    >>> size(512), size(3_400_000), size(2.5e10)
    ('512 B', '3.4 MB', '25.0 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            break
    return f"{count:.1f} {unit}"


def available_memory() -> int:
    """Bytes a new process could use: the machine's, or what is left of the container's limit."""
    free = _free_memory(Path("/proc/meminfo").read_text())
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            cache = _inactive_file(Path("/sys/fs/cgroup/memory.stat").read_text())
            free = min(free, int(limit) - used + cache)
    except (OSError, ValueError):
        pass
    return max(free, 0)


def _free_memory(meminfo: str) -> int:
    told = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return int(told["MemAvailable"].split()[0]) * 1024


def _inactive_file(stat: str) -> int:
    """Bytes of the container's memory that hold files and are given back when they are needed."""
    told = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return int(told.get("inactive_file", 0))


def _or_error(read: Callable[[], T]) -> T | FedcxrError:
    try:
        return read()
    except FedcxrError as error:
        return error
    except Exception as error:  # noqa: BLE001  (a file of strange content must not stop the others)
        return FedcxrError(f"a fault of ours: {type(error).__name__}", fix="report it")
