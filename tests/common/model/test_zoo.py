"""Every encoder of the zoo, made small: targets, cuts, digest, grey values and what a release opens with."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import timm
import torch
from peft import PeftModel

import common.model.base as base
from common.adapter import AdapterState
from common.config import RunConfig
from common.errors import ModelError
from common.model.architecture import architecture_of
from common.model.base import create_network, timm_arguments
from common.model.build import build_model
from common.model.zoo import BACKBONES
from common.pet.lora import VIT_TARGETS
from common.pet.targets import default_targets
from server.release import write_release

FAMILIES = {
    "resnet18": "resnet",
    "resnet50": "resnet",
    "densenet121": "densenet",
    "vit-b16-mae": "vit",
    "vit-b16-mrm": "vit",
    "dinov2-s14": "vit",
    "dinov2-b14": "vit",
    "dinov2-l14": "vit",
    "clip-l14": "vit",
    "pubmedclip": "vit",
    "biomedclip": "vit",
    "medclip-resnet50": "resnet",
    "medclip-vit": "swin",
    "rad-dino": "vit",
}
SMALL = {
    "vit": {"embed_dim": 48, "depth": 3, "num_heads": 3},
    "swin": {"embed_dim": 24, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4},
    "resnet": {"layers": (1, 1, 1, 1)},
    "densenet": {"growth_rate": 8, "block_config": (2, 2)},
}
"""What makes a family's network small; everything else is as in the zoo."""


@pytest.fixture
def small(monkeypatch):
    """Shrink the networks of the zoo; names, norms, pooling and activations stay."""

    def arguments(config):
        name, kwargs = timm_arguments(config)
        return name, kwargs | SMALL[FAMILIES[config.model.backbone]]

    monkeypatch.setattr(base, "timm_arguments", arguments)
    return arguments


def config_of(name, **over):
    size = 56 if BACKBONES[name].architecture.find("patch14") > 0 else 64
    flat = {"model.backbone": name, "data.image-size": size, "pet.rank": 2}
    return RunConfig.from_flat(flat | {k.replace("__", "."): v for k, v in over.items()})


def pictures(model, count=2):
    size = model.config.data.image_size
    return torch.randn(count, model.channels, size, size, generator=torch.Generator().manual_seed(0))


def test_the_zoo_is_what_the_papers_compare():
    assert set(BACKBONES) == set(FAMILIES)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_whole_network_is_built_as_it_says(name):
    """On the meta device, at full size: timm knows the name and the family, and pools as the zoo says."""
    known = BACKBONES[name]
    with torch.device("meta"):
        net = create_network(RunConfig.from_flat({"model.backbone": name, "data.image-size": 224}))
    arch = architecture_of(net)
    assert arch.family == FAMILIES[name]
    pooled = getattr(net, "global_pool", None)
    assert getattr(pooled, "pool_type", pooled) == known.pool or arch.family == "densenet"
    assert default_targets(arch, VIT_TARGETS) == known.targets
    assert len(known.mean) == len(known.std) and len(known.mean) in (1, 3)
    assert net.pretrained_cfg["input_size"][1] == known.size


@pytest.mark.parametrize("name", BACKBONES)
def test_targets_resolve_and_a_prefix_with_its_suffix_is_the_model(small, name):
    model = build_model(config_of(name))
    adapted = {n.partition(".lora_A.")[0] for n in model.schema.names if ".lora_A." in n}
    leaves = {n.rpartition(".")[2] for n in adapted}
    if BACKBONES[name].targets != ("conv",):
        assert leaves == set(BACKBONES[name].targets)
        assert len(adapted) == 4 * len(model.arch.blocks)
    assert adapted and all(n.startswith(tuple(f"{b}." for b in model.arch.blocks)) for n in adapted)
    model.load(moved(model))
    model.train_mode(False)
    x = pictures(model)
    with torch.no_grad():
        whole = model.forward(x)
        for cut in range(len(model.arch.blocks) + 1):
            torch.testing.assert_close(model.suffix(model.prefix(x, cut), cut), whole, atol=1e-5, rtol=1e-5)


def moved(model):
    generator = torch.Generator().manual_seed(0)
    start = model.initial_state().tensors
    return AdapterState(
        {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in start.items()}, {}
    )


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", ["lora", "bitfit", "norm", "full"])
def test_the_base_digest_is_the_same_every_time_and_whatever_is_trained(small, name, method):
    plain = build_model(config_of(name, pet__method="head"))
    model = build_model(config_of(name, pet__method=method))
    assert model.base_digest == plain.base_digest
    model.load(moved(model))
    assert model.current_base_digest() == plain.base_digest


@pytest.mark.parametrize("name", BACKBONES)
def test_a_release_opens_in_peft_over_the_plain_network(small, tmp_path, name):
    config = config_of(name)
    model = build_model(config)
    state = moved(model)
    write_release(model, state, tmp_path, "f" * 64)
    model.load(state)
    model.train_mode(False)
    architecture, kwargs = small(config)
    if FAMILIES[name] in ("vit", "swin"):
        kwargs["img_size"] = config.data.image_size
    net = timm.create_model(architecture, **kwargs)
    bare = build_model(config_of(name, pet__method="head"))
    head = net.pretrained_cfg["classifier"]
    weights = bare.net.state_dict()
    net.load_state_dict({n: t for n, t in weights.items() if not n.startswith(f"{head}.")}, strict=False)
    theirs = PeftModel.from_pretrained(net, str(tmp_path)).eval()
    x = pictures(model)
    with torch.no_grad():
        ours = model.forward(x)
        scale = ours.abs().max()
        torch.testing.assert_close(theirs(x) / scale, ours / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in BACKBONES if FAMILIES[name] in ("vit", "swin")])
