"""A run whose ledger grows as a test says, and what of it a writer must hold."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest

from server.facts.runs import Run, Runs

Held = dict[str, dict[int, float]]


def ledger_says(run: Any) -> Held:
    """Return name -> round -> value, read from the ledger's own table by other means than ours."""
    run.ledger._db.execute("PRAGMA wal_checkpoint")
    db = sqlite3.connect(run.folder / "ledger.sqlite")
    rows = db.execute("SELECT name, finding, site, round, value FROM measures").fetchall()
    db.close()
    found: Held = {}
    for name, finding, site, number, value in rows:
        middle = f"{finding or 'macro'}/" if name in ("auroc", "pr-auc", "ece") else ""
        found.setdefault(f"{name}/{middle}{site or '_federation'}", {})[number] = value
    return found


@pytest.fixture
def written_run(page_centre: Any) -> Any:
    """A run of three sites, enrolled, without a round."""
    sites = ["north", "south", "edema"]  # a site may bear a finding's name
    run = page_centre.run("pilot", sites, began=time.time() - 1000.0)
    run.folder = page_centre.folder.runs / "pilot"
    run.enrol()
    return run


@pytest.fixture
def said() -> Callable[[Any], Held]:
    return ledger_says


@pytest.fixture
def seen(page_centre: Any, written_run: Any) -> Run:
    """The same run as readers find it."""
    return Runs.of_centre(page_centre.folder).find("pilot")


@pytest.fixture
def roll_back() -> Callable[[Any, int], None]:
    """Goes back behind rounds, as the centre's command does."""

    def back(run: Any, to: int) -> None:
        later = [r["round"] for r in run.ledger.rounds() if r["round"] > to]
        run.ledger.event("rolled-back", f"rolled back to round {to}", round=to, rounds=later)
        run.ledger.reset_rounds([r for r in run.ledger.rounds() if r["round"] <= to])
        run.ledger.put("released", None)

    return back
