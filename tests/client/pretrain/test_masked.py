"""Masked images: parity with transformers' ViTMAE, and what the encoder must not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from client.pretrain.masked import (
    MaskedImage,
    draw_kept,
    encode_visible,
    patches,
    reconstruction_loss,
)

BACKBONES = ("timm:test_vit", "timm:test_vit2", "timm:resnet10t", "timm:test_convnext")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' masked autoencoder of one grey channel, 32 px in patches of 8."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, num_channels=1, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=32, norm_pix_loss=True,
    )  # fmt: skip
    return ViTMAEForPreTraining(config)


def test_patches_are_cut_as_transformers_cuts_them(theirs: Any) -> None:
    images = torch.rand(3, 32, 32, generator=seeded())
    torch.testing.assert_close(patches(images, 8), theirs.patchify(images[:, None]), rtol=0, atol=0)


def test_the_loss_is_that_of_transformers(theirs: Any) -> None:
    """Theirs adds 1e-6 to a patch's variance, ours 1e-4: the images vary much more than either."""
    images = torch.rand(3, 32, 32, generator=seeded()) * 100
    with torch.no_grad():
        told = theirs(pixel_values=images[:, None])
    kept = torch.stack([row.nonzero().flatten() for row in told.mask == 0])
    torch.testing.assert_close(reconstruction_loss(told.logits, images, kept), told.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("keep", "seen"), [(0.25, 4), (0.01, 1), (0.999, 15)])
def test_some_patches_are_seen_and_some_are_not(keep: float, seen: int) -> None:
    kept = draw_kept(50, 16, keep, seeded())
    assert kept.shape == (50, seen)
    assert all(len(set(row.tolist())) == seen for row in kept)
    assert {*kept.flatten().tolist()} == {*range(16)}  # each patch is seen in some image


@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:test_vit2", "embedded"])
def test_a_vit_on_all_patches_is_the_whole_vit(make_model, backbone: str) -> None:
    """Class token and registers included, in whatever order the patches are given."""
    model = make_model(model__backbone=backbone, data__image_size=32)
    images = torch.randn(2, model.channels, 32, 32, generator=seeded())
    places = model.net.pos_embed.shape[1] - (0 if model.net.no_embed_class else model.net.num_prefix_tokens)
    order = torch.rand(2, places, generator=seeded(1)).argsort(dim=1)
    with torch.no_grad():
        whole = model.net.forward_features(images)[:, model.net.num_prefix_tokens :]
        ours = model.net.norm(encode_visible(model.net, model.arch, images, order))
    expected = whole.gather(1, order[..., None].expand(-1, -1, whole.shape[-1]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_hidden_does_not_reach_the_encoder(make_model, backbone: str) -> None:
    """The loss has no gradient at hidden pixels of the input, and has one at the visible ones."""
    size = 64
    model = make_model(model__backbone=backbone, data__image_size=size, pet__method="full")
    task = MaskedImage(model, 0.75)
    grey = torch.rand(2, 1, size, size, generator=seeded())
    images = torch.randn(2, 3, size, size, generator=seeded(1)).requires_grad_(True)
    model.train_mode(False)
    task(images, grey, seeded(3)).backward()
    grid, side = task._grid, task._side
    kept = draw_kept(2, grid**2, 0.25, seeded(3))
    seen = torch.zeros(2, grid**2).scatter(1, kept, 1.0).bool()
    assert images.grad is not None
    felt = patches(images.grad.abs().sum(dim=1), side).sum(dim=-1)
    assert (felt[~seen] == 0).all()
    assert (felt[seen] > 0).all()


def test_the_decoder_is_the_same_at_every_site(make_model) -> None:
    model = make_model()
    torch.manual_seed(0)
    first = MaskedImage(model, 0.75).state_dict()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    second = MaskedImage(model, 0.75).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())
    other = MaskedImage(make_model(seed=1), 0.75).state_dict()
    assert not torch.equal(first["decoder.position"], other["decoder.position"])
    assert not any("net" in name or "blocks.2" in name for name in first)  # the encoder is not in it
