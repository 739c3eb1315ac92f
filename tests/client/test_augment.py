"""Augmentation that is the identity at 0; normalisation."""

from __future__ import annotations

import pytest
import torch

from client.augment import DRAWS, augment, augment_as, normalise, to_float, view_draws


def batch(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 20, 16, generator=torch.Generator().manual_seed(0))


def test_strength_0_is_the_identity() -> None:
    images = batch()
    assert torch.equal(augment(images, 0.0, torch.Generator().manual_seed(1)), images)


def test_a_tiny_strength_changes_little() -> None:
    images = batch()
    smooth = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    moved = augment(smooth, 1e-4, torch.Generator().manual_seed(1))
    assert (moved - smooth)[..., 2:-2, 2:-2].abs().max() < 1e-2


def test_the_generator_decides() -> None:
    images = batch()
    first, again, other = (augment(images, 1.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1


def test_each_image_moves_by_itself() -> None:
    images = batch(1).expand(4, -1, -1, -1).contiguous()
    moved = augment(images, 1.0, torch.Generator().manual_seed(0))
    assert all(not torch.equal(moved[0], moved[i]) for i in range(1, 4))


def test_left_stays_left_unless_asked() -> None:
    images = torch.zeros(32, 1, 16, 16)
    images[..., :6] = 1  # bright on the left of the picture
    upright = augment(images, 0.5, torch.Generator().manual_seed(0))
    assert (upright[..., :8].mean(dim=(1, 2, 3)) > upright[..., 8:].mean(dim=(1, 2, 3))).all()
    mirrored = augment(images, 0.0, torch.Generator().manual_seed(0), flip=True)
    right = mirrored[..., 8:].mean(dim=(1, 2, 3)) > mirrored[..., :8].mean(dim=(1, 2, 3))
    assert 0 < right.sum() < 32


def test_a_positive_shift_moves_every_image_the_same_way_as_its_draw() -> None:
    image = torch.zeros(64, 1, 32, 32)
    image[:, :, 14:18, 14:18] = 1
    moved = augment(image, 1.0, torch.Generator().manual_seed(0))
    columns = torch.arange(32.0)
    weight = (moved - moved.amin(dim=(2, 3), keepdim=True)).sum(dim=(1, 2))
    centre = (weight * columns).sum(1) / weight.sum(1)
    assert centre.min() > 10
    assert centre.max() < 22
    assert centre.std() > 0.8


def test_draws_are_all_that_decides() -> None:
    images = batch()
    generator = torch.Generator().manual_seed(1)
    draws = torch.rand((DRAWS, 3), generator=generator)
    assert torch.equal(augment_as(images, 0.7, draws), augment(images, 0.7, torch.Generator().manual_seed(1)))
    smooth = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    middle = augment_as(smooth, 1.0, torch.full((DRAWS, 3), 0.5))
    torch.testing.assert_close(middle, smooth, atol=1e-5, rtol=1e-5)


def test_a_view_is_drawn_for_an_image_and_a_number_alone() -> None:
    first = view_draws(b"one", 1)
    assert torch.equal(first, view_draws(b"one", 1))
    others = [view_draws(b"one", 2), view_draws(b"two", 1)]
    assert not any(torch.equal(first, other) for other in others)
    many = torch.stack([view_draws(bytes([i]), 1) for i in range(200)])
    assert many.min() >= 0 and many.max() < 1
    assert ((many.mean(0) - 0.5).abs() < 0.1).all() and ((many.var(0) - 1 / 12).abs() < 0.03).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_from_bytes_and_from_floats(channels: int) -> None:
    pixels = torch.randint(0, 256, (2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.5], [0.25])
    got = normalise(pixels, mean, std, channels)
    assert got.shape == (2, channels, 5, 4)
    for c in range(channels):
        torch.testing.assert_close(got[:, c], (pixels / 255 - mean[c]) / std[c])
    torch.testing.assert_close(normalise(to_float(pixels), mean, std, channels), got)
