"""The site table, beside what the ledger's rows add up to."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.centre.folder import CentreFolder
from server.centre.registry import Registry
from server.facts.runs import Run, Runs
from server.facts.sites import site_rows
from server.ledger import Ledger, Measure


def test_the_rows_of_a_real_run(real: Path) -> None:
    run = Runs.of_folder(real).list()[0]
    rows = {row.name: row for row in site_rows(run, 0.0)}
    ledger = Ledger(real / "ledger.sqlite")
    records, sites, tested = ledger.rounds(), ledger.sites(), ledger.evaluations("test")["federated"]
    assert [*rows] == ["east", "north", "south"]
    assert rows["east"].participation == ("returned", "rejected", "returned")
    assert rows["north"].participation == ("returned",) * 3
    (rejection,) = rows["east"].rejections
    assert (rejection.round, rejection.code) == (2, "E_NORM")
    assert "larger than strategy.max_update_norm (found" in rejection.reason
    for name, row in rows.items():
        assert row.contact == "unknown" and row.doing == ""
        assert row.train_studies == sites[name]["train-studies"] and row.findings == tuple(
            sites[name]["findings"]
        )
        assert row.update_norm == records[2]["update_norm"][name]
        assert row.auroc == ledger.evaluations("validation")["federated"][name].get("macro-auroc")
        gain = tested[name].get("gain.macro")
        assert row.gain == (tuple(gain) if gain else None)
        assert row.seconds is not None and row.seconds >= 0
    assert sum(row.weight for row in rows.values()) == pytest.approx(1.0)
    assert sum(row.up for row in rows.values()) == sum(r["up"] for r in records)
    assert sum(row.down for row in rows.values()) == sum(r["down"] for r in records)
    assert len({row.down for row in rows.values()}) == 1, "all are sent the same adapter"
    ledger.close()
    run.close()


def test_bytes_add_up_as_rounds_come_and_are_gone_back_behind(told) -> None:
    for number in (1, 2, 3):
        told.ledger.put_measures([Measure("up", "", "a", number, 10), Measure("down", "", "a", number, 7)])
        told.finish_round(number, ["a"])
        (row,) = site_rows(told.run, told.now)
        assert (row.up, row.down) == (10 * number, 7 * number)
    told.ledger.reset_rounds(told.ledger.rounds()[:1])
    (row,) = site_rows(told.run, told.now)
    assert (row.up, row.down, row.participation) == (10, 7, ("returned",))


def test_what_a_site_does_now(told) -> None:
    def doing():
        return {row.name: (row.doing, row.participation) for row in site_rows(told.run, told.now)}

    told.tell("plan")
    for site in ("a", "b", "c"):
        told.ledger.put_site(site, {"findings": []})
        told.tell("enrolled", site=site)
    told.tell("refused", site="d", code="E_POLICY")
    assert doing() == {"a": ("", ()), "b": ("", ()), "c": ("", ()), "d": ("refused", ())}
    told.tell("asked", round=1, cohort=["a", "b"])
    told.tell("returned", round=1, site="a")
    assert doing()["a"] == ("answered round 1", ("returned",))
    assert doing()["b"] == ("training round 1", ("asked",))
    assert doing()["c"] == ("", ("not asked",))
    told.finish_round(1, ["a"], cohort=["a", "b"], missing=["b"])
    assert doing()["b"] == ("did not answer round 1", ("missing",))
    assert doing()["d"] == ("refused", ("not asked",))
    told.tell("asking", stage="evaluate", arm="federated", cohort=["a"])
    assert doing()["a"][0] == "measuring federated"
    told.tell("enrolled", site="d")
    assert doing()["d"][0] == ""
    told.tell("finished")
    assert {of[0] for of in doing().values()} == {""}


@pytest.mark.parametrize(
    ("ago", "contact"), [(0, "connected"), (20, "connected"), (21, "late"), (60, "late"), (61, "silent")]
)
def test_a_centres_sites_turn_late_and_silent(tmp_path: Path, told, ago: float, contact: str) -> None:
    root = tmp_path / "centre"
    (root / "runs").mkdir(parents=True)
    told.run.folder.rename(root / "runs" / "told")
    with Registry(root / "registry.sqlite") as registry:
        for place, site in enumerate(["east", "new", "gone"]):
            registry.admit(site, bytes([place]), f"ed25519:{site}", registry.invite(site))
        registry.heard({"east": 5000.0})
        registry.revoke("gone")
    run = Runs.of_centre(CentreFolder(root)).list()[0]
    rows = {row.name: row for row in site_rows(run, 5000.0 + ago)}
    assert [*rows] == ["east", "new"], "whoever was shut out and never took part is not shown"
    assert (rows["east"].contact, rows["east"].heard) == (contact, 5000.0)
    assert (rows["new"].contact, rows["new"].heard) == ("unknown", None)
    told.tell("plan")
    told.tell("finished")
    assert site_rows(run, 5000.0) == [], "a site that is admitted later is none of a run that is over"
    run.close()


def test_a_simulation_has_no_heartbeat(run: Run) -> None:
    assert run.steady
    assert {row.contact for row in site_rows(run, 0.0)} == {"unknown"}
    assert all(row.heard is not None for row in site_rows(run, 0.0)), "but its answers have their time"
