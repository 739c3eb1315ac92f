"""Sites trained in one pass end where they end one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from common.adapter import AdapterState, Factors
from common.errors import DataError, SchemaError
from simulations.stacked.training import Student, Task, train_stacked

EXACT = 5e-6
"""Share of the way moved that both results may be apart with SGD: rounding of fp32 sums."""
ADAPTIVE = 2e-3
"""The same with AdamW, which divides a gradient by its own size, rounding included."""
SGD = {"train__optimizer": "sgd", "train__lr": 0.05, "train__batch_size": 6}


@pytest.mark.parametrize("method", ["lora", "head", "bitfit", "norm", "ia3", "vera", "adapter"])
def test_every_method_moves_each_site_as_by_itself(make_model, both_ways, distance, method):
    model = make_model(pet__method=method, pet__rank=2, pet__bottleneck=4, train__epochs=2, **SGD)
    start = model.initial_state()
    alone, together = both_ways(model)
    for one, other in zip(alone, together, strict=True):
        assert one.steps == other.steps
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert distance(one, other, start) < EXACT
    digests = {result.state.digest() for result in together}
    assert len(digests) == 3  # each site's own


@pytest.mark.parametrize("method", ["lora", "head"])
@pytest.mark.parametrize("cache", [True, False])
def test_with_and_without_the_prefix_cache(make_model, both_ways, distance, method, cache):
    model = make_model(
        pet__method=method, pet__scope="last-2", pet__rank=2, train__prefix_cache=cache,
        train__batch_size=6, train__lr=0.01, train__head_lr=0.003, train__weight_decay=0.1,
        train__warmup=0.3,
    )  # fmt: skip
    alone, together = both_ways(model, number=2)
    for one, other in zip(alone, together, strict=True):
        assert distance(one, other, model.initial_state()) < ADAPTIVE


@pytest.mark.parametrize("backbone", ["timm:test_resnet", "timm:test_convnext"])
def test_convolutional_networks(make_model, both_ways, distance, backbone):
    model = make_model(model__backbone=backbone, pet__rank=2, **SGD)
    for one, other in zip(*both_ways(model), strict=True):
        assert distance(one, other, model.initial_state()) < EXACT


OPTIONS: dict[str, dict[str, Any]] = {
    "as many steps at each site": {"train__steps": 5},
    "random views": {"train__augment": 0.5},
    "fixed views, kept": {"train__augment": 0.5, "train__views": 2, "pet__scope": "last-2"},
    "weighted classes": {"train__class_weights": "balanced"},
    "no clipping": {"train__grad_clip": 0.0},
    "weight decay": {"train__weight_decay": 0.3, "train__momentum": 0.0},
    "clinical variables": {"data__clinical": "age"},
    "rolora": {"lora__aggregation": "rolora"},
    "ffa": {"lora__aggregation": "ffa"},
    "a probe": {"rounds__probe": 2},
    "the norm before the head": {"pet__final_norm": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_plan_can_ask_for(make_model, both_ways, distance, name):
    model = make_model(pet__rank=2, **{**SGD, **OPTIONS[name]})
    alone, together = both_ways(model, number=2)
    for one, other in zip(alone, together, strict=True):
        assert one.steps == other.steps
        assert distance(one, other, model.initial_state()) < EXACT
        untouched = [
            n for n, t in one.state.tensors.items() if torch.equal(t, model.initial_state().tensors[n])
        ]
        assert all(torch.equal(other.state.tensors[n], one.state.tensors[n]) for n in untouched)


def test_the_pull_to_the_start_and_a_share_of_the_learning_rate(make_model, both_ways, distance):
    model = make_model(pet__rank=2, train__epochs=3, **SGD)
    start = model.initial_state()
    free, _ = both_ways(model)
    held, together = both_ways(model, proximal_mu=5.0, learning_rate=0.5)
    for one, other, without in zip(held, together, free, strict=True):
        assert distance(one, other, start) < EXACT
        assert distance(one, without, start) > 0.1


def test_weights_of_all_sites_together(make_model, both_ways, distance):
    model = make_model(pet__rank=2, train__class_weights="federated", **SGD)
    alone, together = both_ways(model, class_weights=np.array([1.0, 2.0, 0.5, 3.0]))
    for one, other in zip(alone, together, strict=True):
        assert distance(one, other, model.initial_state()) < EXACT
    with pytest.raises(SchemaError, match="all sites' counts"):
        both_ways(model)


def test_a_residual_beside_a_frozen_layer(make_model, both_ways, distance):
    model = make_model(pet__rank=2, lora__aggregation="fedex", **SGD)
    generator = torch.Generator().manual_seed(0)
    beside = {
        "blocks.1.mlp.fc1": Factors(
            0.3 * torch.randn(192, 3, generator=generator), 0.3 * torch.randn(3, 64, generator=generator)
        )
    }
    start = AdapterState(model.initial_state().tensors, beside)
    alone, together = both_ways(model, start=start)
    without, _ = both_ways(model)
    for one, other, plain in zip(alone, together, without, strict=True):
        assert distance(one, other, start) < EXACT
        assert distance(one, plain, start) > 1e-3
        assert other.state.residual is beside


def test_mixed_precision_differs_less_from_itself_than_from_full(make_model, both_ways, distance):
    half = make_model(pet__rank=2, train__precision="bf16", **SGD)
    full = make_model(pet__rank=2, train__precision="fp32", **SGD)
    start = half.initial_state()
    alone, together = both_ways(half)
    for one, other, exact in zip(alone, together, both_ways(full)[0], strict=True):
        assert distance(one, other, start) < 0.02
        assert distance(exact, other, start) > 1e-4  # it was half precision


def test_a_row_of_the_head_that_a_site_does_not_annotate_stays(make_model, both_ways):
    model = make_model(pet__method="head", train__weight_decay=0.5, train__batch_size=6)
    before = model.initial_state().tensors["head.weight"]
    _, (north, _, south) = both_ways(model)
    assert torch.equal(south.state.tensors["head.weight"][0], before[0])
    assert not torch.equal(south.state.tensors["head.weight"][1], before[1])
    assert not torch.equal(north.state.tensors["head.weight"][0], before[0])


def test_again_gives_the_same_bits(make_model, both_ways):
    model = make_model(pet__rank=2, train__batch_size=6)
    (_, first), (_, again) = both_ways(model), both_ways(model)
    assert [r.state.digest() for r in first] == [r.state.digest() for r in again]
    _, other = both_ways(model, number=2)
    assert [r.state.digest() for r in first] != [r.state.digest() for r in other]


def test_sites_that_cannot_share_a_pass_go_through_their_own(make_model, sites, distance):
    """One reads images, the other what the prefix made of them; and a third stands in another round."""
    from client.prefix_cache import StudyInputs
    from client.train import train_round

    model = make_model(pet__rank=2, pet__scope="last-2", **SGD)
    start, train = model.initial_state(), model.config.train
    plain = train.model_copy(update={"prefix_cache": False})
    tasks = [
        Task(model, sites["north"], StudyInputs(model, sites["north"], train), start, 1, "north"),
        Task(model, sites["east"], StudyInputs(model, sites["east"], plain), start, 1, "east"),
        Task(model, sites["south"], StudyInputs(model, sites["south"], train), start, 2, "south"),
    ]
    alone = [train_round(t.model, t.data, t.inputs, t.start, t.round_number, t.site) for t in tasks]
    for one, other in zip(alone, train_stacked([Student(task) for task in tasks]), strict=True):
        assert distance(one, other, start) < EXACT


def test_sites_may_start_from_adapters_of_their_own(make_model, sites, distance):
    """Also in a tensor that the round does not train: here A, while B is trained."""
    from client.prefix_cache import StudyInputs
    from client.train import train_round

    model = make_model(pet__rank=2, lora__aggregation="rolora", **SGD)
    tasks = []
    for seed, (name, data) in enumerate(sites.items()):
        generator = torch.Generator().manual_seed(seed)
        first = model.initial_state().tensors.items()
        own = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in first}
        inputs = StudyInputs(model, data, model.config.train)
        tasks.append(Task(model, data, inputs, AdapterState(own, {}), 1, name))
    together = train_stacked([Student(task) for task in tasks])
    for task, other in zip(tasks, together, strict=True):
        one = train_round(model, task.data, task.inputs, task.start, 1, task.site)
        assert distance(one, other, task.start) < EXACT


def test_a_site_without_labels_says_so_as_it_does_alone(make_model, sites):
    from dataclasses import replace

    from client.prefix_cache import StudyInputs

    model = make_model(pet__rank=2)
    blank = replace(sites["east"], labels=np.full_like(sites["east"].labels, np.nan))
    inputs = StudyInputs(model, blank, model.config.train)
    with pytest.raises(DataError, match="site east: no training study carries a label"):
        Student(Task(model, blank, inputs, model.initial_state(), 1, "east"))
