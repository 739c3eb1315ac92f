"""The model as a whole: adapter in and out, residuals laid beside frozen layers, wrong settings by name."""

from __future__ import annotations

import pytest
import torch

from common.adapter import AdapterState, Factors
from common.errors import ModelError, SchemaError


def draw(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full"])
def test_what_is_loaded_comes_out_again(make_model, moved, method):
    model = make_model(pet__method=method)
    state = moved(model)
    model.load(state)
    assert model.state().digest() == state.digest()
    assert model.initial_state().digest() != state.digest()


def test_a_copied_out_adapter_does_not_follow_the_model(make_model, moved):
    model = make_model()
    start = model.state()
    digest = start.digest()
    model.load(moved(model))
    assert start.digest() == model.initial_state().digest() == digest


def test_the_head_is_named_in_the_schema(make_model):
    for backbone, head in (
        ("test_vit", "head"),
        ("test_resnet", "fc"),
        ("test_convnext", "head.fc"),
        ("densenet121", "classifier"),
    ):
        schema = make_model(model__backbone=f"timm:{backbone}", pet__method="norm").schema
        assert set(schema.head) == {f"{head}.weight", f"{head}.bias"}
        shapes = dict(schema.shapes)
        assert all(shapes[name][0] == 4 for name in schema.head)


def test_another_model_s_adapter_is_refused(make_model):
    model = make_model()
    with pytest.raises(SchemaError):
        model.load(make_model(pet__rank=4).initial_state())
    with pytest.raises(SchemaError):
        model.load(make_model(pet__method="norm").initial_state())


def dense(backbone, layers):
    """A residual of rank 3 on each layer, and the same as plain matrices."""
    factors = {
        name: Factors(draw(out, 3, seed=i), draw(3, inside, seed=100 + i))
        for i, (name, (out, inside)) in enumerate(layers.items())
    }
    return factors, {name: f.left @ f.right for name, f in factors.items()}


RESIDUALS = [
    (
        "test_vit",
        "all",
        "",
        {"blocks.0.attn.qkv": (192, 64), "blocks.5.mlp.fc1": (192, 64), "blocks.3.mlp.fc2": (64, 192)},
    ),
    ("test_vit", "last-2", "q, v", {"blocks.4.attn.qkv.q": (64, 64), "blocks.5.attn.qkv.v": (64, 64)}),
    (
        "resnet18",
        "all",
        "",
        {
            "layer1.0.conv1": (64, 64 * 9),
            "layer2.0.conv1": (128, 64 * 9),
            "layer3.0.downsample.0": (256, 128),
        },
    ),
    (
        "tf_efficientnetv2_b0",
        "all",
        "",
        {"blocks.1.0.conv_exp": (64, 16 * 9), "blocks.3.0.conv_pw": (192, 48)},
    ),
]


@pytest.mark.parametrize(
    ("backbone", "scope", "targets", "layers"), RESIDUALS, ids=[f"{r[0]}-{r[2]}" for r in RESIDUALS]
)
def test_a_laid_residual_is_the_dense_one_in_the_weights(
    make_model, moved, logits, backbone, scope, targets, layers
):
    """fedex: W0 x + s B A x + R x, whether R is beside the layer or in it; convolutions keep their stride."""
    settings = {"model__backbone": f"timm:{backbone}", "pet__scope": scope, "pet__targets": targets}
    settings["data__image_size"] = 64
    model, other = make_model(**settings), make_model(**settings)
    start = moved(model, step=0.05)
    factors, matrices = dense(backbone, layers)
    bare = logits(model, start)
    laid = logits(model, AdapterState(start.tensors, factors))
    with torch.no_grad():
        for name, matrix in matrices.items():
            weight = other.net.get_submodule(name).base_layer.weight
            weight += matrix.reshape(weight.shape)
    scale = laid.abs().max()
    torch.testing.assert_close(laid / scale, logits(other, start) / scale, atol=1e-5, rtol=1e-4)
    assert (laid - bare).abs().max() > 1e-3 * scale
    assert model.current_base_digest() == model.base_digest
    torch.testing.assert_close(logits(model, start), bare, atol=0, rtol=0)


def test_a_second_residual_replaces_the_first(make_model, logits):
    model = make_model()
    start = model.initial_state()
    first, _ = dense("test_vit", {"blocks.0.attn.proj": (64, 64)})
    second, _ = dense("test_vit", {"blocks.1.mlp.fc1": (192, 64)})
    wanted = logits(make_model(), AdapterState(start.tensors, second))
    logits(model, AdapterState(start.tensors, first))
    torch.testing.assert_close(logits(model, AdapterState(start.tensors, second)), wanted, atol=0, rtol=0)


@pytest.mark.parametrize(
    "factors",
    [
        {"blocks.9.mlp.fc1": Factors(draw(192, 1), draw(1, 64))},
        {"blocks.0.mlp.fc1": Factors(draw(64, 1), draw(1, 192))},
        {"blocks.0.mlp.fc1": Factors(draw(192, 2), draw(1, 64))},
    ],
    ids=["no such layer", "transposed", "ranks differ"],
)
def test_a_residual_that_fits_nowhere_is_refused(make_model, factors):
    model = make_model()
    with pytest.raises(SchemaError):
        model.load(AdapterState(model.initial_state().tensors, factors))


@pytest.mark.parametrize(
    ("backbone", "fix"),
    [
        ("timm:vit_tiny_patch16_244", "did you mean 'vit_tiny_patch16_224'?"),
        ("efficientnet_b0", "did you mean 'timm:efficientnet_b0'?"),
        ("hf:bert", ""),
    ],
)
def test_an_unknown_backbone_is_named(make_model, backbone, fix):
    with pytest.raises(ModelError) as caught:
        make_model(model__backbone=backbone)
    assert repr(backbone.removeprefix("timm:")) in caught.value.problem + caught.value.found
    assert caught.value.fix == fix or fix == ""


def test_a_size_the_backbone_cannot_take_is_said(make_model):
    with pytest.raises(ModelError, match="image_size = 100") as caught:
        make_model(model__backbone="timm:xcit_nano_12_p16_224", data__image_size=100)
    assert "patch" in caught.value.found and "multiple of the patch" in caught.value.fix


@pytest.mark.parametrize(("pool", "norm"), [("avg", "fc_norm"), ("token", "norm"), ("auto", "norm")])
def test_pool_is_passed_on(make_model, pool, norm):
    model = make_model(model__pool=pool, pet__method="head", pet__final_norm=True)
    assert f"{norm}.weight" in model.schema.names


def test_the_embedded_backbone_needs_nothing_from_outside(make_model, logits):
    model = make_model(model__backbone="embedded", data__image_size=96)
    assert model.channels == 1
    assert (model.arch.family, len(model.arch.blocks)) == ("vit", 8)
    said = logits(model)
    assert said.shape == (2, 4)
    assert said.isfinite().all()
    other = make_model(model__backbone="embedded", data__image_size=96, seed=3)
    assert model.base_digest == other.base_digest
