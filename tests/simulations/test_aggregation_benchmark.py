"""The benchmark of the aggregation times equal work, and says no when a limit is missed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from server.strategies.mean import weighted_mean
from simulations.benchmarks import aggregation as module
from simulations.benchmarks.aggregation import (
    Repeated,
    adapter,
    answers,
    bound,
    flower_mean,
    flower_replies,
    main,
    spooled,
    values,
)

SCHEMA = adapter(1)


def test_the_adapter_is_the_known_one() -> None:
    assert adapter(12).numel == 2_370_062


@pytest.mark.parametrize("tensors", [False, True])
def test_flower_is_asked_for_the_same_mean(tensors: bool) -> None:
    """Flower sums in fp32, ours in float64."""
    distinct = [values(SCHEMA, k) for k in range(3)]
    theirs = flower_mean(flower_replies(SCHEMA, 5, distinct, tensors))
    flat = np.concatenate([theirs[name].numpy().reshape(-1) for name in theirs])
    ours = weighted_mean(Repeated(SCHEMA, 5, distinct)).numpy()
    np.testing.assert_allclose(flat, ours, rtol=0, atol=1e-9)
    assert np.abs(ours).max() > 1e-3


def test_the_bound_adds_every_vector() -> None:
    distinct = [values(SCHEMA, k) for k in range(2)]
    np.testing.assert_array_equal(bound(distinct, 3)(), distinct[0].astype(float) + distinct[1] + distinct[0])


def test_what_is_spooled_is_what_was_sent(tmp_path: Path) -> None:
    messages = (module.answer_to_records(answer) for answer in answers(SCHEMA, 4))
    with spooled(SCHEMA, messages, tmp_path) as spool:
        mean = weighted_mean(spool).numpy()
    expected = np.mean([values(SCHEMA, k).astype(float) for k in range(4)], axis=0)
    np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-18)


def test_a_limit_that_is_missed_is_named() -> None:
    fast = {"value": 2.0, "low": 1.5}
    sound = {"sites": 10, "share_of_bound": {"value": 0.7}, "flower_array": fast, "flower_tensors": fast}
    flat = {10: {"spool": 90 << 20, "repeated": 80 << 20}, 1000: {"spool": None, "repeated": 84 << 20}}
    assert module._missed({"mean": [sound], "memory": flat}) == []
    slow = {**sound, "share_of_bound": {"value": 0.5}, "flower_array": {"value": 1.2, "low": 0.9}}
    grown = {**flat, 1000: {"spool": 200 << 20, "repeated": 84 << 20}}
    of_bound, behind, memory = module._missed({"mean": [sound, slow], "memory": grown})
    assert "0.50 of the bound" in of_bound and "one array a site" in behind and "(spool)" in memory


@pytest.mark.slow
def test_the_whole_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    small = ("--sites", "2", "12", "--pairs", "2", "--blocks", "1", "--own", "2", "--folder", str(tmp_path))
    assert main([*small, "--json", str(out)]) in (0, 1)
    found, told = json.loads(out.read_text()), capsys.readouterr().out
    assert [cost["sites"] for cost in found["mean"]] == [2, 12]
    assert [way["sites"] for way in found["way"]] == [2]
    assert found["memory"]["2"]["spool"] > 0 and found["memory"]["12"]["spool"] is None
    assert "not run" in told and [*tmp_path.iterdir()] == [out]
