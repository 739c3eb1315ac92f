"""Angles, norms and distances of updates, beside numpy on the whole vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import AdapterSchema
from common.config import RunConfig
from common.model.build import build_model
from server import geometry as under_test
from server.geometry import block_of, blocks_of, drift, geometry
from server.spool import Spool
from server.strategies.mean import weighted_mean
from server.update import SiteUpdate

SHAPES = {"blocks.0.a": (7, 3), "blocks.1.b": (300, 70), "head.bias": (5,)}
SCHEMA = AdapterSchema(tuple(SHAPES.items()))


def updates(count: int, seed: int, scale: float = 1.0) -> list[SiteUpdate]:
    generator = torch.Generator().manual_seed(seed)
    return [
        SiteUpdate(
            f"s{k:03d}", k + 1, np.ones(5, dtype=np.int64),
            {n: scale * torch.randn(s, generator=generator) + 0.1 for n, s in SHAPES.items()},
        )
        for k in range(count)
    ]  # fmt: skip


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensors[name].double().numpy().ravel() for name in SHAPES])


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_cosines_and_norm(count: int, seed: int, scale: float) -> None:
    sent = updates(count, seed, scale)
    held = Spool.of(sent[::-1], SCHEMA)
    found = geometry(held, weighted_mean(held))
    vectors, middle = [flat(update.delta) for update in sent], weighted_mean(held).numpy()
    norms = [np.linalg.norm(vector) for vector in vectors]
    assert found.sites == tuple(update.site for update in sent)
    assert found.norm == pytest.approx(np.linalg.norm(middle), rel=1e-12)
    for k, site in enumerate(found.sites):
        expected = vectors[k] @ middle / norms[k] / np.linalg.norm(middle)
        assert found.cosines[site] == pytest.approx(expected, abs=1e-12)
        for other, vector in enumerate(vectors):
            cosine = vectors[k] @ vector / norms[k] / norms[other]
            assert found.pairs[k][other] == pytest.approx(cosine, abs=1e-12)


def test_a_zero_update_has_no_direction() -> None:
    sent = updates(2, 0)
    still = SiteUpdate("still", 1, np.ones(5, dtype=np.int64), {n: torch.zeros(s) for n, s in SHAPES.items()})
    found = geometry(Spool.of([*sent, still], SCHEMA), torch.from_numpy(flat(sent[0].delta)))
    assert [*found.cosines] == ["s000", "s001"] and found.cosines["s000"] == pytest.approx(1.0)
    assert found.pairs[2] == (0.0, 0.0, 0.0)
    nothing = geometry(Spool.of([still], SCHEMA), torch.zeros(SCHEMA.numel, dtype=torch.float64))
    assert nothing.cosines == {} and nothing.norm == 0.0


def test_among_too_many_sites_only_the_mean_is_held_against_each(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = updates(6, 3)
    held = Spool.of(sent, SCHEMA)
    mean = weighted_mean(held)
    whole = geometry(held, mean)
    monkeypatch.setattr(under_test, "PAIRS_AT_MOST", 5)
    many = geometry(held, mean)
    assert many.pairs == () and many.cosines == pytest.approx(whole.cosines, abs=1e-12)
    assert many.norm == pytest.approx(whole.norm)


def test_drift_by_block() -> None:
    start, now = updates(2, 5)
    found = drift(start.delta, now.delta)
    assert [*found] == ["blocks.0", "blocks.1", "head"]
    for block, name in zip(found, SHAPES, strict=True):
        gap = now.delta[name].double().numpy() - start.delta[name].double().numpy()
        assert found[block] == pytest.approx(np.linalg.norm(gap))
    assert set(drift(start.delta, start.delta).values()) == {0.0}


_VIT = tuple(f"blocks.{k}" for k in range(6))
_RESNET = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))
_DENSENET = tuple(f"{kind}{k}" for k in (1, 2, 3) for kind in ("denseblock", "transition"))


@pytest.mark.parametrize(
    ("backbone", "method", "blocks"),
    [
        ("timm:test_vit", "lora", [*_VIT, "head"]),
        ("timm:test_vit", "full", ["cls_token", "patch_embed", "pos_embed", *_VIT, "norm", "head"]),
        ("timm:densenet121", "lora", [*_DENSENET, "denseblock4", "classifier"]),
        ("timm:resnet18", "norm", ["bn1", *_RESNET, "fc"]),
        ("timm:test_convnext", "norm", None),
        ("timm:test_efficientnet", "lora", None),
    ],
)
def test_blocks_are_the_networks_in_its_order(backbone: str, method: str, blocks: list[str] | None) -> None:
    model = build_model(RunConfig.build({"model": {"backbone": backbone}, "pet": {"method": method}}))
    names = [*model.initial_state().tensors]
    found = blocks_of(names)
    if blocks is not None:
        assert found == blocks
    assert {block_of(name) for name in names} == {*found}
    assert found[-1] == block_of(next(n for n in names if n.startswith(("head", "fc", "classifier"))))
    order = [block_of(name) for name in model.net.state_dict()]  # the network's own
    numbered = [block for block in dict.fromkeys(order) if block in found and any(c.isdigit() for c in block)]
    stages = [block for block in found if block in numbered]
    assert sorted(stages, key=numbered.index) == stages or method == "lora"
