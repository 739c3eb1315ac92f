"""What a plan may be, and what is said of it before anybody is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_files

from common.bundle import bundle_code_digest, differences, read_bundle
from common.config import RunConfig
from common.errors import ConfigError
from common.model.build import build_model
from server.centre.folder import CentreFolder
from server.centre.plan_file import read_plan
from server.centre.registry import Registry
from server.centre.run_folder import find_run, run_folders
from server.centre.submit import Proposal, check_name, free_name, propose
from server.plan import write_plan
from simulations.experiment import shipped

FLAT = {"data.findings": "effusion", "data.image-size": 32, "model.backbone": "timm:test_vit", "pet.rank": 2}


@pytest.fixture
def centre(provision: Callable[..., CentreFolder], tmp_path: Path) -> CentreFolder:
    return provision(tmp_path / "centre")


PLAN = """
title = "An experiment"
arms = ["federated"]
[data]
findings = ["effusion", "edema"]
image_size = 32
root = "elsewhere"
[model]
backbone = "timm:test_vit"
[pet]
rank = 2
[sites.a.phantom]
studies = 10
"""


def test_an_experiment_is_a_plan_without_its_sites(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    read = read_plan(file, ["pet.rank=4", "rounds.count=2"])
    assert (read.config.pet.rank, read.config.rounds.count) == (4, 2)
    assert set(read.left_out) == {"title", "arms", "sites", "data.root"}


def test_every_shipped_experiment_is_a_plan() -> None:

    read = {}
    for name, file in shipped().items():
        if "series" not in file.read_text():
            read[name] = read_plan(file).config
    assert len(read) >= 5


def test_a_plan_of_an_earlier_run_is_a_plan(tmp_path: Path) -> None:
    config = RunConfig.from_flat(FLAT)
    write_plan(config, build_model(config).base_digest, tmp_path)
    assert read_plan(tmp_path / "plan.toml").config == config


@pytest.mark.parametrize(
    ("text", "said", "fix"),
    [
        ("[pet]\nrnak = 4", "unknown key 'pet.rnak'", "did you mean 'pet.rank'?"),
        ("[pet]\nrank = 0", "pet.rank", ""),
        ("[rounds]\nsitess = 4", "unknown key 'rounds.sitess'", "did you mean 'rounds.sites'?"),
        ('series = ["a"]', "a series of experiments", "name one"),
        ("extends = 3", "extends is not", ""),
        ('extends = "plan"', "extends is not", ""),
        ("x", "not valid TOML", ""),
    ],
)
def test_a_plan_that_is_wrong_says_where(tmp_path: Path, text: str, said: str, fix: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_plan(tmp_path / "plan.toml")
    assert fix in caught.value.fix


def test_weights_are_found_beside_the_plan_wherever_the_server_stands(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"")
    (tmp_path / "plan.toml").write_text('[model]\nweights = "base.safetensors"')
    assert read_plan(tmp_path / "plan.toml").config.model.weights == str(tmp_path / "base.safetensors")


def proposal(centre: CentreFolder, **over: Any) -> Proposal:
    return propose(centre, RunConfig.from_flat({**FLAT, **over}))


def test_a_proposal_says_what_will_be_asked(centre: CentreFolder) -> None:
    made = proposal(centre, **{"rounds.sites": 0, "wire.codec": "fp16", "evaluate.local": True})
    model = build_model(made.config)
    assert made.config.rounds.sites == 2
    assert made.stages == ("enrol", "local", "train", "evaluate")
    assert (made.down, made.up) == (4 * model.schema.numel, 2 * model.schema.numel)
    assert made.trained_parameters == model.schema.numel
    assert differences(made.fab) == []
    assert made.code_digest == bundle_code_digest(made.fab)
    assert made.plan_digest == made.config.plan_digest(model.base_digest, made.code_digest)
    assert made.absent() == ["east", "north"]


def test_half_an_adapter_at_a_time_is_said_as_such(centre: CentreFolder) -> None:
    made = proposal(centre, **{"lora.aggregation": "rolora"})
    assert made.up < made.down


def test_another_bundle_has_its_own_digests(centre: CentreFolder, tmp_path: Path) -> None:
    own = proposal(centre)
    files = {name: data for name, data in read_bundle(own.fab).items() if not name.startswith(".info")}
    files["client/app.py"] += b"\n"
    (tmp_path / "other.fab").write_bytes(build_fab_from_files(files)[0])
    other = propose(centre, RunConfig.from_flat(FLAT), tmp_path / "other.fab")
    assert other.base_digest == own.base_digest
    for name in ("bundle_sha256", "code_digest", "plan_digest"):
        assert getattr(other, name) != getattr(own, name)


def test_a_proposal_knows_who_was_heard(centre: CentreFolder) -> None:
    with Registry(centre.registry) as registry:
        registry.heard({"east": time.time() - 10, "north": time.time() - 1000})
    assert proposal(centre).absent() == ["north"]


def test_more_sites_than_are_admitted_are_not_waited_for(centre: CentreFolder) -> None:
    with pytest.raises(ConfigError, match="more sites than are admitted"):
        proposal(centre, **{"rounds.sites": 3})
    with pytest.raises(ConfigError, match="more sites than are admitted"):
        proposal(centre, **{"rounds.quorum": 3})


def test_names_of_runs(centre: CentreFolder) -> None:
    assert free_name(centre, Path("My Plan.v2.toml")) == "my-plan-v2"
    config = RunConfig.from_flat(FLAT)
    write_plan(config, "b" * 64, centre.run("first"))
    assert free_name(centre, Path("first.toml")) == "first-2"
    for name in ("first", "../up", "", "UPPER"):
        with pytest.raises(ConfigError):
            check_name(centre, name)
    check_name(centre, "second")
    with pytest.raises(ConfigError, match="no run"):
        find_run(centre, "frist")
    assert [run.name for run in run_folders(centre)] == ["first"]
