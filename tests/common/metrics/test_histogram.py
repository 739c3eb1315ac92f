"""Cells are the same everywhere, keep the order of scores, and none of a site's is small."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit

from common.errors import DataError
from common.metrics.calibration import BINS, ReliabilityBin, coarse_bins, reliability_bins
from common.metrics.histogram import CELLS, STEP, cell_of, spans


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32)))
def test_cells_keep_the_order_and_ties(p):
    cells = cell_of(p)
    assert ((cells >= 0) & (cells < CELLS)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(cells[order]) >= 0).all()
    for value in np.unique(p):
        assert len(np.unique(cells[p == value])) == 1


def test_a_cell_is_a_64th_of_a_logit_wide_in_the_middle_and_none_is_unbounded_in_use():
    z = np.linspace(-1, 1, 100_001)
    edges = z[1:][np.diff(cell_of(expit(z))) > 0]
    assert np.diff(edges) == pytest.approx(1 / 64, rel=0.02)
    assert len(np.unique(cell_of(expit(np.linspace(-12, 12, 100_000))))) > 900
    with pytest.raises(DataError):
        cell_of(np.array([1.5]))


@given(st.data(), st.integers(0, 12))
def test_spans_hold_enough_of_either_label_and_lose_nobody(data, min_cell):
    n = data.draw(st.integers(0, 80))
    cells = np.array(data.draw(st.lists(st.integers(0, CELLS - 1), min_size=n, max_size=n)), dtype=np.intp)
    labels = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)))
    found = spans(cells, labels, min_cell)
    held = [labels[(cells >= first) & (cells < end)] for first, end in found]
    if min_cell <= 1:
        assert found == tuple((c, c + 1) for c in sorted({*cells.tolist()}))
        return
    assert (found == ()) == (min((labels == 1).sum(), (labels == 0).sum()) < min_cell)
    assert all(min((h == 1).sum(), (h == 0).sum()) >= min_cell for h in held)
    if found:
        assert found[0][0] == 0 and found[-1][1] == CELLS
        assert all(a[1] == b[0] for a, b in pairwise(found))
        assert not any(edge % STEP for span in found for edge in span)


def test_where_the_cut_lies_does_not_tell_of_the_study_that_filled_the_cell():
    """Within an eighth of the grid's cells that study may lie anywhere."""
    cells = np.sort(np.random.default_rng(0).integers(300, 700, 200))
    labels = np.arange(200) % 2.0
    found = spans(cells, labels, 11)
    filler = np.flatnonzero(cells < found[0][1])[-1]
    for moved in range(cells[filler] // STEP * STEP, cells[filler] // STEP * STEP + STEP):
        other = cells.copy()
        other[filler] = moved
        assert spans(other, labels, 11) == found


def test_fine_bins_are_the_cells_and_coarse_ones_nearly_those_of_the_ece():
    generator = np.random.default_rng(1)
    p, y = generator.random(400), generator.integers(0, 2, 400)
    fine = reliability_bins(p, y, fine=True)
    assert [b.span for b in fine] == [(int(c), int(c) + 1) for c in np.unique(cell_of(p))]
    coarse = coarse_bins(fine)
    assert len(coarse) == BINS and all(b.span is None for b in coarse)
    plain = reliability_bins(p, y)
    for total in ("studies", "positives"):
        assert sum(getattr(b, total) for b in coarse) == sum(getattr(b, total) for b in plain)
    for own, merged in zip(plain, coarse, strict=True):  # but for cells across an edge of two bins
        assert abs(own.studies - merged.studies) <= 4 and own.mean == pytest.approx(merged.mean, abs=0.01)


def test_bins_that_a_site_joined_stay_as_they_are():
    joined = [ReliabilityBin(22, 11, 0.01, (0, 200)), ReliabilityBin(30, 12, 0.02, (200, 1024))]
    assert coarse_bins(joined) == tuple(joined)
