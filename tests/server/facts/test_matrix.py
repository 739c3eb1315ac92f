"""The matrix holds what each site answered of each model."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.facts.matrix import matrix
from server.facts.runs import Runs
from server.facts.view import LedgerView
from server.ledger import Ledger


@pytest.mark.parametrize("finding", ["", "edema", "consolidation"])
def test_every_cell_is_what_its_site_answered(view: LedgerView, made_up: Path, finding: str) -> None:
    table = matrix(view, finding)
    assert table is not None
    ledger = Ledger(made_up / "ledger.sqlite")
    answers, sites = ledger.evaluations("test"), [*ledger.sites()]
    ledger.close()
    assert table.sites == tuple(sites)
    assert table.models == (
        *(f"local of {site}" for site in sites), "federated", "personalised", "pooled",
    )  # fmt: skip
    assert "calibrated" in answers, "measured too, and its areas are the federated model's"
    assert table.own == (*sites, "", "", "")
    area = f"{finding}.auroc" if finding else "macro-auroc"
    interval = f"{finding}.interval" if finding else "macro-interval"
    for model, own, values, intervals in zip(
        table.models, table.own, table.values, table.intervals, strict=True
    ):
        for site, value, between in zip(table.sites, values, intervals, strict=True):
            arm = "local" if own == site else f"local:{own}" if own else model
            assert value == answers[arm][site].get(area)
            told = answers[arm][site].get(interval)
            assert between == (tuple(told) if told else None)
    absent = [value for row in table.values for value in row if value is None]
    assert bool(absent) == (finding == "consolidation"), "a finding that one site does not annotate"


def test_without_a_matrix_each_sites_own_model_is_one_row(real: Path) -> None:
    run = Runs.of_folder(real).list()[0]
    table = matrix(run.view())
    assert table is not None
    assert table.models == ("local, each its own", "federated") and table.own == ("", "")
    assert matrix(run.view(), "scoliosis").values == ((None,) * 3,) * 2
    run.close()


def test_it_grows_with_what_is_measured_and_shrinks_when_a_run_goes_back(told) -> None:
    view = told.run.view()
    assert matrix(view) is None
    told.ledger.put_evaluation("federated", "validation", "a", {"macro-auroc": 0.9})
    assert matrix(view) is None
    told.ledger.put_evaluation("local", "test", "a", {"macro-auroc": 0.7})
    assert matrix(view).values == ((0.7,),)
    told.ledger.put_evaluation("federated", "test", "b", {"edema.auroc": 0.6, "edema.interval": [0.5, 0.7]})
    assert matrix(view, "edema").values == ((None, None), (None, 0.6))
    assert matrix(view, "edema").intervals[1] == (None, (0.5, 0.7))
    told.ledger.put_evaluation("local", "test", "a", {"macro-auroc": 0.75})
    assert matrix(view).values == ((0.75, None), (None, None)), "measured again"
    told.finish_round(1, ["a"])
    told.ledger.reset_rounds([])
    assert matrix(view).models == ("local, each its own",), "a federated model is no longer there"
