"""Class weights are those of all sites' counts, and a run keeps the ones it began with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.config import RunConfig
from common.errors import SchemaError
from common.protocol import LABEL_COUNTS, Answer
from server.class_weights import class_weights
from server.federation import _facts
from server.ledger import Ledger

FINDINGS = ("effusion", "edema", "mass")


def federation(folder: Path, counts: dict[str, Any], kind: str = "federated") -> Any:
    """What of a federation the weights are made of: its plan, its sites and their facts."""
    config = RunConfig.build({"data": {"findings": FINDINGS}, "train": {"class_weights": kind}})
    ledger = Ledger(folder / "ledger.sqlite")
    for site, (positives, negatives) in counts.items():
        ledger.put_site(site, dict(zip(LABEL_COUNTS, (positives, negatives), strict=True)))
    return SimpleNamespace(config=config, ledger=ledger, sites=dict.fromkeys(counts))


def test_they_are_all_sites_negatives_over_positives(tmp_path):
    counts = {"a": ([10, 0, 0], [90, 50, 0]), "b": ([40, 1, 0], [60, 99, 0])}
    found = federation(tmp_path, counts)
    assert class_weights(found).tolist() == [3.0, 20.0, 1.0]  # 149 to 1 is too much; nobody told of mass
    found.ledger.put_site("c", dict(zip(LABEL_COUNTS, ([100, 100, 100], [0, 0, 0]), strict=True)))
    found.sites["c"] = None
    assert class_weights(found).tolist() == [3.0, 20.0, 1.0]  # a site that comes later moves nothing
    assert [event.kind for event in found.ledger.events()] == ["weights"]
    found.ledger.close()


def test_a_plan_that_asks_for_none_has_none(tmp_path):
    for kind in ("none", "balanced"):
        found = federation(tmp_path / kind, {}, kind)
        assert class_weights(found) is None
        found.ledger.close()


ENROLLED = {
    "train-studies": 50,
    "validation-studies": 5,
    "test-studies": 9,
    "patients": 40,
    "owned": [1, 1, 0],
    "label-positives": [10, 0, 0],
    "label-negatives": [40, 0, 0],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"label-positives": None},
        {"label-positives": 3},
        {"label-positives": [10, 0]},
        {"label-positives": [10.0, 0, 0]},
        {"label-positives": [-1, 0, 0]},
        {"label-positives": [11, 0, 0]},
    ],
)
def test_counts_that_cannot_be_are_refused(wrong):
    sound = Answer("north", metrics=ENROLLED)
    assert _facts(sound, 3, labels=LABEL_COUNTS)["label-negatives"] == [40, 0, 0]
    metrics = {key: value for key, value in {**ENROLLED, **wrong}.items() if value is not None}
    with pytest.raises(SchemaError):
        _facts(Answer("north", metrics=metrics), 3, labels=LABEL_COUNTS)


def test_counts_that_nobody_asked_for_are_refused():
    with pytest.raises(SchemaError):
        _facts(Answer("north", metrics=ENROLLED), 3)
