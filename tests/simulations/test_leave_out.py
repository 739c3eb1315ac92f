"""Leave one site out: the others' federation, measured where none of its studies came from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from client.data.dataset import load_site_data
from client.evaluate import predict
from client.local import baseline_file, load_local
from client.prefix_cache import StudyInputs
from client.site import load_site
from common.adapter import AdapterState
from common.config import RunConfig
from common.errors import ConfigError
from common.metrics.summary import compare_scores
from common.model.build import build_model
from common.overrides import merge
from common.protocol import OWN_MODEL
from common.seeds import numpy_generator
from server.ledger import Ledger
from server.report import render
from server.report_schema import Report
from server.report_words import headline
from simulations import leave_out
from simulations.engine import run_inline
from simulations.experiment import Experiment
from simulations.leave_out import check_leave_out, training_only
from simulations.run import run_experiment
from simulations.view import View

Run = Callable[..., Report]
OUT: dict[str, Any] = {"arms": ["local", "federated", "held-out"], "evaluate": {"local": True}}
SITES = {"north", "east", "south"}


def adapter(run: Path, site: str) -> AdapterState:
    return AdapterState.from_bytes((run / "held-out" / site / "adapter.safetensors").read_bytes())


def pairs(report: Report) -> dict[tuple[str, str], Any]:
    return {(part.candidate, part.reference): part for part in report.further}


@pytest.fixture(scope="module")
def finished(run_tiny: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run with a federation without each of its three sites."""
    run = tmp_path_factory.mktemp("held-out") / "run"
    return run, run_tiny(run, **OUT)


def test_the_model_is_the_federation_of_the_others(
    finished: tuple[Path, Report], tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path
) -> None:
    run, report = finished
    assert set(report.arms["held-out"].sites) == SITES
    config = tiny(**OUT).run_config(3)
    others = {name: file for name, file in tiny_sites.items() if name != "north"}
    run_inline(training_only(config, 2), others, tmp_path / "by-hand")
    ledger = Ledger(tmp_path / "by-hand" / "ledger.sqlite")
    chosen = ledger.get("released")["round"]
    assert set(ledger.sites()) == SITES - {"north"}
    ledger.close()
    file = tmp_path / "by-hand" / "checkpoints" / f"round-{chosen:04d}" / "adapter.safetensors"
    assert adapter(run, "north").digest() == AdapterState.from_bytes(file.read_bytes()).digest()
    assert len({adapter(run, site).digest() for site in SITES}) == 3


def test_figures_and_differences_are_of_that_model_at_that_site(
    finished: tuple[Path, Report], tiny: Any
) -> None:
    """By hand: three models on south's test studies, the same patients drawn for each difference."""
    run, report = finished
    ledger = Ledger(run / "ledger.sqlite")
    plan, released = ledger.get("plan_digest"), ledger.get("released")["round"]
    ledger.close()
    config = tiny(**OUT).run_config(3)
    site = load_site(run / "sites" / "south" / "site.toml")
    own = load_local(baseline_file(site.data.state, plan), plan)
    assert own is not None
    together = (run / "checkpoints" / f"round-{released:04d}" / "adapter.safetensors").read_bytes()
    states = {
        "held-out": adapter(run, "south"),
        "local": own.state,
        "federated": AdapterState.from_bytes(together),
        "all-but:north": adapter(run, "north"),
    }
    model, data = build_model(config), load_site_data(site, config.data, config.seed)
    inputs, test = StudyInputs(model, data, config.train), data.split["test"]
    scores = {}
    for name, state in states.items():
        model.load(state)
        scores[name] = predict(model, inputs, test)
    found = pairs(report)
    for reference in ("local", "federated"):
        macro, _ = compare_scores(
            scores["held-out"],
            scores[reference],
            data.labels[test],
            [str(p) for p in data.patients[test]],
            data.findings,
            replicates=config.evaluate.replicates,
            generator=numpy_generator(config.seed, "bootstrap", "south"),
        )
        assert macro is not None
        told = found["held-out", reference].sites["south"]
        assert told.difference == pytest.approx(macro.difference, abs=6e-4)
        assert told.interval == pytest.approx(macro.interval, abs=6e-4)
    assert report.left_out is not None
    rows = {row.model: row.sites for row in report.left_out}
    assert set(rows) == {f"all-but:{site}" for site in SITES} and all(
        set(row) == SITES for row in rows.values()
    )
    assert rows["all-but:south"]["south"].auroc == report.arms["held-out"].sites["south"].macro_auroc
    known = [j for j in range(3) if len(set(data.labels[test, j].tolist())) == 2]
    area = np.mean([roc_auc_score(data.labels[test, j], scores["all-but:north"][:, j]) for j in known])
    assert rows["all-but:north"]["south"].auroc == pytest.approx(area, abs=6e-4)


