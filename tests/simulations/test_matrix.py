"""Every model at every site: what sites train alone is kept, measured elsewhere and reported, or left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from numpy.typing import NDArray
from safetensors.torch import load_file

from client.data.dataset import load_site_data
from client.evaluate import predict
from client.local import baseline_file, load_local
from client.prefix_cache import StudyInputs
from client.site import load_site
from common.adapter import AdapterState
from common.metrics.discrimination import auroc
from common.model.build import build_model
from common.wire import answer_from_records, answer_to_records
from server.ledger import Ledger
from server.report_schema import Report
from server.summary import summarise
from simulations.engine import run_inline

Run = Callable[..., Report]
MATRIX: dict[str, Any] = {
    "arms": ["local", "federated", "pooled"],
    "evaluate": {"local": True, "matrix": True},
}


def test_every_model_is_measured_at_every_site(run_tiny: Run, tmp_path: Path) -> None:
    report = run_tiny(tmp_path / "run", **MATRIX)
    assert list(report.arms) == ["local", "federated", "pooled"]
    assert report.matrix is not None
    rows = {row.model: row for row in report.matrix}
    sites = {"north", "east", "south"}
    assert list(rows) == ["local:east", "local:north", "local:south", "federated", "pooled"]
    assert all(set(row.sites) == sites for row in rows.values())
    assert [row.trained_at for row in report.matrix] == ["east", "north", "south", None, None]
    for site in sites:
        assert rows[f"local:{site}"].sites[site].auroc == report.arms["local"].sites[site].macro_auroc
        assert rows["federated"].sites[site].auroc == report.arms["federated"].sites[site].macro_auroc
    assert rows["local:north"].sites["south"].findings["cardiomegaly"].auroc is None
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    evaluations = ledger.evaluations("test")
    ledger.close()
    assert set(evaluations["local:north"]) == sites - {"north"}
    assert not [key for key in evaluations["local:north"]["east"] if key.startswith("gain")]


def test_what_is_measured_is_the_model_the_site_trained(run_tiny: Run, tmp_path: Path, tiny: Any) -> None:
    """North's model, from north's own disk, on east's studies, by hand."""
    run = tmp_path / "run"
    report = run_tiny(run, **MATRIX)
    plan = Ledger(run / "ledger.sqlite").get("plan_digest")
    north, east = (load_site(run / "sites" / name / "site.toml") for name in ("north", "east"))
    own = load_local(baseline_file(north.data.state, plan), plan)
    assert own is not None
    sent = AdapterState.from_bytes((run / "locals" / "north.safetensors").read_bytes())
    for name, tensor in own.state.tensors.items():
        torch.testing.assert_close(sent.tensors[name], tensor, rtol=0, atol=1e-6)
    config = tiny(**MATRIX).run_config(3)
    model, data = build_model(config), load_site_data(east, config.data)
    model.load(own.state)
    test = data.split["test"]
    scores = predict(model, StudyInputs(model, data, config.train), test)
    areas = [auroc(scores[:, j], data.labels[test, j]) for j in range(scores.shape[1])]
    expected = np.mean([area for area in areas if area is not None])
    assert report.matrix is not None
    row = next(row for row in report.matrix if row.model == "local:north")
    assert row.sites["east"].auroc == pytest.approx(expected, abs=5e-4)


def test_a_plan_without_it_keeps_the_models_where_they_are(run_tiny: Run, tmp_path: Path) -> None:
    report = run_tiny(tmp_path / "run", arms=["local", "federated"], evaluate={"local": True})
    assert report.matrix is None
    assert not (tmp_path / "run" / "locals").exists()
    text = (tmp_path / "run" / "report.json").read_text()
    assert Report.model_validate_json(text).matrix is None


Values = NDArray[np.float32]


def spoil(site: str, how: Callable[[Values], Values | None]) -> Callable[[Message], Message]:
    """Change the model in one site's answer to the local stage."""

    def tamper(reply: Message) -> Message:
        answer = answer_from_records(reply.content)
        if reply.metadata.message_type == "train.local" and answer.site == site:
            assert answer.update is not None
            reply.content = answer_to_records(replace(answer, update=how(answer.update)))
        return reply

    return tamper


@pytest.mark.parametrize(
    ("how", "words"),
    [
        pytest.param(lambda v: None, "its model stays there", id="kept there"),
        pytest.param(lambda v: v * np.nan, "E_NONFINITE", id="NaN"),
        pytest.param(lambda v: v[:-1], "E_SCHEMA", id="short"),
        pytest.param(lambda v: v.astype(np.float64), "E_SCHEMA", id="double"),
        pytest.param(lambda v: (v + 1) * np.float32(1e6), "E_NORM", id="large"),
    ],
)
def test_a_model_that_does_not_come_or_is_not_sound_is_left_out(
    tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path, how: Callable[[Any], Any], words: str
) -> None:
    """The site keeps its row in the table of arms: it has its baseline and compares with it."""
    config = tiny(arms=["local", "federated"], rounds={"count": 1}, evaluate=MATRIX["evaluate"]).run_config(3)
    run_inline(config, tiny_sites, tmp_path, spoil("east", how))
    report = summarise(tmp_path)
    assert report.matrix is not None
    rows = {row.model: set(row.sites) for row in report.matrix}
    assert rows["local:east"] == {"east"} and rows["local:north"] == {"north", "east", "south"}
    assert set(report.arms["local"].sites) == set(report.arms["local"].local_steps) == set(tiny_sites)
    texts = [event.text for event in Ledger(tmp_path / "ledger.sqlite").events() if event.kind == "local"]
    assert [text for text in texts if words in text and text.startswith("east trained alone")]


def test_a_resumed_run_has_the_models_of_before(
    run_tiny: Run, tmp_path: Path, tiny_sites: dict[str, Path]
) -> None:
    """A finished local stage is not repeated, and what it brought is still measured."""
    run = tmp_path / "run"
    first = run_tiny(run, **MATRIX)
    before = {file.name: load_file(file) for file in (run / "locals").iterdir()}
    ledger = Ledger(run / "ledger.sqlite")
    stages = [event.id for event in ledger.events() if event.kind == "stage"]
    again = run_tiny(run, resume=True, **MATRIX)
    assert again.matrix == first.matrix
    assert [event.id for event in ledger.events() if event.kind == "stage"] == stages
    ledger.close()
    assert before.keys() == {f"{site}.safetensors" for site in tiny_sites}
