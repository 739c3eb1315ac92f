"""A federation that reads reports: the probe first, two towers trained, each measured without the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from client.data.dataset import load_site_data
from client.site import load_site
from common.model.build import build_model
from server.checkpoint import read
from server.ledger import Ledger
from server.report_schema import Report
from simulations.prepare import prepare_sites, write_pooled_site
from simulations.site_reports import report_columns
from simulations.text_probe import in_words, probe_sites

Run = Callable[..., Report]
TEXT: dict[str, Any] = {
    "data": {"text": True, "text_length": 16},
    "train": {"modality_dropout": 0.2},
    "evaluate": {"missing_modality": True},
}


def with_text(**over: Any) -> dict[str, Any]:
    return {key: {**TEXT.get(key, {}), **over.get(key, {})} for key in {*TEXT, *over}}


SETTINGS: dict[str, dict[str, Any]] = {
    "fedex in both": {"pet": {"towers": "both"}, "lora": {"aggregation": "fedex"}},
    "biases of text": {
        "pet": {"towers": "text", "method": "bitfit"},
        "model": {"fusion": "cross-attention"},
    },
    "probe, then the image's last block": {
        "pet": {"towers": "vision", "scope": "last-1"},
        "rounds": {"probe": 1},
        "model": {"fusion": "gated"},
    },
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(of, id=name, marks=[pytest.mark.slow] * (i > 0))
        for i, (name, of) in enumerate(SETTINGS.items())
    ],
)
def test_a_federation_of_two_towers(
    run_tiny: Run, tiny: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    overrides = with_text(**settings)
    report = run_tiny(run, **overrides)
    assert {"federated", "without-text", "without-image"} <= report.arms.keys()
    assert all(part.status == "committed" for part in report.rounds)
    for name in ("without-text", "without-image"):
        assert report.arms[name].sites.keys() == report.arms["federated"].sites.keys()
        assert report.arms[name].description
    assert report.text is not None and set(report.text.probe or {}) == {"north", "east", "south"}
    if "lora" in settings:
        assert all(part.lora_error is not None and part.lora_error < 1e-5 for part in report.rounds)
    model = build_model(tiny(**overrides).run_config(3))
    ledger = Ledger(run / "ledger.sqlite")
    try:
        number, plan = ledger.get("released")["round"], ledger.get("plan_digest")
        assert ledger.get("base_digest") == model.base_digest
    finally:
        ledger.close()
    state, start = read(run / "checkpoints", number, plan).state, model.initial_state()
    assert bool(state.residual) == ("lora" in settings)
    moved = {name for name in model.schema.names if (state.tensors[name] != start.tensors[name]).any()}
    assert {"fusion.missing_text", "fusion.missing_image"} <= moved  # reports are blank, or dropped
    assert any(name.startswith("text.") for name in moved) == (settings["pet"]["towers"] != "vision")
    fusion = load_file(run / "release" / "fusion.safetensors")
    assert fusion.keys() == {name for name in model.schema.names if name.startswith("fusion.")}


@pytest.mark.slow
def test_the_same_plan_gives_the_same_adapter(run_tiny: Run, tmp_path: Path) -> None:
    first, again = (run_tiny(tmp_path / name, **with_text()) for name in ("a", "b"))
    assert first.adapter_sha256 == again.adapter_sha256


def test_the_probe_is_told_before_training(tiny: Any, tiny_sites: Mapping[str, Path]) -> None:
    config = tiny(**with_text()).run_config(3)
    probe = probe_sites(config, tiny_sites)
    assert probe is not None and list(probe) == ["east", "north", "south"]
    assert probe["north"]["reports"] == 60
    assert "at north" in in_words(probe)
    assert probe_sites(tiny().run_config(3), tiny_sites) is None


def test_the_pooled_reference_reads_every_site_s_reports(
    tiny: Any, tiny_sites: Mapping[str, Path], tmp_path: Path
) -> None:
    config = tiny(**with_text()).run_config(3)
    pooled = load_site(write_pooled_site(dict(tiny_sites), config, tmp_path / "pooled"))
    together = load_site_data(pooled, config.data, config.seed)
    apart = [load_site_data(load_site(file), config.data, config.seed) for file in tiny_sites.values()]
    assert sorted(together.texts) == sorted(text for data in apart for text in data.texts)
    assert sum(map(bool, together.texts)) > 100
    for split in ("train", "validation", "test"):
        own = sorted(together.texts[i] for i in together.split[split])
        assert own == sorted(data.texts[i] for data in apart for i in data.split[split])


def test_a_table_dealt_out_keeps_its_reports(tiny: Any, tmp_path: Path) -> None:
    source = {"phantom": {"studies": 40, "seed": 9, "size": 32}}
    dealt = tiny(**with_text()).model_dump()
    dealt |= {"sites": {}, "partition": {"source": source, "sites": 2}}
    experiment = type(tiny()).build(dealt)
    files = prepare_sites(experiment, tmp_path / "sites")
    whole = load_site(tmp_path / "whole" / "site.toml")
    for file in files.values():
        site = load_site(file)
        data = load_site_data(site, experiment.run_config(2).data)
        assert any(data.texts)
        rows = (file.parent / "studies.csv").read_text().splitlines()[1:2]
        table = np.array([row.split(",")[0] for row in rows])
        assert report_columns(site, table) == report_columns(whole, table)
