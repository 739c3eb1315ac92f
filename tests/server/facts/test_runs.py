"""Runs are found by listing; what is asked for by an address is only ever one of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from common.errors import RunError
from server.centre.folder import CentreFolder
from server.facts.compare import compare
from server.facts.plan import plan_facts
from server.facts.runs import Run, Runs, summary
from server.ledger import Ledger


def plan_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "plan.toml").write_text("[config]\n")
    return folder


def test_a_folder_of_runs_two_levels_deep_and_never_inside_one(tmp_path: Path) -> None:
    plan_in(tmp_path / "one")
    plan_in(tmp_path / "one" / "pooled")
    plan_in(tmp_path / "grid" / "rank 4")
    plan_in(tmp_path / "grid" / "rank-4")
    plan_in(tmp_path / "a" / "b" / "too-deep")
    plan_in(tmp_path / ".hidden")
    (tmp_path / "linked").symlink_to(tmp_path / "a" / "b" / "too-deep")
    runs = Runs.of_folder(tmp_path)
    keys = {run.folder.relative_to(tmp_path).as_posix(): run.key for run in runs.list()}
    assert keys == {"one": "one", "grid/rank 4": "grid.rank-4", "grid/rank-4": "grid.rank-4-2"}
    assert runs.find("grid.rank-4-2").folder.name == "rank-4"
    for key in ("one/pooled", "../one", "", "a", "one\n", "x" * 10_000, str(tmp_path / "one")):
        with pytest.raises(RunError, match="no run"):
            runs.find(key)


def test_a_run_that_comes_is_found_and_one_that_goes_is_forgotten(tmp_path: Path) -> None:
    runs = Runs.of_folder(tmp_path)
    assert runs.list() == []
    plan_in(tmp_path / "first")
    assert runs.list() == [], "it looks once a second"
    time.sleep(1.05)
    (first,) = runs.list()
    view = first.view()
    assert view.events() == [] and first.view() is view
    plan_in(tmp_path / "second")
    time.sleep(1.05)
    assert [run.key for run in runs.list()] == ["second", "first"] and runs.find("first") is first
    shutil.rmtree(tmp_path / "first")
    time.sleep(1.05)
    assert [run.key for run in runs.list()] == ["second"]
    runs.close()


def test_a_folder_that_is_a_run(made_up: Path) -> None:
    (run,) = Runs.of_folder(made_up).list()
    assert (run.key, run.steady) == ("up", True)
    run.close()


def test_a_centres_runs(tmp_path: Path) -> None:
    for name in ("first", "second"):
        plan_in(tmp_path / "runs" / name)
    runs = Runs.of_centre(CentreFolder(tmp_path))
    assert {run.key for run in runs.list()} == {"first", "second"}
    run = runs.find("first")
    assert not run.steady and run.heard() == {} and run.admitted() == set(), "it has no registry yet"
    assert summary(run, 0.0).standing.sentence == "starting"


def test_a_summary(run: Run) -> None:
    row, view = summary(run, 2e9), run.view()
    records = [view.record(number) for number in range(1, 13)]
    tested = view.evaluations("test")["federated"]
    assert (row.key, row.title, row.sites, row.split) == (
        "up",
        "A run of 6 sites that never took place",
        6,
        "test",
    )
    assert row.mean_auroc == pytest.approx(sum(m["macro-auroc"] for m in tested.values()) / 6)
    assert (row.up, row.down) == (sum(r["up"] for r in records), sum(r["down"] for r in records))
    assert (row.method, row.backbone) == ("lora r8 (fedit)", "embedded")
    assert row.warnings == sum(len(r["missing"]) + len(r["rejected"]) for r in records) > 0
    events = view.events()
    assert (row.started, row.changed) == (events[0].time, events[-1].time)
    assert row.standing.state == "finished"


def test_before_the_test_the_score_is_validations(told) -> None:
    row = summary(told.run, told.now)
    assert (row.mean_auroc, row.split) == (None, "")
    told.finish_round(1, ["a", "b"], validation_before={"a": 0.5, "b": 0.7})
    row = summary(told.run, told.now)
    assert (row.mean_auroc, row.split) == (pytest.approx(0.6), "validation")
    told.ledger.put_evaluation("federated", "test", "a", {"macro-auroc": 0.9})
    row = summary(told.run, told.now)
    assert (row.mean_auroc, row.split) == (0.9, "test")


def test_what_a_run_is_made_of(run: Run, tmp_path: Path) -> None:
    facts = plan_facts(run.view())
    assert facts is not None
    assert facts.digests["base"] == "b" * 64 and facts.digests["adapter"] == "a" * 64
    assert facts.changed == ("rounds.count", "rounds.sites"), "its four findings are the usual ones"
    assert facts.settings["rounds.count"] == 12 and facts.trained_parameters == 592_515
    early = tmp_path / "early"
    early.mkdir()
    shutil.copy(run.folder / "plan.toml", early)
    waiting = plan_facts(Run("early", early).view())
    assert waiting is not None and waiting.settings == facts.settings
    assert waiting.digests == {k: v for k, v in facts.digests.items() if k != "adapter"}
    (early / "plan.toml").write_text("[broken")
    assert plan_facts(Run("early", early).view()) is None


def test_two_runs_side_by_side(run: Run, real: Path) -> None:
    other = Runs.of_folder(real).list()[0]
    found = compare(run, other, 0.0)
    assert (found.first.key, found.second.key) == ("up", "run")
    assert found.settings["rounds.count"] == ("12", "3")
    assert "evaluate.local" not in found.settings, "it is the same"
    assert found.settings["data.findings"][1] == "cardiomegaly, effusion, edema"
    ledger = Ledger(real / "ledger.sqlite")
    tested = ledger.evaluations("test")["federated"]
    ledger.close()
    sites = {row.site: row for row in found.sites}
    assert {*sites} == {*run.view().sites(), *tested}
    assert sites["hill"].second is None and sites["hill"].second_interval is None
    assert sites["east"].second == tested["east"].get("macro-auroc")
    assert sites["north"].first_interval is not None
    same = compare(run, run, 0.0)
    assert same.settings == {} and all(row.first == row.second for row in same.sites)
    other.close()
