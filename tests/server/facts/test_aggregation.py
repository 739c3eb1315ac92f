"""How a real round's updates became one, beside numpy on what the sites sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.adapter import AdapterState
from server.facts.aggregation import aggregation
from server.facts.runs import Runs
from server.facts.view import LedgerView
from server.geometry import block_of


def adapter(run: Path, number: int) -> dict[str, np.ndarray]:
    data = (run / "checkpoints" / f"round-{number:04d}" / "adapter.safetensors").read_bytes()
    return {name: tensor.double().numpy() for name, tensor in AdapterState.from_bytes(data).tensors.items()}


def test_a_real_round(real: Path) -> None:
    run = Runs.of_folder(real).list()[0]
    view = run.view()
    found = aggregation(view)
    assert found is not None and found.round == 3
    record = view.record(3)
    assert record is not None
    total = sum(record["examples"].values())
    assert found.weights == pytest.approx({s: n / total for s, n in record["examples"].items()})
    assert found.norms == record["update_norm"]
    assert found.lora_error == tuple((n, view.record(n)["lora_error"]) for n in (1, 2, 3))
    assert [*found.cosines] == [*found.weights] == ["east", "north", "south"]
    pairs = np.array(found.pairs)
    assert np.allclose(np.diag(pairs), 1) and np.allclose(pairs, pairs.T)
    second = aggregation(view, 2)
    assert second is not None and [*second.weights] == ["north", "south"], "east's was rejected"
    assert len(second.pairs) == 2
    # |sum w u|^2 = sum w_i w_j |u_i| |u_j| cos_ij: outside the head, where weights go by finding.
    weights, norms = np.array([*found.weights.values()]), np.array([*found.norms.values()])
    expected = np.sqrt((weights * norms) @ pairs @ (weights * norms))
    norm = dict(view.series("aggregate-norm")[""])[3]
    assert norm == pytest.approx(expected, rel=0.02)
    before, after = adapter(real, 2), adapter(real, 3)
    moved = np.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in after))
    assert norm == pytest.approx(moved, rel=1e-4)
    assert aggregation(view, 4) is None
    run.close()


def test_drift_is_from_where_the_run_began(real: Path) -> None:
    from common.model.build import build_model

    run = Runs.of_folder(real).list()[0]
    found, config = aggregation(run.view()), run.view().config()
    assert found is not None and config is not None
    assert found.drift_blocks == (*(f"blocks.{k}" for k in range(6)), "head")
    assert found.drift_rounds == (1, 2, 3)
    start = {name: t.double().numpy() for name, t in build_model(config).initial_state().tensors.items()}
    for number, row in zip(found.drift_rounds, found.drift, strict=True):
        now = adapter(real, number)
        for block, value in zip(found.drift_blocks, row, strict=True):
            own = [name for name in start if block_of(name) == block]
            assert value == pytest.approx(
                np.sqrt(sum(((now[n] - start[n]) ** 2).sum() for n in own)), abs=1e-5
            )
    run.close()


def test_pairs_stand_in_the_order_of_the_weights(view: LedgerView) -> None:
    for number in range(1, 13):
        found, kept = aggregation(view, number), view.detail("pairs", number)
        assert found is not None
        for i, one in enumerate(found.weights):
            for j, other in enumerate(found.weights):
                assert (
                    found.pairs[i][j] == kept["cosines"][kept["sites"].index(one)][kept["sites"].index(other)]
                )


def test_an_abandoned_round_has_none(told) -> None:
    assert aggregation(told.run.view()) is None
    told.finish_round(1, ["a"], status="abandoned")
    assert aggregation(told.run.view()) is None and aggregation(told.run.view(), 1) is None
