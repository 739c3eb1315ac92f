"""Who comes: marginals, companions, patients over time."""

import numpy as np
import pytest

from common.errors import ConfigError
from simulations.phantom.cases import FINDINGS, PREVALENCE, Population, sample_cases


@pytest.fixture(scope="module")
def many():
    return sample_cases(20_000, seed=3, population=Population(studies_per_patient=1.0))


def test_longer_samples_start_with_the_shorter():
    short, long = sample_cases(40, seed=8), sample_cases(400, seed=8)
    for name in ("index", "patient", "age", "female", "view", "severity"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:40])


def test_another_seed_is_another_hospital():
    assert not np.array_equal(sample_cases(40, seed=8).severity, sample_cases(40, seed=9).severity)


def test_marginals_are_the_populations(many):
    wanted = np.array([PREVALENCE[f] for f in FINDINGS])
    np.testing.assert_allclose(many.labels.mean(axis=0), wanted, atol=0.012)
    assert many.female.mean() == pytest.approx(0.48, abs=0.012)
    assert (many.view == "AP").mean() == pytest.approx(0.4, abs=0.012)
    assert many.age.mean() == pytest.approx(58, abs=1.0)


@pytest.mark.parametrize("mean", [0.3, 0.5, 0.7])
def test_severity_has_the_mean_asked_for(mean):
    cases = sample_cases(8000, seed=1, population=Population(severity=mean))
    present = cases.severity[cases.labels == 1]
    assert present.mean() == pytest.approx(mean, abs=0.03)
    assert present.max() <= 1 and present.min() >= 0.05


@pytest.mark.parametrize(
    "pair", [("cardiomegaly", "edema"), ("effusion", "edema"), ("effusion", "atelectasis")]
)
def test_companions_come_together(many, pair):
    one, other = (many.labels[:, FINDINGS.index(name)] for name in pair)
    assert (one & other).mean() > 1.5 * one.mean() * other.mean()


def test_studies_of_a_patient_share_sex_and_grow_older():
    cases = sample_cases(3000, seed=2, population=Population(studies_per_patient=2.0))
    same = cases.patient[1:] == cases.patient[:-1]
    assert same.mean() == pytest.approx(0.5, abs=0.04)
    assert (cases.female[1:] == cases.female[:-1])[same].all()
    assert (np.diff(cases.age)[same] >= 0).all()
    agree = (cases.labels[1:] == cases.labels[:-1]).mean(axis=1)
    assert agree[same].mean() > agree[~same].mean() + 0.05
    assert (cases.severity[1:] != cases.severity[:-1])[same].any()


def test_take_keeps_the_index():
    picked = sample_cases(20, seed=2).take([3, 11])
    assert picked.index.tolist() == [3, 11] and len(picked) == 2


def test_prevalence_zero_means_never():
    cases = sample_cases(500, seed=2, population=Population(prevalence={"nodule": 0.0}))
    assert not cases.labels[:, FINDINGS.index("nodule")].any()


def test_unknown_finding_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'effusion'"):
        Population(prevalence={"efusion": 0.2})