def test_each_federation_has_a_state_of_its_own_at_a_site_and_the_same_studies(
    finished: tuple[Path, Report],
) -> None:
    run, _ = finished
    plans = {(run / "held-out" / site / "plan.toml").read_bytes() for site in SITES}
    assert len(plans) == 1, "by its plan alone a site could not tell them apart"
    for site in SITES:
        whole = load_site(run / "sites" / site / "site.toml")
        parts = [load_site(run / "sites" / site / f"site-without-{out}.toml") for out in SITES - {site}]
        assert len({whole.data.state, *(part.data.state for part in parts)}) == 3
        for part in parts:
            apart = part.data.model_copy(update={"state": whole.data.state})
            assert part.model_copy(update={"data": apart}) == whole


@pytest.mark.slow
def test_pretraining_in_one_federation_leaves_nothing_for_the_next(
    run_tiny: Run, tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path
) -> None:
    """The last federation, against the same one at sites that have seen no other."""
    run, pretrained = tmp_path / "run", {"arms": ["federated", "held-out"], "pretrain": {"rounds": 2}}
    run_tiny(run, **pretrained)
    shutil.copytree(next(iter(tiny_sites.values())).parents[1], tmp_path / "fresh")
    others = {name: tmp_path / "fresh" / name / "site.toml" for name in ("east", "north")}
    run_inline(training_only(tiny(**pretrained).run_config(3), 2), others, tmp_path / "by-hand")
    ledger = Ledger(tmp_path / "by-hand" / "ledger.sqlite")
    chosen = ledger.get("released")["round"]
    ledger.close()
    file = tmp_path / "by-hand" / "checkpoints" / f"round-{chosen:04d}" / "adapter.safetensors"
    assert adapter(run, "south").digest() == AdapterState.from_bytes(file.read_bytes()).digest()


