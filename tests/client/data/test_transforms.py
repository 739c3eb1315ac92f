"""One size, 8 bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.data.transforms import standardise


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.sampled_from(["crop", "pad"]))
@settings(max_examples=60)
def test_any_shape_becomes_a_square_and_white_stays_white(height: int, width: int, size: int, fit) -> None:
    square = standardise(np.ones((height, width), np.float32), size, fit)
    assert square.shape == (size, size)
    assert square.dtype == np.uint8
    assert square.max() == 255
    if fit == "crop":
        assert square.min() == 255


def test_an_image_of_the_right_size_is_kept() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    np.testing.assert_array_equal(standardise((levels / 255).astype(np.float32), 16), levels)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 24), st.sampled_from(["crop", "pad"]))
@settings(max_examples=60)
def test_a_picture_of_8_bits_becomes_what_its_values_do(height: int, width: int, size: int, fit) -> None:
    stored = np.random.default_rng(height * width).integers(0, 256, (height, width)).astype(np.uint8)
    values = stored / np.float32(255)
    expected = standardise(values, size, fit).astype(int)
    np.testing.assert_allclose(standardise(Image.fromarray(stored), size, fit).astype(int), expected, atol=1)
    np.testing.assert_array_equal(standardise(Image.fromarray(values), size, fit), expected)


def test_crop_keeps_the_centre_and_pad_keeps_everything() -> None:
    image = np.zeros((8, 16), np.float32)
    image[:, :2] = 1
    assert standardise(image, 8, "crop").max() == 0
    padded = standardise(image, 8, "pad")
    assert padded[2:6, 0].min() > 200
    assert padded[:2].max() == padded[6:].max() == 0


def test_fine_detail_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))
    assert abs(standardise(stripes, 8).astype(int) - 127).max() <= 8


def test_a_long_strip_costs_no_memory() -> None:
    assert standardise(np.ones((1, 100_000), np.float32), 224).shape == (224, 224)
