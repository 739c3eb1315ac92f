"""Whole federations: every PET method and aggregation, laws, faults, engines, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client import app as client_app
from client.data.dataset import load_site_data
from client.local import train_local
from client.prefix_cache import StudyInputs
from client.site import load_site
from common.adapter import AdapterState
from common.model.build import build_model
from common.sections import DataConfig
from server.ledger import Ledger
from server.report_schema import Report
from tests.simulations.killed import kill_run

Run = Callable[..., Report]
Final = Callable[[Path], AdapterState]

# timm's test_vit: 64 wide, 6 blocks, MLP 192; fc layers in -> out.
D, H, BLOCKS, F = 64, 192, 6, 3
HEAD = F * (D + 1)
LAYERS = {"qkv": (D, 3 * D), "proj": (D, D), "fc1": (D, H), "fc2": (H, D)}
CLOSED_FORM = {
    "head": 0,
    "bitfit": BLOCKS * (3 * D + D + H + D + 2 * D) + D + D,
    "lora": BLOCKS * sum(2 * (i + o) for i, o in LAYERS.values()),
    "adapter": BLOCKS * (2 * D * 4 + 4 + D),
    "vera": BLOCKS * sum(2 + o for _, o in LAYERS.values()),
    "ia3": BLOCKS * (D + D + H),
    "norm": BLOCKS * 4 * D + 2 * D,
    "full": 300_291 - HEAD,
}
OVERHEAD = 3_000
"""Bytes of Flower's framing and of the metrics beside one update."""


@pytest.mark.parametrize("method", sorted(CLOSED_FORM))
def test_each_method_trains_and_sends_exactly_its_parameters(
    run_tiny: Run, tmp_path: Path, method: str
) -> None:
    report = run_tiny(tmp_path / "run", pet={"method": method})
    expected = CLOSED_FORM[method] + HEAD
    assert report.pet.trained_parameters == expected
    assert report.bytes.payload_per_site_round == 4 * expected
    assert 0 < report.bytes.up_per_site_round - 4 * expected < OVERHEAD
    (model,) = client_app._pool()._models.values()
    assert model.current_base_digest() == model.base_digest == report.base_digest
    assert report.arms["federated"].site_mean_auroc is not None


@pytest.mark.parametrize(
    ("aggregation", "share", "meter"),
    [("fedit", 1.0, (1e-4, 1.0)), ("rolora", None, (0, 1e-6)), ("ffa", None, (0, 1e-6)),
     ("fedex", 1.0, (0, 1e-5))],
)  # fmt: skip
def test_each_aggregation_reports_its_error_and_its_bytes(
    run_tiny: Run, tmp_path: Path, aggregation: str, share: float | None, meter: tuple[float, float]
) -> None:
    report = run_tiny(tmp_path / "run", lora={"aggregation": aggregation}, rounds={"count": 3})
    a = BLOCKS * sum(2 * i for i, _ in LAYERS.values())
    b = BLOCKS * sum(2 * o for _, o in LAYERS.values())
    trained = {"fedit": a + b, "fedex": a + b, "rolora": a + b, "ffa": b}[aggregation] + HEAD
    sent = {1: b, 2: a, 3: b} if aggregation == "rolora" else dict.fromkeys((1, 2, 3), trained - HEAD)
    assert report.pet.trained_parameters == trained
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    for record in ledger.rounds():
        assert set(record["payload"].values()) == {4 * (sent[record["round"]] + HEAD)}
    ledger.close()
    errors = [r.lora_error for r in report.rounds]
    assert all(e is not None and e <= meter[1] for e in errors)
    assert max(e for e in errors if e is not None) >= meter[0]