def test_finished_federations_are_not_run_again_and_a_broken_off_one_goes_on_to_the_same_bits(
    finished: tuple[Path, Report], run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, first = finished
    kept = adapter(run, "east").digest()
    times = {
        site: (run / "held-out" / site / "adapter.safetensors").stat().st_mtime_ns
        for site in ("north", "south")
    }
    # As after a crash in round 2 of the federation without east.
    (run / "held-out" / "east" / "adapter.safetensors").unlink()
    shutil.rmtree(run / "held-out" / "east" / "checkpoints" / "round-0002")
    asked: list[str] = []
    federate = leave_out.leave_one_out

    def listen(config: Any, files: Any, folder: Path, how: Any, view: View) -> None:
        def told(plan: Any, others: Any, place: Path) -> None:
            asked.append(place.name)
            how(plan, others, place)

        federate(config, files, folder, told, view)

    monkeypatch.setattr("simulations.run.leave_one_out", listen)
    again = run_tiny(run, resume=True, **OUT)
    assert asked == ["east"]
    assert adapter(run, "east").digest() == kept
    for site, time in times.items():
        assert (run / "held-out" / site / "adapter.safetensors").stat().st_mtime_ns == time
    assert (again.arms["held-out"], again.further, again.left_out) == (
        first.arms["held-out"],
        first.further,
        first.left_out,
    )


def test_without_local_training_only_the_federated_model_is_compared_with(
    run_tiny: Run, tmp_path: Path
) -> None:
    report = run_tiny(tmp_path / "run", arms=["federated", "held-out"], rounds={"count": 1})
    assert set(pairs(report)) == {("held-out", "federated")}
    assert "A hospital that takes no part" in render(report)
    assert "Taking no part" in " ".join(headline(report).details)


def test_one_site_cannot_be_left_out(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two sites"):
        check_leave_out({"north": tmp_path}, RunConfig())
    sites = {"north": {"phantom": {"studies": 40, "seed": 1, "size": 32}}}
    alone = Experiment.build({**tiny(**OUT).model_dump(exclude_unset=True), "sites": sites})
    with pytest.raises(ConfigError, match="at least two sites"):
        run_experiment(alone, tmp_path / "run", engine="inline", resume=False, view=View("quiet"))


def test_a_median_is_not_asked_of_two_sites(tiny: Any, tmp_path: Path) -> None:
    config = tiny(rounds={"quorum": 3}, strategy={"mean": "median"}).run_config(3)
    files = {name: tmp_path / name for name in SITES}
    with pytest.raises(ConfigError, match="median"):
        check_leave_out(files, config)
    check_leave_out({**files, "west": tmp_path / "west"}, config)
    assert training_only(config, 1).strategy.mean == "weighted"
    assert training_only(config, 3).strategy.mean == "median"


def test_the_plan_of_the_others_asks_for_nothing_that_is_not_needed(tiny: Any) -> None:
    config = tiny(
        rounds={"quorum": 3},
        personalise={"method": "ditto"},
        evaluate={"local": True, "matrix": True, "calibrate": "platt", "compare_calibration": True},
        arms=["local", "federated", "held-out"],
    ).run_config(3)
    plan = training_only(config, 2)
    assert type(plan).from_flat(plan.to_flat()) == plan, "it travels"
    assert (plan.rounds.sites, plan.rounds.quorum) == (2, 2)
    assert not (plan.evaluate.local or plan.evaluate.matrix or plan.evaluate.compare_calibration)
    assert plan.personalise.method == "none"
    same = ("data", "model", "pet", "lora", "train", "strategy", "pretrain", "wire", "seed")
    assert all(getattr(plan, name) == getattr(config, name) for name in same)


FIVE: dict[str, Any] = {
    "arms": ["local", "federated", "pooled", "held-out"],
    "evaluate": {"local": True, "matrix": True, "calibrate": "platt"},
    "personalise": {"method": "dual", "epochs": 2},
    "sites": {
        "west": {"phantom": {"studies": 60, "seed": 4, "size": 32, "scanner": "flat_panel"}},
        "centre": {"phantom": {"studies": 50, "seed": 5, "size": 32, "scanner": "old_film"}},
    },
}


@pytest.mark.slow
def test_five_sites_with_matrix_and_held_out_and_who_got_worse_first(tiny: Any, tmp_path: Path) -> None:
    experiment = tiny(**FIVE)
    five = set(merge(FIVE, {})["sites"]) | SITES
    report = run_experiment(experiment, tmp_path / "run", engine="inline", resume=False, view=View("quiet"))
    assert report.matrix is not None and report.left_out is not None
    alone = [row for row in report.matrix if row.model.startswith(OWN_MODEL)]
    assert {row.trained_at for row in alone} == five
    assert all(set(row.sites) == five for row in (*report.matrix, *report.left_out))
    for arm in ("local", "federated", "pooled", "personalised", "held-out"):
        assert set(report.arms[arm].sites) == five
    assert set(pairs(report)) == {
        ("personalised", "federated"), ("personalised", "local"),
        ("held-out", "local"), ("held-out", "federated"),
    }  # fmt: skip
    page = render(report)
    order = ['id="worse"', "<h3>Made its own", "<h3>Taking no part", 'id="sites"', 'id="personal"']
    order += ['id="held-out"', 'id="matrix"']
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    told = " ".join(headline(report).details)
    for site in {loss.site for loss in report.losses if loss.certain and loss.finding == "macro"}:
        assert site in told
    assert "<script" not in page and "src=" not in page
