"""A run that calibrates: over all sites together, on validation studies, with the ranking left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from client.data.dataset import load_site_data
from client.evaluate import predict
from client.prefix_cache import StudyInputs
from client.site import load_site
from common.adapter import AdapterState
from common.metrics.platt import logits, targets
from common.model.build import build_model
from server.checkpoint import read
from server.ledger import Ledger
from server.report_schema import Report

Run = Callable[..., Report]
PLATT: dict[str, Any] = {
    "train": {"class_weights": "balanced", "epochs": 2},
    "evaluate": {"local": False, "calibrate": "platt"},
}


def facts(run: Path) -> tuple[dict[str, Any], dict[str, Any], int, str]:
    """Calibration, evaluations on test studies, round and plan of a run."""
    ledger = Ledger(run / "ledger.sqlite")
    try:
        released = ledger.get("released")["round"]
        return ledger.get("calibration"), ledger.evaluations("test"), released, ledger.get("plan_digest")
    finally:
        ledger.close()


def test_sites_together_fit_what_their_pooled_validation_studies_would(
    run_tiny: Run, tmp_path: Path, tiny: Any
) -> None:
    """Against scikit-learn's logistic regression on the logits of all sites' validation studies."""
    run = tmp_path / "run"
    report = run_tiny(run, **PLATT)
    found, _, number, plan = facts(run)
    config = tiny(**PLATT).run_config(3)
    model, state = build_model(config), read(run / "checkpoints", number, plan).state
    scores, labels = [], []
    for name in ("north", "east", "south"):
        data = load_site_data(load_site(run / "sites" / name / "site.toml"), config.data)
        inputs = StudyInputs(model, data, config.train)
        model.load(state)
        indices = data.split["validation"]
        scores.append(predict(model, inputs, indices))
        labels.append(data.labels[indices])
    p, y = np.concatenate(scores), np.concatenate(labels)
    fitted = 0
    for j, finding in enumerate(config.data.findings):
        if finding not in found["sites"]:
            continue
        known = ~np.isnan(y[:, j])
        z, t = logits(p[known, j]), y[known, j]
        high, low = targets(int(t.sum()), int((1 - t).sum()))
        soft = np.where(t == 1, high, low)
        both, weight = np.concatenate([z, z])[:, None], np.concatenate([soft, 1 - soft])
        truth = np.repeat([1, 0], len(z))
        reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        reference.fit(both, truth, sample_weight=weight)
        assert found["slope"][finding] == pytest.approx(reference.coef_[0, 0], rel=1e-3, abs=1e-4)
        assert found["bias"][finding] == pytest.approx(reference.intercept_[0], rel=1e-3, abs=1e-4)
        fitted += 1
    assert fitted and report.arms["calibrated"].local_steps == report.arms["federated"].local_steps


def test_calibrated_probabilities_keep_their_ranking(run_tiny: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = run_tiny(run, **PLATT)
    before, after = report.arms["federated"], report.arms["calibrated"]
    found, evaluations, _, _ = facts(run)
    moved = 0
    for site, result in before.sites.items():
        for finding, m in result.findings.items():
            again = after.sites[site].findings[finding]
            assert (again.auroc, again.pr_auc, again.positives) == (m.auroc, m.pr_auc, m.positives)
            moved += m.brier != again.brier
            assert sum(b.positives for b in again.bins) == sum(b.positives for b in m.bins) == m.positives
    assert moved and not [key for key in evaluations["calibrated"]["north"] if key.startswith("gain")]
    told = json.loads((run / "release" / "calibration.json").read_text())
    assert told["adapter_sha256"] == report.adapter_sha256
    assert {f: told["findings"][f]["slope"] for f in found["slope"]} == found["slope"]


def test_a_resumed_run_asks_nobody_again_and_a_plain_one_nobody_at_all(
    run_tiny: Run, final_adapter: Callable[[Path], AdapterState], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = run_tiny(run, **PLATT)
    fitted = facts(run)[0]
    again = run_tiny(run, resume=True, **PLATT)
    assert facts(run)[0] == fitted and again.arms == first.arms
    ledger = Ledger(run / "ledger.sqlite")
    assert len([event for event in ledger.events() if event.kind == "calibrated"]) == 1
    ledger.close()
    plain = run_tiny(tmp_path / "plain", train=PLATT["train"])
    assert list(plain.arms) == ["federated"] and facts(tmp_path / "plain")[0] is None
    assert not (tmp_path / "plain" / "release" / "calibration.json").exists()
    assert final_adapter(tmp_path / "plain").digest() == final_adapter(run).digest()


def test_sites_that_tell_no_sums_leave_the_model_as_it_is(
    run_tiny: Run, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    from flwr.app import Message

    from common.wire import answer_from_records, answer_to_records
    from server.summary import summarise
    from simulations.engine import run_inline

    def silence(reply: Message) -> Message:
        if reply.metadata.message_type == "query.calibrate":
            answer = answer_from_records(reply.content)
            reply.content = answer_to_records(replace(answer, metrics={}))
        return reply

    run_inline(tiny(rounds={"count": 1}, **PLATT).run_config(3), tiny_sites, tmp_path, silence)
    assert list(summarise(tmp_path).arms) == ["federated"]
    found = facts(tmp_path)[0]
    assert found["sites"] == {} and set(found["slope"].values()) == {1.0}
