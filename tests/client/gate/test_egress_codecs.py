"""The gate reads what an update means, whatever codec it travels in, and lets nothing else out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.gate.egress import check_answer, release
from client.gate.policy import Policy, parse_policy
from client.site import SiteConfig, load_site
from client.worker import ModelPool, SiteWorker
from common.code import code_digest
from common.codec import decode, encode
from common.config import RunConfig
from common.errors import EgressError
from common.protocol import CODEC_ERROR, Answer, Instruction
from common.sections import WireConfig
from simulations.make_site import make_site

CODECS: list[dict[str, Any]] = [
    {"codec": "fp16"},
    {"codec": "int8"},
    {"codec": "int8", "entropy": True, "feedback": False},
    {"codec": "topk", "keep": 0.05},
    {"codec": "topk", "keep": 0.2, "entropy": True},
]
OWN = parse_policy({"answers": {"local_adapter": True}})
Asked = tuple[Answer, Instruction, RunConfig]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    findings = ("effusion", "cardiomegaly")
    folder = tmp_path_factory.mktemp("codecs") / "north"
    return load_site(make_site(folder, "north", 100, 3, size=32, prevalence=0.5, findings=findings))


@pytest.fixture(scope="module")
def ask(site: SiteConfig) -> Callable[..., Asked]:
    pool = ModelPool()
    worker = SiteWorker(site, pool)

    def asked(wire: dict[str, Any], stage: str = "train", **sections: Any) -> Asked:
        tree: dict[str, Any] = {
            "data": {"findings": ("effusion", "cardiomegaly", "edema"), "image_size": 32},
            "model": {"backbone": "timm:test_vit"},
            "pet": {"method": "lora", "rank": 2},
            "rounds": {"count": 2, "quorum": 2},
            "evaluate": {"replicates": 20, "matrix": True},
            "wire": wire,
        }
        config = RunConfig.build(tree | sections)
        model = pool.get(config, torch.device("cpu"))
        instruction = Instruction(
            stage,  # type: ignore[arg-type]
            config.plan_digest(model.base_digest, code_digest()),
            code_digest(),
            model.base_digest,
            round=1 if stage == "train" else 0,
            adapter=model.schema.pack(model.initial_state().tensors),
            lineage="run",
        )
        answer = worker.handle(instruction, config.to_flat())
        assert not answer.code, (site.data.state / "site.log").read_text()
        return answer, instruction, config

    return asked


def refused(asked: Asked, site: SiteConfig, policy: Policy = OWN, **changes: Any) -> str:
    answer, instruction, config = asked
    with pytest.raises(EgressError) as caught:
        check_answer(dataclasses.replace(answer, **changes), instruction, config, policy, site)
    return str(caught.value)


@pytest.mark.parametrize("wire", CODECS, ids=str)
def test_every_codec_s_answer_passes_and_tells_its_error(
    site: SiteConfig, ask: Callable[..., Asked], wire: dict[str, Any]
) -> None:
    answer, instruction, config = ask(wire)
    assert release(answer, instruction, config, Policy(), site) == answer
    assert 0 < answer.metrics[CODEC_ERROR] <= 1
    few = parse_policy({"answers": {"metrics": ()}})
    assert CODEC_ERROR not in release(answer, instruction, config, few, site).metrics
    for wrong in (-0.1, 1.5, 1, [0.1], 0.1234567):
        assert CODEC_ERROR in refused(
            (answer, instruction, config), site, metrics={**answer.metrics, CODEC_ERROR: wrong}
        )


def test_fp32_tells_no_error(site: SiteConfig, ask: Callable[..., Asked]) -> None:
    asked = ask({})
    assert CODEC_ERROR not in asked[0].metrics
    assert "may not hold" in refused(asked, site, metrics={**asked[0].metrics, CODEC_ERROR: 0.5})


@pytest.mark.parametrize("wire", [w for w in CODECS if w["codec"] != "fp16"], ids=str)
def test_what_an_update_means_is_bounded(
    site: SiteConfig, ask: Callable[..., Asked], wire: dict[str, Any]
) -> None:
    asked = ask(wire)
    answer, instruction, config = asked
    assert answer.update is not None and instruction.adapter is not None
    numel = instruction.adapter.size
    for values, said in (
        (np.full(numel, 10.0, np.float32), "larger than plan and policy"),
        (np.full(numel, np.nan, np.float32), "NaN or infinity"),
        (np.zeros(numel + 1, np.float32), "more numbers"),
    ):
        assert said in refused(asked, site, update=encode(values, config.wire))
    assert "number format" in refused(asked, site, update=np.zeros(numel, np.float32))
    assert "number format" in refused(asked, site, parse_policy({"answers": {"codecs": ("fp32",)}}))
    assert "cannot leave" in refused(asked, site, update=answer.update[:-1])
    assert "cannot leave" in refused(asked, site, update=np.append(answer.update, np.uint8(0)))
    assert "cannot leave" in refused(asked, site, update=np.zeros(40, np.uint8))


@pytest.mark.parametrize("wire", CODECS, ids=str)
def test_a_site_s_own_model_leaves_whole(
    site: SiteConfig, ask: Callable[..., Asked], wire: dict[str, Any]
) -> None:
    """Sent once, it cannot owe: of a plan that sends one value in twenty it is nevertheless all there."""
    answer, instruction, config = ask(wire, "local")
    exact, *_ = ask({}, "local")
    assert release(answer, instruction, config, OWN, site) == answer
    assert answer.update is not None and exact.update is not None
    back = decode(answer.update, config.wire, exact.update.size)
    assert np.linalg.norm(back - exact.update) < 0.01 * np.linalg.norm(exact.update)
    assert CODEC_ERROR not in answer.metrics


def test_feedback_lies_in_the_state_of_the_site(site: SiteConfig, ask: Callable[..., Asked]) -> None:
    before = {*site.data.state.glob("feedback-*")}
    first, *_ = ask({"codec": "topk", "keep": 0.03})
    made = {*site.data.state.glob("feedback-*")} - before
    assert len(made) == 1 and [f.name for f in made.pop().iterdir()] == ["round-000001.safetensors"]
    again, *_ = ask({"codec": "topk", "keep": 0.03})
    assert first.update is not None and again.update is not None
    assert first.update.tobytes() == again.update.tobytes()
    rows = decode(first.update, WireConfig(codec="topk", keep=0.03), first.update.size * 100)
    assert np.count_nonzero(rows) <= np.ceil(0.03 * rows.size)
