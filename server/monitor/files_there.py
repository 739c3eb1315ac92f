"""What can be downloaded of a run, as a page lays it out: files of one subject side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.monitor.downloads import offers
from server.monitor.tables import TABLES

if TYPE_CHECKING:
    from server.facts.runs import Run

_NAMES = {
    "report": "Report",
    "release": "Release",
    "plan": "Plan",
    "ledger": "Whole ledger",
}
_KINDS = {"html": "HTML", "json": "JSON", "toml": "TOML", "zip": "ZIP", "csv": "CSV", "parquet": "Parquet"}


@dataclass(frozen=True)
class Group:
    """Files that belong together."""

    name: str
    about: str
    links: tuple[tuple[str, str], ...]
    """(what it says, where it leads)."""


def downloads(run: Run) -> list[Group]:
    """Return what a run has now, grouped by what it is about: files of the run, then its tables."""
    found: dict[str, Group] = {}
    for offer in offers(run):
        subject, _, ending = offer.file.rpartition(".")
        link = (_KINDS.get(ending, ending), f"/runs/{run.key}/download/{offer.file}")
        name = _NAMES.get(subject, f"Table: {subject}")
        about = TABLES[subject].about if subject in TABLES else offer.about
        links = found[subject].links if subject in found else ()
        found[subject] = Group(name, about, (*links, link))
    return sorted(found.values(), key=lambda group: group.name.startswith("Table"))
