"""What the pictures show: the same case, the same picture; more disease, more of its sign."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import ConfigError
from simulations.phantom.cases import FINDINGS, Population, sample_cases
from simulations.phantom.placement import place
from simulations.phantom.render import render

SIZE = 64
GOLDEN_MEAN = [0.5318, 0.5167, 0.612, 0.509]
GOLDEN_STD = [0.224, 0.2432, 0.2406, 0.2657]


def forced(cases, finding, severity):
    """The same patients with one finding only, or none."""
    values = np.zeros_like(cases.severity)
    if finding:
        values[:, FINDINGS.index(finding)] = severity
    return replace(cases, severity=values)


@pytest.fixture(scope="module")
def patients():
    return sample_cases(12, seed=6, population=Population(ap_share=0.0, studies_per_patient=1.0))


@pytest.fixture(scope="module")
def healthy(patients):
    return render(forced(patients, None, 0), SIZE)


def on_side(cases, images, finding):
    """Mirror the pictures whose finding is on the patient's right, so that it is on the right half."""
    sides = [getattr(place(cases.seed, int(p)), finding) for p in cases.patient]
    return np.stack([im[:, ::-1] if side < 0 else im for im, side in zip(images, sides, strict=True)])


def test_a_picture_depends_on_its_case_only():
    cases = sample_cases(9, seed=4)
    together = render(cases, SIZE)
    np.testing.assert_array_equal(together, render(cases, SIZE))
    np.testing.assert_array_equal(together[[7, 2]], render(cases.take([7, 2]), SIZE))
    np.testing.assert_array_equal(together, render(sample_cases(30, seed=4), SIZE)[:9])


def test_values_are_finite_and_in_range(healthy):
    assert healthy.dtype == np.float32
    assert np.isfinite(healthy).all() and healthy.min() >= 0 and healthy.max() <= 1


def test_a_chest_is_dark_in_the_lungs_and_bright_between_them(healthy):
    rows = slice(int(0.35 * SIZE), int(0.5 * SIZE))
    lungs = healthy[:, rows, int(0.24 * SIZE) : int(0.36 * SIZE)].mean()
    middle = healthy[:, rows, int(0.47 * SIZE) : int(0.53 * SIZE)].mean()
    abdomen = healthy[:, int(0.92 * SIZE) :, int(0.4 * SIZE) : int(0.6 * SIZE)].mean()
    assert lungs < 0.45 < 0.6 < middle and abdomen > 0.7


def test_patients_differ_and_sizes_agree(patients, healthy):
    assert np.abs(healthy[0] - healthy[1]).mean() > 0.02
    large = render(forced(patients.take([0, 1, 2]), None, 0), 2 * SIZE)
    small = large.reshape(3, SIZE, 2, SIZE, 2).mean(axis=(2, 4))
    assert np.abs(small - healthy[:3]).mean() < 0.02


def test_severity_grows_the_heart(patients):
    """The heart's shadow right of the spine, as a share of the width, at its level."""
    widths = []
    for severity in (0.0, 0.4, 0.7, 1.0):
        images = render(forced(patients, "cardiomegaly", severity), SIZE)
        band = images[:, int(0.52 * SIZE) : int(0.62 * SIZE), SIZE // 2 : int(0.85 * SIZE)].mean(axis=1)
        widths.append((band > 0.6).mean())
    assert np.all(np.diff(widths) > 0.01)


def test_severity_brightens_the_base_in_effusion(patients):
    base = []
    for severity in (0.0, 0.35, 0.7, 1.0):
        images = on_side(patients, render(forced(patients, "effusion", severity), SIZE), "effusion")
        base.append(images[:, int(0.5 * SIZE) : int(0.72 * SIZE), int(0.72 * SIZE) : int(0.88 * SIZE)].mean())
    assert np.all(np.diff(base) > 0.002) and base[-1] > base[0] + 0.1


def test_severity_empties_the_apex_in_pneumothorax(patients):
    apex = []
    for severity in (0.0, 0.7, 1.0):
        images = on_side(patients, render(forced(patients, "pneumothorax", severity), SIZE), "pneumothorax")
        apex.append(images[:, int(0.28 * SIZE) : int(0.5 * SIZE), int(0.78 * SIZE) : int(0.84 * SIZE)].mean())
    assert np.all(np.diff(apex) < -0.005)


def test_the_drawing_has_not_drifted(healthy):
    """A base pretrained on these pictures knows them as they are.

    Golden: ``healthy.mean(axis=(1, 2))[:4]`` and the same of ``std``, this module's fixture.
    """
    np.testing.assert_allclose(healthy[:4].mean(axis=(1, 2)), GOLDEN_MEAN, atol=1e-3)
    np.testing.assert_allclose(healthy[:4].std(axis=(1, 2)), GOLDEN_STD, atol=1e-3)


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_finding_changes_the_picture_more_as_it_grows(patients, healthy, finding):
    few = patients.take(np.arange(4))
    changes = [
        np.abs(render(forced(few, finding, severity), SIZE) - healthy[:4]).mean()
        for severity in (0.2, 0.6, 1.0)
    ]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert changes[0] < 0.02, "a mild finding must be hard to see"


def test_tiny_pictures_are_refused(patients):
    with pytest.raises(ConfigError, match="at least 32"):
        render(patients, 16)
