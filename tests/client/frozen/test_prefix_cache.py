"""Frozen parts are computed once: the same adapter as without, whoever computed them, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import client.outputs as outputs
from client.activations import Place
from client.data.dataset import SiteData
from client.evaluate import predict
from client.frozen import ImagePrefix
from client.prefix_cache import StudyInputs
from client.site import load_site
from client.train import train_round
from client.worker import SiteWorker
from common.adapter import AdapterState, Factors
from common.code import code_digest
from common.config import RunConfig
from common.errors import ModelError
from common.model.build import CxrModel, build_model
from common.protocol import Answer, Instruction
from simulations.make_site import make_site
from tests.client.frozen.frozen_parts import (
    EVERY,
    STUDIES,
    gap,
    inputs_of,
    moved,
    never,
    trained,
)

ROUNDED = 0.02
"""How far float16 may lead an adapter astray in ten steps of AdamW, against how far it comes: 0.009 seen."""


# ---------------------------------------------------------------- the same as without


@pytest.mark.parametrize(
    ("method", "scope", "cut"),
    [
        ("head", "all", 7), ("lora", "last-1", 5), ("lora", "last-2", 4), ("lora", "last-4", 2),
        ("lora", "all", 0), ("bitfit", "last-2", 4), ("adapter", "last-2", 4), ("vera", "last-2", 4),
        ("ia3", "last-2", 4), ("norm", "last-2", 4), ("full", "last-2", 4),
    ],
)  # fmt: skip
def test_the_trained_adapter_is_that_without(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, method: str, scope: str, cut: int
) -> None:
    model = make(pet__method=method, pet__scope=scope)
    plain = trained(model, site, inputs_of(model, site, prefix_cache=False))
    exact = inputs_of(model, site, tmp_path, cache_dtype="fp32")
    assert exact.blocks == exact.of_round(1).blocks == cut
    assert gap(trained(model, site, exact), plain, moved(model)) < 1e-4
    assert exact.image_outputs == ("disk" if cut else "nowhere")
    rounded = trained(model, site, inputs_of(model, site, tmp_path))
    assert gap(rounded, plain, moved(model)) < (ROUNDED if cut else 1e-9)
    scores = []
    for state in (rounded, plain):
        model.load(state)
        scores.append(predict(model, inputs_of(model, site, prefix_cache=False), EVERY))
    assert np.abs(scores[0] - scores[1]).max() < 2e-3


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet", "test_convnext", "densenet121", "test_nfnet"]
)
def test_a_head_on_any_network_reads_features_alone(
    make: Callable[..., CxrModel], site: SiteData, backbone: str
) -> None:
    model = make(pet__method="head", model__backbone=f"timm:{backbone}")
    cached, plain = inputs_of(model, site, cache_dtype="fp32"), inputs_of(model, site, prefix_cache=False)
    model.load(moved(model))
    batch = cached.batch(EVERY)
    assert batch.images.shape == (STUDIES, model.net.get_classifier().in_features)
    np.testing.assert_allclose(predict(model, cached, EVERY), predict(model, plain, EVERY), atol=1e-5)


def test_measuring_reads_what_is_kept(
    make: Callable[..., CxrModel], site: SiteData, monkeypatch: Any
) -> None:
    model = make(pet__scope="last-2")
    inputs = inputs_of(model, site)
    model.load(moved(model))
    first = predict(model, inputs, site.split["test"])
    monkeypatch.setattr(model, "prefix", never)
    assert np.array_equal(predict(model, inputs, site.split["test"]), first)
    with pytest.raises(AssertionError, match="ran again"):
        predict(model, inputs, site.split["validation"])  # only what is asked for has run


# ---------------------------------------------------------------- the same bits, wherever they lie


def test_disk_memory_and_neither_give_the_same_bits(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(pet__scope="last-2")
    found = {}
    for where in ("disk", "memory", "nowhere"):
        if where == "nowhere":
            monkeypatch.setattr(outputs, "MEMORY_LIMIT", 100)
        inputs = inputs_of(model, site, tmp_path / "cache" if where == "disk" else None)
        state = trained(model, site, inputs)
        assert inputs.image_outputs == where
        found[where] = (state.digest(), predict(model, inputs, EVERY).tobytes())
    assert found["disk"] == found["memory"] == found["nowhere"]


@pytest.mark.parametrize("how", ["full", "a file", "forbidden"])
def test_a_cache_that_cannot_be_written_changes_no_result(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(pet__scope="last-2")
    folder = tmp_path / "cache"
    place = Place(folder, 100 if how == "full" else 10**9)
    if how == "a file":
        folder.write_text("in the way")
    if how == "forbidden":
        place = Place(Path("/proc/nowhere"), 10**9)
    inputs = StudyInputs(model, site, model.config.train, place)
    assert trained(model, site, inputs).digest() == trained(model, site, inputs_of(model, site)).digest()
    assert inputs.image_outputs == "memory" and "activations_limit" in caplog.text


def test_a_later_process_computes_nothing(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(pet__scope="last-2")
    first = trained(model, site, inputs_of(model, site, tmp_path))
    again = make(pet__scope="last-2")
    monkeypatch.setattr(again, "prefix", never)
    assert trained(again, site, inputs_of(again, site, tmp_path)).digest() == first.digest()


def test_other_methods_seeds_and_shares_of_the_studies_find_it(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid's cells: which was first does not change a bit."""
    few = replace(site, split={**site.split, "train": site.split["train"][[1, 5, 6, 20, 21]]})
    tuned = {"pet__scope": "last-2", "model__backbone": "embedded", "data__image_size": 32}
    model = make(**tuned)
    alone = trained(model, few, inputs_of(model, few)).digest()
    predict(model, inputs_of(model, few, tmp_path), few.split["test"])
    for number, over in enumerate([{}, {"pet__method": "bitfit"}, {"seed": 3}, {"lora__alpha": 4.0}]):
        other = make(**tuned, **over)
        if number:
            monkeypatch.setattr(other, "prefix", never)
        predict(other, inputs_of(other, site, tmp_path), EVERY)
    monkeypatch.setattr(model, "prefix", never)
    assert trained(model, few, inputs_of(model, few, tmp_path)).digest() == alone


