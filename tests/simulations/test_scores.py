"""A run's scores against the studies they are made of: pooled AUROC, MCC, class weights, calibrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from client.data.dataset import load_site_data
from client.evaluate import predict
from client.prefix_cache import StudyInputs
from client.site import load_site
from client.train import positive_weights
from common.metrics.discrimination import best_threshold
from common.model.build import build_model
from common.protocol import CALIBRATED, FEDERATED, LABEL_COUNTS, OWN_BIAS, TEMPERATURE, metrics_from_wire
from server.checkpoint import read
from server.ledger import Ledger
from server.pooled import pooled_areas
from server.report_schema import Report

Run = Callable[..., Report]
PLAN: dict[str, Any] = {
    "train": {"class_weights": "federated", "epochs": 2},
    "evaluate": {"calibrate": "platt", "compare_calibration": True},
}
SITES = ("north", "east", "south")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny: Any, tiny_sites: dict[str, Path]
) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run, and the facts in its ledger."""
    from simulations.engine import run_inline

    folder = tmp_path_factory.mktemp("scores")
    run_inline(tiny(**PLAN).run_config(3), tiny_sites, folder)
    return folder, facts(folder)


def facts(folder: Path) -> dict[str, Any]:
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        return {
            "test": ledger.evaluations("test"),
            "released": ledger.get("released")["round"],
            "plan": ledger.get("plan_digest"),
            "weights": ledger.get("class_weights"),
            "temperature": ledger.get("temperature"),
            "sites": ledger.sites(),
            "events": [event.kind for event in ledger.events()],
        }
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def scores(run: tuple[Path, dict[str, Any]], tiny: Any, tiny_sites: dict[str, Path]) -> dict[str, Any]:
    """Site -> split -> (scores, labels) of the released adapter."""
    folder, told = run
    config = tiny(**PLAN).run_config(3)
    model, state = build_model(config), read(folder / "checkpoints", told["released"], told["plan"]).state
    found: dict[str, Any] = {}
    for name, file in tiny_sites.items():
        data = load_site_data(load_site(file), config.data)
        inputs = StudyInputs(model, data, config.train)
        model.load(state)
        rows = {split: data.split[split] for split in ("validation", "test")}
        found[name] = {s: (predict(model, inputs, r), data.labels[r]) for s, r in rows.items()}
        found[name]["data"] = data
    return found


def test_the_pooled_auroc_is_scikit_learns_within_its_bound_on_every_finding(
    run: tuple[Path, dict[str, Any]], scores: dict[str, Any], tiny: Any
) -> None:
    findings = tiny().run_config(3).data.findings
    sites = {s: metrics_from_wire(flat, findings)[0] for s, flat in run[1]["test"][FEDERATED].items()}
    areas = pooled_areas(sites, findings)
    assert areas
    for j, finding in enumerate(findings):
        p, y = (np.concatenate([scores[s]["test"][i][:, j] for s in SITES]) for i in (0, 1))
        known = ~np.isnan(y)
        if len({*y[known]}) < 2:
            assert finding not in areas
            continue
        area = areas[finding]
        assert area.low - 1e-9 <= roc_auc_score(y[known], p[known]) <= area.high + 1e-9
        assert area.high - area.low < 0.2  # a score or two of 29 share a cell with others


def test_mcc_is_scikit_learns_at_the_threshold_of_the_validation_studies(
    run: tuple[Path, dict[str, Any]], scores: dict[str, Any], tiny: Any
) -> None:
    findings, seen = tiny().run_config(3).data.findings, 0
    for site in SITES:
        (p, y), (q, z) = scores[site]["validation"], scores[site]["test"]
        for j, finding in enumerate(findings):
            told = run[1]["test"][FEDERATED][site].get(f"{finding}.mcc")
            cut, known = best_threshold(p[:, j], y[:, j]), ~np.isnan(z[:, j])
            if cut is None or len({*z[known, j]}) < 2:
                assert told is None
                continue
            assert told == pytest.approx(matthews_corrcoef(z[known, j], q[known, j] >= cut), abs=6e-4)
            seen += 1
    assert seen


def test_class_weights_are_those_of_all_sites_training_studies(
    run: tuple[Path, dict[str, Any]], scores: dict[str, Any], tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    folder, told = run
    counts = [scores[site]["data"].count_labels("train") for site in SITES]
    positives, negatives = (np.sum([c[i] for c in counts], axis=0) for i in (0, 1))
    expected = np.clip(np.where(positives > 0, negatives / np.maximum(positives, 1), 1), 1 / 20, 20)
    assert [*told["weights"]["weights"].values()] == pytest.approx(expected.tolist())
    assert [told["sites"]["north"][key] for key in LABEL_COUNTS] == [
        c.tolist() for c in scores["north"]["data"].count_labels("train")
    ]
    assert told["events"].count("weights") == 1
    from simulations.engine import run_inline

    run_inline(tiny(**PLAN).run_config(3), tiny_sites, folder)  # taken up again: nothing is asked or fitted
    again = facts(folder)
    assert again["weights"] == told["weights"] and again["events"].count("weights") == 1
    assert again["temperature"] == told["temperature"]
    assert again["events"].count("calibrated") == told["events"].count("calibrated") == 2


def test_one_site_alone_weighs_as_it_would_by_itself(tiny: Any, tiny_sites: dict[str, Path]) -> None:
    from common.class_weights import balanced

    config = tiny(train={"class_weights": "balanced"}).run_config(3)
    data = load_site_data(load_site(tiny_sites["south"]), config.data)
    own = positive_weights(data, config.train)
    assert own is not None
    assert own.numpy() == pytest.approx(balanced(*data.count_labels("train")), rel=1e-6)


def test_no_way_of_calibrating_moves_a_ranking(run: tuple[Path, dict[str, Any]]) -> None:
    test, moved = run[1]["test"], set()
    kept = ("auroc", "pr-auc", "mcc", "positives", "negatives", "interval")
    for arm in (CALIBRATED, TEMPERATURE, OWN_BIAS):
        for site in SITES:
            before, after = test[FEDERATED][site], test[arm][site]
            for key in before:
                if key.endswith(kept) and "gain" not in key and "bins" not in key:
                    assert after.get(key) == before[key], (arm, site, key)
            moved |= {arm} if after["pooled-ece"] != before["pooled-ece"] else set()
            assert not [key for key in after if ".bins-from" in key or key.startswith("gain")]
    assert moved == {CALIBRATED, TEMPERATURE, OWN_BIAS}
    assert test[OWN_BIAS] != test[CALIBRATED]


def test_a_plan_that_does_not_ask_for_it_gets_no_cells(run_tiny: Run, tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", evaluate={"pooled": False}, rounds={"count": 1})
    told = facts(tmp_path / "run")
    assert not [k for m in told["test"][FEDERATED].values() for k in m if "bins-from" in k or "bins-to" in k]
    assert told["weights"] is None and LABEL_COUNTS[0] not in told["sites"]["north"]