@pytest.mark.parametrize("method", ["adapter", "vera", "ia3", "bitfit", "norm"])
def test_every_method_has_its_place_in_a_transformer(small, name, method):
    model = build_model(config_of(name, pet__method=method, pet__scope="last-1", pet__bottleneck=5))
    before = build_model(config_of(name, pet__method="head"))
    x = pictures(model)
    model.train_mode(False)
    with torch.no_grad():
        start = model.arch.pool(model.net, features(model, x))
        torch.testing.assert_close(start, before.arch.pool(before.net, features(before, x)))
        model.load(moved(model))
        assert not torch.equal(model.arch.pool(model.net, features(model, x)), start)
    if method == "adapter":
        width = model.net.get_submodule(model.arch.blocks[-1]).mlp.fc2.out_features
        assert model.net.get_submodule(f"{model.arch.blocks[-1]}.mlp.bottleneck").down.in_features == width


def features(model, x):
    return model.prefix(x, len(model.arch.blocks))


# ---------------------------------------------------------------------- grey values, depth, sizes, names


def grey(**over):
    flat = {"model.backbone": "timm:test_vit", "data.image-size": 32, "pet.method": "head"} | over
    model = build_model(RunConfig.from_flat(flat))
    return model.mean, model.std


def test_a_name_brings_its_grey_values_for_every_channel(small):
    model = build_model(config_of("rad-dino", pet__method="head"))
    assert (model.mean, model.std) == ((0.5307,) * 3, (0.2583,) * 3)
    model = build_model(config_of("biomedclip", pet__method="head"))
    assert model.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert model.channels == 3


def test_a_plan_s_grey_values_go_before_the_backbone_s():
    assert grey(**{"model.mean": 0.4978}) == ((0.4978,) * 3, (0.5, 0.5, 0.5))
    assert grey(**{"model.std": 0.2449}) == ((0.5, 0.5, 0.5), (0.2449,) * 3)
    embedded = {"model.backbone": "embedded", "data.image-size": 96, "model.mean": 0.4, "model.std": 0.2}
    assert grey(**embedded) == ((0.4,), (0.2,))
    assert grey(**{"model.backbone": "embedded", "data.image-size": 96}) == ((0.5,), (0.25,))


@contextmanager
def seeded(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def test_drop_path_leaves_branches_out_in_training_alone(make_model, images):
    model, never = make_model(model__drop_path=0.5), make_model()
    assert model.base_digest == never.base_digest
    x = images(model, 8)
    model.train_mode(True)
    with seeded(0):
        first = model.forward(x)
    with seeded(1):
        assert not torch.equal(first, model.forward(x))
    never.train_mode(True)
    with seeded(0):
        first = never.forward(x)
    with seeded(1):
        assert torch.equal(first, never.forward(x))
    model.train_mode(False)
    never.train_mode(False)
    with torch.no_grad():
        assert torch.equal(model.forward(x), never.forward(x))


@pytest.mark.parametrize(("backbone", "most"), [("resnet18", 0.2), ("medclip-vit", 0.3), ("biomedclip", 0.1)])
def test_drop_path_grows_to_its_share_over_the_blocks(backbone, most):
    flat = {"model.backbone": backbone, "data.image-size": 224, "model.drop-path": most}
    with torch.device("meta"):
        net = create_network(RunConfig.from_flat(flat))
    shares = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
    assert shares == sorted(shares)
    assert max(shares) == pytest.approx(most)


def test_without_drop_path_nothing_is_left_out_whatever_timm_s_own_default():
    """timm gives a Swin 0.1 unasked."""
    with torch.device("meta"):
        net = create_network(RunConfig.from_flat({"model.backbone": "medclip-vit", "data.image-size": 224}))
    assert not [m for m in net.modules() if type(m).__name__ == "DropPath"]


def test_drop_path_where_there_are_no_branches_is_refused(make_model):
    with pytest.raises(ModelError, match=r"model\.drop_path") as caught:
        make_model(model__backbone="timm:densenet121", model__drop_path=0.1, data__image_size=64)
    assert "drop_path = 0" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rad_dino", "rad-dino"),
        ("dinov2-s", "dinov2-s14"),
        ("vit_small_patch14_dinov2", "timm:vit_small"),
        ("??", "clip-l14"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(make_model, name, hint):
    with pytest.raises(ModelError, match="a name of the zoo") as caught:
        make_model(model__backbone=name)
    assert hint in caught.value.fix


def test_a_size_the_patches_do_not_divide_is_refused():
    with pytest.raises(ModelError, match="cannot be built") as caught:
        create_network(RunConfig.from_flat({"model.backbone": "rad-dino", "data.image-size": 96}))
    assert "multiple of the patch size" in caught.value.fix
