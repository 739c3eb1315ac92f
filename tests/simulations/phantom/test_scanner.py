"""Scanners: distinct, deterministic, in the range they store."""

import numpy as np
import pytest

from simulations.phantom.cases import sample_cases
from simulations.phantom.render import render
from simulations.phantom.scanner import SCANNERS, apply_scanner


@pytest.fixture(scope="module")
def cases():
    return sample_cases(6, seed=12)


@pytest.fixture(scope="module")
def images(cases):
    return render(cases, 64)


@pytest.mark.parametrize("name", SCANNERS)
def test_stored_values_fit_the_bits(cases, images, name):
    scanner = SCANNERS[name]
    stored = apply_scanner(images, scanner, seed=1, index=cases.index)
    assert stored.dtype == (np.uint8 if scanner.bits == 8 else np.uint16)
    assert stored.max() < 2**scanner.bits
    assert stored.max() > 0.7 * 2**scanner.bits
    np.testing.assert_array_equal(stored, apply_scanner(images, scanner, seed=1, index=cases.index))
    np.testing.assert_array_equal(
        stored[[4]], apply_scanner(images[[4]], scanner, seed=1, index=cases.index[[4]])
    )


def test_scanners_are_far_apart(cases, images):
    """Any two give more different pictures of one patient than their noise explains."""
    shown = {}
    for name, scanner in SCANNERS.items():
        stored = apply_scanner(images, scanner, seed=1, index=cases.index) / (2**scanner.bits - 1)
        shown[name] = 1 - stored if scanner.inverted else stored
    names = list(shown)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            assert np.abs(shown[one] - shown[other]).mean() > 0.015, (one, other)


def test_inverted_scanner_stores_air_bright(cases, images):
    stored = apply_scanner(images, SCANNERS["inverted_dr"], seed=1, index=cases.index).astype(float)
    assert np.corrcoef(stored.ravel(), images.ravel())[0, 1] < -0.8
    plain = apply_scanner(images, SCANNERS["reference"], seed=1, index=cases.index).astype(float)
    assert np.corrcoef(plain.ravel(), images.ravel())[0, 1] > 0.9
