"""Federations that pretrain: what travels, where the next stage starts, and a run killed meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client import app as client_app
from client.data.dataset import load_site_data
from client.prefix_cache import StudyInputs
from client.site import load_site
from client.train import masked_bce, train_round, trained_by
from common.adapter import AdapterState
from common.config import RunConfig
from common.errors import QuorumError
from common.model.build import build_model
from server.ledger import Ledger
from server.report_schema import Report
from simulations.prepare import prepare_sites, write_pooled_site
from tests.simulations.killed import kill_run

Run = Callable[..., Report]

TPP: dict[str, Any] = {
    "lora": {"aggregation": "ffa"},
    "pretrain": {"rounds": 2, "batch_size": 16},
    "rounds": {"count": 2},
}


def state_after(folder: Path, number: int) -> AdapterState:
    file = folder / "checkpoints" / f"round-{number:04d}" / "adapter.safetensors"
    return AdapterState.from_bytes(file.read_bytes())


def records(folder: Path) -> list[dict[str, Any]]:
    ledger = Ledger(folder / "ledger.sqlite")
    rounds = ledger.rounds()
    ledger.close()
    return rounds


def test_only_pet_tensors_travel_and_every_site_goes_on_from_them(run_tiny: Run, tmp_path: Path) -> None:
    began: dict[int, dict[str, str]] = {}

    def listening(
        model: Any, data: Any, inputs: Any, start: AdapterState, number: int, site: str, *rest: Any
    ) -> Any:
        began.setdefault(number, {})[site] = start.digest()
        return train_round(model, data, inputs, start, number, site, *rest)

    before = trained_by.set(listening)
    try:
        report = run_tiny(tmp_path / "run", **TPP)
    finally:
        trained_by.reset(before)
    (model,) = client_app._pool()._models.values()
    start, after = model.initial_state(), state_after(tmp_path / "run", 2)
    factors = [name for name in start.tensors if ".lora_B." in name]
    for name, tensor in start.tensors.items():
        assert torch.equal(tensor, after.tensors[name]) == (name not in factors)
        assert name not in factors or after.tensors[name].abs().max() > 0
    assert {*model.schema.head} <= {*start.tensors} - {*factors}
    sent = 4 * sum(after.tensors[name].numel() for name in factors)
    for record in records(tmp_path / "run")[:2]:
        assert record["payload"] == dict.fromkeys(("east", "north", "south"), sent)
        assert record["validation_before"] == {}
    # Training begins at every site with what all of them reached together.
    assert began[3] == dict.fromkeys(("east", "north", "south"), after.digest())
    assert sorted(began) == [3, 4]
    assert model.current_base_digest() == model.base_digest == report.base_digest


def test_pretraining_changes_what_is_released(run_tiny: Run, tmp_path: Path) -> None:
    short = {**TPP, "rounds": {"count": 1}}
    without = run_tiny(tmp_path / "without", **{**short, "pretrain": {"rounds": 0}})
    with_it = run_tiny(tmp_path / "with", **short)
    assert without.adapter_sha256 != with_it.adapter_sha256
    assert len(records(tmp_path / "with")) == 3


@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:resnet10t"])
def test_fine_tuning_begins_at_exactly_the_probe_s_loss(
    run_tiny: Run, tmp_path: Path, tiny_sites: dict[str, Path], tiny: Any, backbone: str
) -> None:
    """One step over all training studies: its loss is that of the probe in evaluation, BatchNorm too."""
    plan: dict[str, Any] = {
        "model": {"backbone": backbone},
        "pet": {"method": "full"},
        "rounds": {"count": 4, "probe": 3},
        "train": {"batch_size": 64, "steps": 1, "lr": 1e-3, "head_lr": 0.05},
    }
    run_tiny(tmp_path / "run", **plan)
    told, config = records(tmp_path / "run"), tiny(**plan).run_config(3)
    model = build_model(config)
    probe = state_after(tmp_path / "run", 3)
    before = model.initial_state().tensors
    assert {n for n, t in probe.tensors.items() if not torch.equal(t, before[n])} == {*model.schema.head}
    model.load(probe)
    model.train_mode(False)
    for name, file in tiny_sites.items():
        data = load_site_data(load_site(file), config.data)
        rows = data.labelled("train")
        with torch.no_grad():
            inputs = StudyInputs(model, data, config.train)
            loss = masked_bce(inputs.logits(inputs.batch(rows)), torch.from_numpy(data.labels[rows]), None)
        assert told[3]["loss"][name] == pytest.approx(loss.item(), abs=1e-6)
    assert len({record["payload"]["north"] for record in told[:3]}) == 1
    assert told[3]["payload"]["north"] > told[2]["payload"]["north"]


def test_an_encoder_that_moved_is_released_for_the_next_plan(
    run_tiny: Run, tmp_path: Path, tiny: Any
) -> None:
    plan: dict[str, Any] = {**TPP, "pretrain": {"rounds": 1, "parameters": "encoder"}}
    report = run_tiny(tmp_path / "run", **plan)
    file = tmp_path / "run" / "release" / "encoder.safetensors"
    model = build_model(tiny(**plan).run_config(3))
    reached = state_after(tmp_path / "run", 3)
    assert torch.equal(load_file(file)["blocks.0.norm1.weight"], reached.tensors["blocks.0.norm1.weight"])
    assert report.base_digest == model.base_digest
    following = tiny(model={"weights": str(file)}, pretrain={"rounds": 0}).run_config(3)
    images = torch.randn(1, 3, 32, 32)
    model.load(
        AdapterState(
            {**model.initial_state().tensors, **{n: reached.tensors[n] for n in model.schema.encoder}}, {}
        )
    )
    with torch.no_grad():
        torch.testing.assert_close(
            build_model(following).image_features(images), model.image_features(images)
        )


def test_a_site_without_reports_takes_part_in_the_rest(
    tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    from simulations.engine import run_inline

    shutil.copytree(next(iter(tiny_sites.values())).parents[1], tmp_path / "sites")
    files = {name: tmp_path / "sites" / name / "site.toml" for name in tiny_sites}
    table = files["east"].parent / "studies.csv"
    table.write_text(table.read_text().replace("indication,findings,impression", "a,b,c"))
    plan = tiny(**{**TPP, "pretrain": {"rounds": 1, "task": "image-text", "batch_size": 16}})
    run_inline(plan.run_config(3), files, tmp_path / "run")
    first, second, _ = records(tmp_path / "run")
    assert first["returned"] == ["north", "south"]
    assert second["returned"] == ["east", "north", "south"]
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    told = {event.site: event.text for event in ledger.events() if event.kind == "enrolled"}
    ledger.close()
    assert ", 0 images to pretrain on" in told["east"]
    with pytest.raises(QuorumError, match="no site has an image"):
        run_inline(plan.run_config(1), {"east": files["east"]}, tmp_path / "alone")


@pytest.mark.parametrize("modality", ["ultrasound", "shuffled"])
def test_pretraining_on_the_wrong_thing_is_an_experiment(tiny: Any, tmp_path: Path, modality: str) -> None:
    from simulations.engine import run_inline

    phantom = {"studies": 60, "seed": 1, "size": 32, "unlabelled": 20, "unlabelled_modality": modality}
    experiment = tiny(
        **TPP,
        sites={
            name: {"phantom": {**phantom, "seed": i}} for i, name in enumerate(("north", "east", "south"))
        },
    )
    files = prepare_sites(experiment, tmp_path / "sites")
    run_inline(experiment.run_config(3), files, tmp_path / "run")
    first, _, third, _ = records(tmp_path / "run")
    assert set(first["examples"].values()) == {20}
    assert all(count > 20 for count in third["examples"].values())


def test_the_pooled_reference_pretrains_on_what_the_sites_do(
    tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    shutil.copytree(next(iter(tiny_sites.values())).parents[1], tmp_path / "sites")
    files = {name: tmp_path / "sites" / name / "site.toml" for name in tiny_sites}
    plan = {"rounds": 1, "task": "image-text"}
    config: RunConfig = tiny(data={"fraction": 0.1}, pretrain=plan).run_config(3)
    pools = {}
    for name, file in files.items():
        pool = load_site_data(load_site(file), config.data, config.seed, config.pretrain).pool
        assert pool is not None
        pools[name] = pool
    pooled = load_site(write_pooled_site(files, config, tmp_path / "pooled"))
    whole = config.data.model_copy(update={"fraction": 1.0})
    together = load_site_data(pooled, whole, config.seed, config.pretrain).pool
    assert together is not None
    assert len(together) == sum(map(len, pools.values())) > 60
    own = [pool.pixels[pool.rows] for pool in pools.values()]
    np.testing.assert_array_equal(together.pixels[together.rows], np.concatenate(own))
    assert together.texts == tuple(text for pool in pools.values() for text in pool.texts)


def test_a_site_alone_pretrains_too(run_tiny: Run, tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", **TPP, arms=["local", "federated"], evaluate={"local": True})
    for name in ("north", "east", "south"):
        state = tmp_path / "run" / "sites" / name / "state"
        (alone,) = state.glob("pretext-alone-*")
        assert sorted(file.name for file in alone.iterdir()) == [
            "round-0001.safetensors",
            "round-0002.safetensors",
        ]
        (file,) = state.glob("local-*.safetensors")
        baseline = load_file(file)
        assert all(baseline[n].abs().max() > 0 for n in baseline if ".lora_B." in n)


@pytest.mark.slow
def test_killed_while_it_pretrains_a_run_resumes_to_the_same_bits(
    run_tiny: Run, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    plan: dict[str, Any] = {
        **TPP,
        "pretrain": {"rounds": 4, "batch_size": 16, "task": "image-text"},
        "strategy": {"name": "fedadam"},
    }
    whole = run_tiny(tmp_path / "whole", **plan)
    killed = tmp_path / "killed"
    sites = next(iter(tiny_sites.values())).parents[1]
    # One site has answered in a round: others have not, and it keeps its own decoder.
    answered = (
        "SELECT count(*) FROM events WHERE kind = 'returned' AND round = ?"
        " AND json_extract(facts, '$.up') IS NOT NULL"
    )
    done = kill_run(tiny(**plan), sites, killed, answered, 3)
    assert done == ["round-0001", "round-0002"]
    resumed = run_tiny(killed, resume=True, **plan)
    for number in range(1, 7):
        assert state_after(killed, number).digest() == state_after(tmp_path / "whole", number).digest()
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert resumed.arms == whole.arms
    for mine, theirs in zip(records(killed), records(tmp_path / "whole"), strict=True):
        assert mine["loss"] == theirs["loss"]
