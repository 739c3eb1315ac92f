"""A site's evaluation over the wire: rounded, complete, and silent on what is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics import (
    Difference,
    FindingMetrics,
    ReliabilityBin,
    SiteMetrics,
    compare_scores,
    evaluate_scores,
)
from common.protocol import MESSAGE_TYPES, kebab, metrics_from_wire, metrics_to_wire

NAMES = ("effusion", "pleural_thickening")
number = st.integers(0, 1000).map(lambda i: i / 1000)
maybe = st.one_of(st.none(), number)
interval = st.one_of(st.none(), st.tuples(number, number))
count = st.integers(0, 10_000)
span = st.tuples(st.integers(0, 1023), st.integers(1, 1024))
bins = st.one_of(
    st.lists(st.builds(ReliabilityBin, count, count, number, covered), max_size=15).map(tuple)
    for covered in (st.none(), span)
)
finding = st.builds(FindingMetrics, maybe, interval, maybe, maybe, maybe, maybe, count, count, bins, maybe)
site = st.builds(
    SiteMetrics,
    studies=count,
    macro_auroc=maybe,
    macro_interval=interval,
    macro_se=maybe,
    pooled_ece=maybe,
    findings=st.dictionaries(st.sampled_from(NAMES), finding),
)
gain = st.builds(Difference, number.map(lambda v: v - 0.5), st.tuples(number, number), number)
gains = st.dictionaries(st.sampled_from(("macro", *NAMES)), gain)


@settings(deadline=None)
@given(site, gains)
def test_there_and_back_is_the_identity(metrics, differences):
    flat = metrics_to_wire(metrics, differences)
    back, gained = metrics_from_wire(flat, NAMES)
    assert back == metrics
    assert gained.keys() == differences.keys()
    for name, difference in gained.items():
        assert difference.difference == pytest.approx(differences[name].difference, abs=5e-4)
        assert difference.interval == differences[name].interval
        assert difference.se == differences[name].se


@settings(deadline=None)
@given(site, gains)
def test_what_is_undefined_is_absent(metrics, differences):
    flat = metrics_to_wire(metrics, differences)
    assert None not in flat.values()
    assert ("macro-auroc" in flat) == (metrics.macro_auroc is not None)
    for name, m in metrics.findings.items():
        assert (f"{name}.auroc" in flat) == (m.auroc is not None)
        assert (f"{name}.pr-auc" in flat) == (m.pr_auc is not None)
        assert (f"{name}.interval" in flat) == (m.interval is not None)


def evaluated():
    """What really is measured: a finding of both classes, and one of a single class."""
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(0, 2, 40), np.zeros(40)], axis=1).astype(np.float32)
    scores = generator.random((40, 2)).astype(np.float32)
    other = generator.random((40, 2)).astype(np.float32)
    patients = [str(i // 2) for i in range(40)]
    metrics = evaluate_scores(scores, labels, patients, NAMES, replicates=30, generator=generator)
    macro, each = compare_scores(scores, other, labels, patients, NAMES, replicates=30, generator=generator)
    return metrics, {"macro": macro, **each}


def test_real_metrics_travel_as_flower_metrics_with_few_decimals():
    metrics, differences = evaluated()
    flat = metrics_to_wire(metrics, differences)
    assert dict(MetricRecord(flat)) == flat
    assert metrics.findings[NAMES[1]].auroc is None
    assert not [key for key in flat if key.startswith(f"{NAMES[1]}.auroc")]
    assert f"gain.{NAMES[1]}" not in flat
    back, gained = metrics_from_wire(flat, NAMES)
    assert back.macro_auroc == pytest.approx(metrics.macro_auroc, abs=5e-4)
    points = metrics.findings[NAMES[0]].bins
    assert len(points) > 5 and [b.studies for b in back.findings[NAMES[0]].bins] == [
        b.studies for b in points
    ]
    assert set(gained) == {"macro", NAMES[0]}
    for key, value in flat.items():
        decimals = 4 if "se" in key.split(".")[0].split("-") else 3
        for v in value if isinstance(value, list) else [value]:
            assert v == round(v, decimals), key


def test_a_finding_not_asked_for_is_not_read():
    flat = metrics_to_wire(*evaluated())
    back, gained = metrics_from_wire(flat, ["effusion"])
    assert set(back.findings) == {"effusion"}
    assert set(gained) == {"macro", "effusion"}


def test_keys_are_kebab_and_types_are_seven():
    assert kebab("num_examples") == "num-examples"
    assert len(set(MESSAGE_TYPES.values())) == len(MESSAGE_TYPES) == 7