@pytest.fixture(scope="module")
def folder_of_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = make_site(tmp_path_factory.mktemp("sites") / "north", "north", 60, 1, 32, prevalence=0.5)
    file.write_text(file.read_text() + "\n[evaluate]\nmin_cell = 3\n[device]\nthreads = 1\n")
    return file


def answer(file: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch | None, number: int = 1) -> Answer:
    """Ask a worker that has just started; with a monkeypatch, its model may not run the frozen prefix."""
    model = build_model(config)
    if monkeypatch is not None:
        monkeypatch.setattr(CxrModel, "prefix", never)
    adapter = model.schema.pack(moved(model).tensors)
    told = (config.plan_digest(model.base_digest, code_digest()), code_digest(), model.base_digest)
    asked = Instruction("train", *told, round=number, adapter=adapter)
    answered = SiteWorker(load_site(file)).handle(asked, config.to_flat())
    assert answered.code is None or not answered.code, (file.parent / "state" / "site.log").read_text()
    return answered


def test_a_restarted_site_repeats_its_round_from_what_is_kept(
    folder_of_site: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data__findings="effusion, edema", pet__scope="last-2", train__batch_size=16)
    cache = folder_of_site.parent / "cache" / "activations"
    first = answer(folder_of_site, config, None)
    assert len([*cache.glob("*.data")]) == 1
    again = answer(folder_of_site, config, monkeypatch)
    assert first.update is not None and np.array_equal(first.update, again.update)
    monkeypatch.undo()
    text = folder_of_site.read_text()
    folder_of_site.write_text(text.replace("[data]\n", "[data]\nactivations_limit = 0\n", 1))
    for file in cache.iterdir():
        file.unlink()
    assert np.array_equal(first.update, answer(folder_of_site, config, None).update)
    assert not [*cache.glob("*.data")]


def test_another_base_preprocessing_or_cut_is_another_computation(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path
) -> None:
    names = set()
    for over in (
        {}, {"seed": 1}, {"model__mean": 0.4}, {"model__std": 0.3}, {"pet__scope": "last-3"},
        {"pet__method": "head"}, {"pet__method": "head", "model__pool": "token"},
        {"train__cache_dtype": "fp32"}, {"data__fit": "pad"},
    ):  # fmt: skip
        model = make(**{"pet__scope": "last-2"} | over)
        predict(model, inputs_of(model, site, tmp_path), EVERY)
        now = {file.name for file in tmp_path.glob("*.data")}
        assert len(now - names) == 1, over
        names |= now


# ---------------------------------------------------------------- rounds of which less is trained


@pytest.mark.parametrize("method", ["lora", "bitfit", "norm", "ia3", "vera", "adapter"])
def test_a_probe_reads_features_that_the_adapter_took_part_in(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, method: str
) -> None:
    """The adapter has moved before, as after pretraining: features are those of this adapter."""
    model = make(pet__method=method, rounds__probe=2, rounds__count=4)
    plain = inputs_of(model, site, prefix_cache=False)
    inputs = inputs_of(model, site, tmp_path, cache_dtype="fp32")
    assert [inputs.of_round(n).blocks for n in (1, 2, 3)] == [7, 7, 0] and inputs.blocks == 0
    expected = trained(model, site, plain)
    assert gap(trained(model, site, inputs), expected, moved(model)) < 1e-4
    for seed in (0, 1, 0):
        model.load(moved(model, seed=seed))
        said = predict(model, inputs.of_round(1), EVERY)
        np.testing.assert_allclose(said, predict(model, plain, EVERY), atol=1e-5)
    assert len([*tmp_path.glob("*.data")]) == 2