def test_one_site_for_one_round_is_local_training(
    run_tiny: Run, final_adapter: Final, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    out = tmp_path / "run"
    experiment = tiny(rounds={"count": 1})
    from simulations.engine import run_inline

    config = experiment.run_config(1)
    run_inline(config, {"north": tiny_sites["north"]}, out)
    model = build_model(config)
    site = load_site(tiny_sites["north"])
    data = load_site_data(site, config.data)
    inputs = StudyInputs(model, data, config.train)
    alone = train_local(model, data, inputs, "north", tmp_path / "local.safetensors", "plan", tmp_path).state
    together = final_adapter(out)
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(together.tensors[name], tensor, rtol=0, atol=2e-7)
    start = model.initial_state().tensors
    assert all((tensor - start[name]).abs().max() > 1e-4 for name, tensor in alone.tensors.items())


def test_fedprox_with_mu_zero_is_fedavg(run_tiny: Run, final_adapter: Final, tmp_path: Path) -> None:
    run_tiny(tmp_path / "avg")
    run_tiny(tmp_path / "prox", strategy={"name": "fedprox"})
    run_tiny(tmp_path / "pull", strategy={"name": "fedprox", "proximal_mu": 10.0})
    assert final_adapter(tmp_path / "avg").digest() == final_adapter(tmp_path / "prox").digest()
    assert final_adapter(tmp_path / "avg").digest() != final_adapter(tmp_path / "pull").digest()


def test_order_of_sites_does_not_matter(
    final_adapter: Final, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    from simulations.engine import run_inline

    config = tiny().run_config(3)
    run_inline(config, tiny_sites, tmp_path / "a")
    run_inline(config, dict(reversed(tiny_sites.items())), tmp_path / "b")
    assert final_adapter(tmp_path / "a").digest() == final_adapter(tmp_path / "b").digest()


def test_partial_labels_leave_an_unowned_row_alone(
    final_adapter: Final, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    """Only south takes part, which does not annotate cardiomegaly."""
    from simulations.engine import run_inline

    experiment = tiny(train={"weight_decay": 0.5}, strategy={"name": "fedadam"}, pet={"method": "head"})
    config = experiment.run_config(1)
    run_inline(config, {"south": tiny_sites["south"]}, tmp_path / "run")
    before = build_model(config).initial_state().tensors["head.weight"]
    after = final_adapter(tmp_path / "run").tensors["head.weight"]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    ("kind", "code"),
    [("nan", "E_NONFINITE"), ("shape", "E_SCHEMA"), ("extra", "E_SCHEMA"), ("weight", "E_WEIGHT"),
     ("large", "E_NORM")],
)  # fmt: skip
def test_a_bad_site_is_named_and_changes_nothing(
    run_tiny: Run, final_adapter: Final, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path],
    kind: str, code: str,
) -> None:  # fmt: skip
    from simulations.engine import run_inline

    report = run_tiny(tmp_path / "bad", faults=[{"site": "east", "kind": kind}])
    assert all(r.rejected == {"east": code} for r in report.rounds)
    events = list(Ledger(tmp_path / "bad" / "ledger.sqlite").events())
    lines = [e.text for e in events if e.kind == "round"]
    assert all(f"east left out ({code})" in line for line in lines)
    others = {name: file for name, file in tiny_sites.items() if name != "east"}
    run_inline(tiny().run_config(2), others, tmp_path / "without")
    assert final_adapter(tmp_path / "bad").digest() == final_adapter(tmp_path / "without").digest()


def test_a_silent_site_misses_the_deadline_and_below_quorum_a_round_is_abandoned(
    run_tiny: Run, final_adapter: Final, tmp_path: Path
) -> None:
    report = run_tiny(
        tmp_path / "run",
        faults=[{"site": "east", "kind": "silent", "rounds": [2]}],
        rounds={"count": 3, "deadline": 3.0, "quorum": 3},
    )
    assert [r.status for r in report.rounds] == ["committed", "abandoned", "committed"]
    assert report.rounds[1].missing == ("east",)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    line = next(e.text for e in ledger.events() if e.kind == "round" and e.round == 2)
    assert "east missed the deadline" in line and "abandoned" in line
    rounds = tmp_path / "run" / "checkpoints"
    states = [(rounds / f"round-000{i}" / "adapter.safetensors").read_bytes() for i in (1, 2, 3)]
    assert states[0] == states[1] != states[2]


@pytest.mark.timeout(300)
def test_the_two_engines_agree(run_tiny: Run, final_adapter: Final, tmp_path: Path) -> None:
    patient = {"count": 2, "deadline": 240.0}  # Ray starts slowly on a busy machine
    inline = run_tiny(tmp_path / "inline", rounds=patient)
    ray = run_tiny(tmp_path / "ray", engine="ray", rounds=patient)
    assert final_adapter(tmp_path / "inline").digest() == final_adapter(tmp_path / "ray").digest()
    assert inline.arms == ray.arms
    assert inline.adapter_sha256 == ray.adapter_sha256


def test_killed_in_the_middle_of_a_round_a_run_resumes_to_the_same_bits(
    run_tiny: Run, final_adapter: Final, tmp_path: Path, tiny: Any, tiny_sites: dict[str, Path]
) -> None:
    overrides: dict[str, Any] = {
        "arms": ["local", "federated", "pooled"],
        "evaluate": {"local": True},
        "strategy": {"name": "fedadam"},
        "lora": {"aggregation": "ffa"},
        "rounds": {"count": 4},
    }
    whole = run_tiny(tmp_path / "whole", **overrides)
    killed = tmp_path / "killed"
    sites = next(iter(tiny_sites.values())).parents[1]
    # An event of a round is in the ledger: the round is half done.
    half_done = "SELECT count(*) FROM events WHERE kind = 'returned' AND round = ?"
    done = kill_run(tiny(**overrides), sites, killed, half_done, 3)
    assert done == ["round-0001", "round-0002"]
    resumed = run_tiny(killed, resume=True, **overrides)
    assert final_adapter(killed).digest() == final_adapter(tmp_path / "whole").digest()
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert resumed.arms == whole.arms
    keys = ("loss", "returned", "payload", "validation_before", "update_norm")
    for mine, theirs in zip(_rounds(killed), _rounds(tmp_path / "whole"), strict=True):
        assert {k: mine[k] for k in keys} == {k: theirs[k] for k in keys}


def _rounds(folder: Path) -> list[dict[str, Any]]:
    ledger = Ledger(folder / "ledger.sqlite")
    records = ledger.rounds()
    ledger.close()
    return records


def test_another_plan_in_the_same_folder_is_refused_by_key(run_tiny: Run, tmp_path: Path) -> None:
    from common.errors import CheckpointError, ConfigError

    run_tiny(tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_tiny(tmp_path / "run")
    with pytest.raises(CheckpointError, match="another plan") as caught:
        run_tiny(tmp_path / "run", resume=True, train={"lr": 0.5})
    assert "train.lr = 0.01, now 0.5" in caught.value.found


def test_the_run_folder_holds_what_it_promises(run_tiny: Run, tmp_path: Path) -> None:
    report = run_tiny(
        tmp_path / "run", arms=["local", "federated", "pooled"], evaluate={"local": True},
        thumbnail_baseline=True,
    )  # fmt: skip
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} >= {
        "plan.toml", "ledger.sqlite", "checkpoints", "release", "report.html", "report.json",
    }  # fmt: skip
    assert len(list((run / "checkpoints").iterdir())) == 2
    told = json.loads((run / "report.json").read_text())
    assert told["schema"] == "fedcxr.report/1"
    assert list(report.arms) == ["local", "federated", "pooled"]
    assert report.comparison is not None
    local, federated = report.arms["local"], report.arms["federated"]
    assert local.local_steps == federated.local_steps
    assert report.thumbnail_baseline is not None and set(report.thumbnail_baseline) == set(local.sites)
    assert "cardiomegaly" not in report.sites["south"].findings
    assert local.sites["south"].findings["cardiomegaly"].auroc is None


def test_clinical_variables_and_draws(run_tiny: Run, final_adapter: Final, tmp_path: Path) -> None:
    from client.data.assess import assess_site

    out = tmp_path / "run"
    data = {"clinical": ["age", "male"], "fraction": 0.5}
    report = run_tiny(out, arms=["local", "federated", "pooled"], data=data, evaluate={"local": True})
    assert final_adapter(out).tensors["clinical.weight"].abs().sum() > 0
    beside = load_file(out / "release" / "clinical.safetensors")["clinical.weight"]
    assert beside.shape == (3, 4)
    whole = Ledger(out / "ledger.sqlite").sites()
    drawn = {}
    for name in report.sites:
        sites = out / "sites" / name / "site.toml"
        everything = load_site_data(load_site(sites), DataConfig(findings=("edema",), image_size=32))
        drawn[name] = whole[name]["train-studies"]
        assert 0 < drawn[name] < len(everything.split["train"])
        assert whole[name]["test-studies"] == len(everything.split["test"])
    pooled = assess_site(load_site(out / "pooled" / "site" / "site.toml"), None, None, 32)
    assert int((pooled.split == "train").sum()) == sum(drawn.values())
    assert pooled.table.variables == ("age", "male")
    assert not np.isnan(pooled.table.clinical).any()


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "quantity", "column"])
def test_one_table_is_dealt_out_to_sites_by_patient(tiny: Any, tmp_path: Path, scheme: str) -> None:
    from client.data.table import read_studies
    from simulations.experiment import Experiment
    from simulations.prepare import prepare_sites

    source = {"phantom": {"studies": 80, "seed": 5, "size": 32}}
    tree = tiny().model_dump(exclude={"sites"})
    tree["partition"] = {"source": source, "scheme": scheme, "sites": 3, "column": "view"}
    if scheme == "column":
        tree["partition"]["sites"] = 2
    experiment = Experiment.build(tree)
    files = prepare_sites(experiment, tmp_path / "sites")
    tables = [read_studies(load_site(file), experiment.data.findings) for file in files.values()]
    assert len(files) == tree["partition"]["sites"] and sum(len(t) for t in tables) == 80
    patients = [set(t.patient.tolist()) for t in tables]
    assert sum(map(len, patients)) == len(set.union(*patients))
    if scheme == "column":
        # a patient goes whole to the site of most of his studies, so each site has a main view
        mains = [max(("AP", "PA"), key=t.view.tolist().count) for t in tables]
        assert set(mains) == {"AP", "PA"}


def test_a_prepared_folder_is_used_again_and_a_changed_one_is_not(tiny: Any, tmp_path: Path) -> None:
    from simulations.prepare import prepare_sites

    sites = {"north": {"phantom": {"studies": 12, "seed": 1, "size": 32}}}
    first = prepare_sites(tiny(sites=sites), tmp_path / "sites")
    stamp = first["north"].stat().st_mtime_ns
    assert prepare_sites(tiny(sites=sites), tmp_path / "sites")["north"].stat().st_mtime_ns == stamp
    sites["north"]["phantom"]["studies"] = 14
    assert prepare_sites(tiny(sites=sites), tmp_path / "sites")["north"].stat().st_mtime_ns > stamp
