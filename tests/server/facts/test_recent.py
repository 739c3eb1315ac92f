"""What a page shows several times is found once, and found again as soon as it may be another."""

from __future__ import annotations

from pathlib import Path

from server.facts.recent import MOST, Recent
from server.facts.view import LedgerView
from server.ledger import Ledger


def test_found_once_until_a_round_or_an_evaluation_comes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    looks = []

    def look(view: LedgerView) -> int:
        with view.still():
            return view.keep(Recent).of("answer", lambda: looks.append(1) or len(looks))

    with LedgerView(tmp_path / "ledger.sqlite") as view:
        assert [look(view), look(view)] == [1, 1]
        ledger.event("asked", "Round 1: asking 2 sites", round=1)
        assert look(view) == 1, "an event changes no result"
        ledger.put_round({"round": 1})
        assert [look(view), look(view)] == [2, 2]
        ledger.put_evaluation("federated", "test", "north", {"macro-auroc": 0.5})
        assert look(view) == 3
        ledger.put_evaluation("federated", "test", "north", {"macro-auroc": 0.6})
        assert look(view) == 4, "what is set again is another result"
        ledger.reset_rounds([])
        assert look(view) == 5, "so is what a run went back behind"
    ledger.close()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").close()
    looks = []
    with LedgerView(tmp_path / "ledger.sqlite") as view, view.still():
        recent = view.keep(Recent)
        for key in [*range(MOST), 0, MOST, 0, 1]:  # the second 0 and the third are known, 1 made room
            recent.of(key, lambda key=key: looks.append(key))
    assert looks == [*range(MOST), MOST, 1]
