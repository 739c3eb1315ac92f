"""What a site says when it pretrains: counts, a loss and an update, and nothing that reads a label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from client.gate.egress import check_answer
from client.gate.plan_check import check_plan
from client.gate.policy import Policy, parse_policy
from client.site import SiteConfig, load_site
from client.worker import ModelPool, SiteWorker
from common.code import code_digest
from common.config import RunConfig
from common.errors import EgressError, PolicyError
from common.phase import trained_names
from common.protocol import MESSAGE_TYPES, Answer, Instruction
from simulations.make_site import make_site

POLICY = parse_policy({"asked": {"stages": tuple(MESSAGE_TYPES)}})
PLAN: dict[str, Any] = {
    "data": {"findings": ("effusion", "edema"), "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"rank": 2},
    "rounds": {"count": 1, "quorum": 2},
    "pretrain": {"rounds": 2, "batch_size": 16},
    "evaluate": {"replicates": 20},
}
Ask = Callable[..., tuple[Answer, Instruction, RunConfig]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    return load_site(make_site(tmp_path_factory.mktemp("north"), "north", 80, 3, size=32, prevalence=0.5))


@pytest.fixture(scope="module")
def ask(site: SiteConfig) -> Ask:
    """Ask a real worker, as the node does."""
    pool = ModelPool()
    worker = SiteWorker(site, pool)

    def answer(stage: str, **pretrain: Any) -> tuple[Answer, Instruction, RunConfig]:
        config = RunConfig.build({**PLAN, "pretrain": {**PLAN["pretrain"], **pretrain}})
        model = pool.get(config, torch.device("cpu"))
        adapter = None if stage == "enrol" else model.schema.pack(model.initial_state().tensors)
        code, base = code_digest(), model.base_digest
        digests = (config.plan_digest(base, code), code, base)
        instruction = Instruction(stage, *digests, round=1, adapter=adapter)  # type: ignore[arg-type]
        return worker.handle(instruction, config.to_flat()), instruction, config

    return answer


@pytest.mark.parametrize("task", ["masked-image", "image-text"])
@pytest.mark.parametrize("parameters", ["adapter", "encoder"])
@pytest.mark.parametrize("stage", ["enrol", "pretrain", "local"])
def test_an_honest_answer_passes(ask: Ask, site: SiteConfig, stage: str, task: str, parameters: str) -> None:
    answer, instruction, config = ask(stage, task=task, parameters=parameters, steps=3)
    assert not answer.code, (site.data.state / "site.log").read_text()
    check_answer(answer, instruction, config, POLICY, site)


def test_the_update_is_the_round_s_tensors_and_nothing_else(ask: Ask, site: SiteConfig) -> None:
    answer, _, config = ask("pretrain")
    model = ModelPool().get(config, torch.device("cpu"))
    schema = model.schema.select(trained_names(model.schema, config, 1))
    assert answer.update is not None
    assert answer.update.shape == (schema.numel,)
    assert all(".lora_" in name for name in schema.names)
    assert set(answer.metrics) == {"num-examples", "loss", "steps", "seconds"}
    kept = site.data.state.glob("pretext-*/round-0001.safetensors")
    assert len(list(kept)) >= 1  # the decoder is here, and is not in the update


def test_enrolment_counts_what_there_is_to_pretrain_on(ask: Ask) -> None:
    answer, _, _ = ask("enrol")
    assert answer.metrics["pretrain-studies"] == answer.metrics["train-studies"]
    without, _, _ = ask("enrol", rounds=0)
    assert "pretrain-studies" not in without.metrics


def _policy(**training: Any) -> Policy:
    return parse_policy({"asked": {"stages": tuple(MESSAGE_TYPES)}, "training": training})


@pytest.mark.parametrize(
    "changes",
    [
        {"labelled": [1, 2]},
        {"validation-auroc": 0.5},
        {"steps": 1},
        {"num-examples": 3},
        {"loss": 0.123456789},
        {"pretrain-studies": 40},
    ],
    ids=str,
)
def test_another_figure_does_not_leave(ask: Ask, site: SiteConfig, changes: dict[str, Any]) -> None:
    answer, instruction, config = ask("pretrain")
    more = dataclasses.replace(answer, metrics={**answer.metrics, **changes})
    with pytest.raises(EgressError):
        check_answer(more, instruction, config, POLICY, site)


def test_enrolment_without_pretraining_tells_no_such_count(ask: Ask, site: SiteConfig) -> None:
    answer, instruction, config = ask("enrol", rounds=0)
    more = dataclasses.replace(answer, metrics={**answer.metrics, "pretrain-studies": 40})
    with pytest.raises(EgressError):
        check_answer(more, instruction, config, POLICY, site)


def test_a_site_that_shares_no_whole_encoder_says_so(ask: Ask, site: SiteConfig) -> None:
    _, _, config = ask("enrol", parameters="encoder")
    with pytest.raises(PolicyError, match=r"pretrain\.parameters"):
        check_plan(_policy(methods=("lora",)), config, site, "pretrain")


def test_no_path_of_the_site_is_in_what_lies_between_rounds(ask: Ask, site: SiteConfig) -> None:
    ask("pretrain")
    for file in Path(site.data.state).rglob("round-*.safetensors"):
        assert b"PHANTOM" not in file.read_bytes()