def test_a_plan_of_probes_alone_reads_features_to_the_end(
    make: Callable[..., CxrModel], site: SiteData
) -> None:
    model = make(rounds__probe=2, rounds__count=2)
    assert inputs_of(model, site).blocks == 7
    assert inputs_of(make(rounds__probe=2, rounds__count=2, pretrain__rounds=1), site).blocks == 0


def test_a_residual_in_the_prefix_rules_it_out(make: Callable[..., CxrModel], site: SiteData) -> None:
    model = make(rounds__probe=1, rounds__count=2, lora__aggregation="fedex")
    inputs, plain = inputs_of(model, site), inputs_of(model, site, prefix_cache=False)
    layer = next(n for n, m in model.net.named_modules() if n.endswith("blocks.1.attn.qkv"))
    width = model.net.num_features
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(s, generator=generator) for s in ((3 * width, 2), (2, width)))
    start = AdapterState(moved(model).tensors, {layer: Factors(left, right)})
    results = [train_round(model, site, i.of_round(1), start, 1, "north") for i in (inputs, plain)]
    assert results[0].state.digest() == results[1].state.digest()
    assert inputs.of_round(1).blocks == 0 and inputs.of_round(1).image_outputs == "nowhere"
    model.load(moved(model))
    assert inputs.of_round(1).blocks == 7


@pytest.mark.parametrize(
    "over",
    [
        {"pet__method": "head", "model__drop_path": 0.1},
        {"lora__dropout": 0.1, "rounds__probe": 1},
        {"pet__method": "head", "train__augment": 0.5},
    ],
)
def test_what_is_random_in_training_is_kept_for_measuring_alone(
    make: Callable[..., CxrModel], site: SiteData, over: dict[str, Any]
) -> None:
    model = make(**over)
    cached, plain = inputs_of(model, site).of_round(1), inputs_of(model, site, prefix_cache=False)
    results = [train_round(model, site, i, moved(model), 1, "north") for i in (cached, plain)]
    assert results[0].state.digest() == results[1].state.digest()
    assert cached.blocks == 0 and cached.image_outputs == "nowhere"
    np.testing.assert_allclose(predict(model, cached, EVERY), predict(model, plain, EVERY), atol=1e-3)
    assert cached.image_outputs == "memory"


def test_dropout_behind_the_cut_is_no_hindrance(make: Callable[..., CxrModel], site: SiteData) -> None:
    assert inputs_of(make(lora__dropout=0.1, pet__scope="last-2"), site).blocks == 4


def test_training_what_lies_in_the_prefix_is_refused(make: Callable[..., CxrModel], site: SiteData) -> None:
    model = make(rounds__probe=1, rounds__count=2)
    with pytest.raises(ModelError, match="whose output is kept") as caught:
        train_round(model, site, inputs_of(model, site).of_round(1), moved(model), 2, "north")
    assert "lora" in caught.value.found and "of_round" in caught.value.fix


def test_numbers_too_large_for_the_format_are_refused(make: Callable[..., CxrModel], site: SiteData) -> None:
    model = make(pet__method="head")
    with torch.no_grad():
        model.net.norm.weight.mul_(1e6)
    with pytest.raises(ModelError, match="do not fit") as caught:
        predict(model, inputs_of(model, site), EVERY)
    assert "float16" in caught.value.found and "fp32" in caught.value.fix
    assert np.isfinite(predict(model, inputs_of(model, site, cache_dtype="fp32"), EVERY)).all()


def test_the_number_of_studies_beside_one_changes_no_bit(
    make: Callable[..., CxrModel], site: SiteData
) -> None:
    """What makes a cache shared by plans of other studies repeatable; dense layers alone do not."""
    model = make(model__backbone="timm:densenet121", pet__method="head")
    prefix = ImagePrefix(model, len(model.arch.blocks) + 1)
    images = inputs_of(model, site)._images(EVERY, np.zeros(STUDIES, dtype=np.int64))

    def said(rows: NDArray[np.int64]) -> torch.Tensor:
        return prefix.say(images[torch.from_numpy(rows)])

    whole = said(EVERY[: prefix.together])
    assert torch.equal(said(EVERY[5:6]), whole[5:6])
    back = EVERY[prefix.together - 1 :: -2].copy()
    assert torch.equal(said(back), whole[torch.from_numpy(back)])
