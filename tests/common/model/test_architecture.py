"""Every family is the composition of its stem, blocks and tail, and a prefix stops before what is trained."""

from __future__ import annotations

import pytest
import timm
import torch

from common.model.architecture import architecture_of

FAMILIES = {
    "resnet18": ("resnet", 8),
    "test_resnet": ("resnet", 4),
    "densenet121": ("densenet", 7),
    "efficientnet_b0": ("efficientnet", 16),
    "tf_efficientnet_lite0": ("efficientnet", 16),
    "test_efficientnet": ("efficientnet", 5),
    "convnext_atto": ("convnext", 12),
    "test_convnext": ("convnext", 9),
    "test_vit": ("vit", 6),
    "test_vit2": ("vit", 8),
}
"""timm name -> family, blocks; test_vit2 is built like DINOv2: registers, layer scale, mean pooling."""


@pytest.fixture(scope="module", params=FAMILIES)
def network(request, make_model):
    return request.param, make_model(model__backbone=f"timm:{request.param}", pet__method="head")


def test_family_and_number_of_blocks(network):
    name, model = network
    assert (model.arch.family, len(model.arch.blocks)) == FAMILIES[name]


def test_suffix_after_prefix_is_the_model_at_every_cut(network, images, logits):
    _, model = network
    whole, x = logits(model), images(model)
    with torch.no_grad():
        for cut in range(len(model.arch.blocks) + 1):
            assert torch.equal(model.suffix(model.prefix(x, cut), cut), whole), cut


@pytest.mark.parametrize("backbone", ["embedded", "timm:vit_small_patch14_dinov2"])
def test_cuts_of_the_networks_people_use(make_model, images, logits, moved, backbone):
    size = 96 if backbone == "embedded" else 28
    model = make_model(model__backbone=backbone, data__image_size=size, pet__scope="last-2")
    whole, x = logits(model, moved(model)), images(model)
    for cut in (0, 3, model.frozen_blocks, len(model.arch.blocks), len(model.arch.blocks) + 1):
        torch.testing.assert_close(model.suffix(model.prefix(x, cut), cut), whole, atol=1e-6, rtol=1e-6)


METHODS = ("head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full")


@pytest.mark.parametrize("scope", ["all", "last-1", "last-3"])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_blocks_end_where_gradients_begin(make_model, images, moved, method, scope):
    model = make_model(pet__method=method, pet__scope=scope, pet__final_norm=True)
    model.load(moved(model))
    assert first_live_block(model, images(model)) == model.frozen_blocks


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "densenet121", "test_efficientnet", "test_convnext", "test_vit2"]
)
@pytest.mark.parametrize("scope", ["all", "last-2"])
@pytest.mark.parametrize("method", ["head", "lora", "bitfit", "norm", "full"])
def test_frozen_blocks_of_other_families(make_model, images, backbone, method, scope):
    model = make_model(
        model__backbone=f"timm:{backbone}", pet__method=method, pet__scope=scope, pet__final_norm=True
    )
    assert first_live_block(model, images(model)) == model.frozen_blocks


def first_live_block(model, x):
    """Count leading blocks whose output no trained parameter reaches."""
    blocks = len(model.arch.blocks)
    live = [cut for cut in range(blocks + 1) if model.prefix(x, cut).requires_grad]
    return max(live[0] - 1, 0) if live else blocks


@pytest.mark.parametrize(
    ("method", "scope", "frozen"), [("lora", "last-2", 4), ("lora", "all", 0), ("head", "all", 6)]
)
def test_frozen_blocks_by_number(make_model, method, scope, frozen):
    assert make_model(pet__method=method, pet__scope=scope).frozen_blocks == frozen


@pytest.mark.parametrize("name", ["test_nfnet", "test_mambaout", "test_maxvit"])
def test_an_unknown_family_is_one_piece(name):
    """Its features are the input of the head, and the head makes its logits of them."""
    net = timm.create_model(name, num_classes=2).eval()
    arch = architecture_of(net)
    x = torch.randn(2, *net.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    assert (arch.family, arch.blocks) == ("other", ())
    with torch.no_grad():
        stem = arch.run(net, arch.stem(net, x), 0, 0)
        features = arch.pool(net, stem)
        assert features.shape == (2, net.get_classifier().in_features)
        torch.testing.assert_close(net.get_classifier()(features), net(x), atol=0, rtol=0)


@pytest.mark.parametrize("method", ["head", "lora", "norm", "full"])
def test_batch_norm_keeps_its_statistics_in_training(make_model, images, method):
    model = make_model(model__backbone="timm:test_resnet", pet__method=method)
    norms = {n: m for n, m in model.net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    model.train_mode(True)
    model.forward(3 + images(model))
    assert norms
    assert not any(m.training for m in norms.values())
    assert all(torch.equal(m.running_mean, before[n]) for n, m in norms.items())
    assert model.net.training


def test_dropout_is_on_in_training_only(make_model, images, moved):
    model = make_model(lora__dropout=0.5)
    model.load(moved(model))
    x = images(model)
    model.train_mode(True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model.forward(x), model.forward(x))
    model.train_mode(False)
    assert torch.equal(model.forward(x), model.forward(x))


@pytest.mark.parametrize("backbone", ["test_resnet", "densenet121", "test_efficientnet"])
def test_where_channels_lie_changes_nothing_that_leaves_the_model(make_model, images, backbone):
    """It is faster; the base's digest and what is saved are those of timm's own order."""
    from safetensors.torch import save

    model = make_model(model__backbone=f"timm:{backbone}", pet__method="full")
    kernels = [p for p in model.net.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    for state in (model.state(), model.initial_state()):
        assert all(tensor.is_contiguous() for tensor in state.tensors.values())
        assert save(state.tensors)
    said, digest = model.forward(images(model)), model.current_base_digest()
    model.net.to(memory_format=torch.contiguous_format)
    assert model.current_base_digest() == digest
    torch.testing.assert_close(model.forward(images(model)), said, atol=1e-4, rtol=1e-4)
