"""The AUROC over all sites lies within its bound, as scikit-learn finds it on the pooled scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from common.metrics import evaluate_scores
from common.metrics.histogram import CELLS, STEP
from common.protocol import metrics_from_wire, metrics_to_wire
from server.pooled import pooled_areas, pooled_macro

FINDINGS = ("effusion", "nodule")
FLOAT = 1e-9


def told(sites, min_cell, histograms=True):
    """What each site's evaluation is at the centre: over the wire, as text. ``sites``: scores, labels."""
    results = {}
    for n, (scores, labels) in enumerate(sites):
        metrics = evaluate_scores(
            scores, labels, range(len(labels)), FINDINGS,
            replicates=0, generator=np.random.default_rng(0), min_cell=min_cell, histograms=histograms,
        )  # fmt: skip
        flat = json.loads(json.dumps(metrics_to_wire(metrics, {})))
        results[f"site-{n}"], _ = metrics_from_wire(flat, FINDINGS)
    return results


def truth(sites, finding, names):
    """scikit-learn's AUROC on the pooled scores of some sites."""
    parts = [sites[int(name.removeprefix("site-"))] for name in names]
    p, y = (np.concatenate([part[i][:, finding] for part in parts]) for i in (0, 1))
    known = ~np.isnan(y)
    return roc_auc_score(y[known], p[known]), int((y == 1).sum()), int((y == 0).sum())


def federation(seed, sites=4, n=300, shift=0.5, spread=1.3):
    """Sites whose scores lie a little apart."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(sites):
        labels = (generator.random((n, 2)) < [0.3, 0.1]).astype(np.float32)
        z = spread * generator.normal(size=(n, 2)) + 1.5 * labels - 2 + shift * generator.normal(size=2)
        labels[generator.random((n, 2)) < 0.1] = np.nan
        made.append((expit(z).astype(np.float32), labels))
    return made


@st.composite
def federations(draw):
    """Few sites of any size and scale: ties, saturated scores and single classes among them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.01, 1.0, 8.0, 60.0]))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 80))
        labels = (generator.random((n, 2)) < draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))).astype(np.float32)
        z = scale * (generator.normal(size=(n, 2)) + labels - 1 + generator.normal(size=2))
        if draw(st.booleans()):
            z = np.round(z)
        labels[generator.random((n, 2)) < 0.1] = np.nan
        made.append((expit(z).astype(np.float32), labels))
    return made


@settings(deadline=None, max_examples=150)
@given(federations(), st.sampled_from([1, 2, 5, 11]))
def test_scikit_learns_auroc_lies_within_the_bound(sites, min_cell):
    results = told(sites, min_cell)
    areas = pooled_areas(results, FINDINGS)
    for j, finding in enumerate(FINDINGS):
        may = [s for s, m in results.items() if m.findings[finding].bins]
        if finding not in areas:
            assert not may or not all(truth_counts(sites, j, may))
            continue
        area = areas[finding]
        exact, positives, negatives = truth(sites, j, area.sites)
        assert area.low - FLOAT <= exact <= area.high + FLOAT
        assert area.low <= area.auroc <= area.high
        assert (area.positives, area.negatives) == (positives, negatives)
        assert list(area.sites) == may


def truth_counts(sites, finding, names):
    labels = np.concatenate([sites[int(name.removeprefix("site-"))][1][:, finding] for name in names])
    return (labels == 1).sum(), (labels == 0).sum()


@pytest.mark.parametrize(
    ("n", "min_cell", "width", "off"),
    [(300, 1, 0.015, 0.002), (300, 11, 0.45, 0.04), (3000, 11, 0.1, 0.01), (3000, 1, 0.015, 0.001)],
)
def test_the_bound_is_as_narrow_as_documented_and_the_estimate_near(n, min_cell, width, off):
    for seed in range(3):
        sites = federation(seed, n=n, shift=0.3)
        areas = pooled_areas(told(sites, min_cell), FINDINGS)
        exact, _, _ = truth(sites, 0, areas["effusion"].sites)
        assert areas["effusion"].high - areas["effusion"].low < width
        assert abs(areas["effusion"].auroc - exact) < off


def test_one_sites_auroc_is_its_own():
    sites = federation(0, sites=1)
    results = told(sites, 11)
    area = pooled_areas(results, FINDINGS)["effusion"]
    assert area.auroc == pytest.approx(results["site-0"].findings["effusion"].auroc, abs=1e-9)
    assert area.high - area.low == pytest.approx(0.001, abs=1e-9)


def test_sites_that_rank_alike_but_score_apart_rank_worse_together():
    sites = federation(3, sites=2, shift=0.0)
    apart = [sites[0], (expit(np.log(sites[1][0] / (1 - sites[1][0])) + 3).astype(np.float32), sites[1][1])]
    near, far = (pooled_areas(told(each, 1), FINDINGS)["effusion"] for each in (sites, apart))
    assert far.high < near.low


def test_without_the_cells_nothing_is_said():
    assert pooled_areas(told(federation(0), 11, histograms=False), FINDINGS) == {}
    assert pooled_macro({}) is None


def test_the_macro_is_the_mean_of_estimates_and_of_bounds():
    areas = pooled_areas(told(federation(1), 1), FINDINGS)
    auroc, low, high = pooled_macro(areas)
    both = [areas[name] for name in FINDINGS]
    assert auroc == pytest.approx(np.mean([a.auroc for a in both]))
    assert (low, high) == pytest.approx((np.mean([a.low for a in both]), np.mean([a.high for a in both])))


def test_an_auroc_that_the_cells_rule_out_is_not_believed():
    """A site that says 0.2 of studies its own cells put in order is taken by its cells."""
    import dataclasses

    results = told(federation(2), 1)
    site = results["site-0"]
    lying = dataclasses.replace(
        site,
        findings={**site.findings, "effusion": dataclasses.replace(site.findings["effusion"], auroc=0.2)},
    )
    honest = pooled_areas(results, FINDINGS)["effusion"]
    area = pooled_areas({**results, "site-0": lying}, FINDINGS)["effusion"]
    assert area.low < honest.auroc < area.high


def test_cells_are_the_same_at_every_site_and_never_small():
    for scores, labels in federation(5, n=900):
        results = told([(scores, labels)], 11)
        bins = results["site-0"].findings["effusion"].bins
        assert len(bins) > 4
        assert [part.span[0] for part in bins] == [0, *(part.span[1] for part in bins[:-1])]
        assert bins[-1].span[1] == CELLS and not any(part.span[0] % STEP for part in bins)
        assert all(min(part.positives, part.studies - part.positives) >= 11 for part in bins)
