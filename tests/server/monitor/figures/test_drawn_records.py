"""Figures of records that a test wrote: markup in names, gaps, nothing to draw, words side by side."""

from __future__ import annotations

import math
import re

import pytest

from server.facts.records import Aggregation, Bin, Curve, Matrix, Reliability
from server.monitor.figures import (
    curve,
    drift,
    findings,
    lora_error,
    matrix,
    pairs,
    participation,
    reliability,
    traffic,
    weights,
)
from tests.server.monitor.figures.drawn import texts

MARKUP = "<b>x</b><img src=x>"

BY_NAME = {"weights": weights.draw, "pairs": pairs.draw, "lora-error": lora_error.draw, "drift": drift.draw}


def test_reliability_shows_before_and_after_with_intervals_around_the_shares():
    before = (Bin(0.1, 100, 30, 0.3, (0.22, 0.4)), Bin(0.7, 40, 10, 0.25, (0.14, 0.4)))
    after = (Bin(0.29, 140, 40, 40 / 140, (0.22, 0.37)),)
    told = Reliability(
        "edema", "", {"federated": before, "calibrated": after}, {"federated": 0.2, "calibrated": None}
    )
    figure = reliability.draw(told)
    first, second = figure["data"]
    assert first["x"] == [0.1, 0.7]
    assert first["y"] == [0.3, 0.25]
    assert [a + b for a, b in zip(first["y"], first["error_y"]["array"], strict=True)] == pytest.approx(
        [0.4, 0.4]
    )
    assert first["marker"]["size"][0] > first["marker"]["size"][1]
    assert second["marker"]["symbol"] != first["marker"]["symbol"]
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    assert titles == [
        "<b>before calibration (federated model)</b><br>ECE 0.200",
        "<b>after calibration (calibrated model)</b><br>ECE n/a",
    ]
    assert "10 of 40 studies" in figure["alt"]


SITES = ("a", MARKUP)

SHARES = dict.fromkeys(SITES, 0.5)

AGGREGATED = Aggregation(
    1, SHARES, SHARES, SHARES, ((1.0, 0.2), (0.2, 1.0)), ((1, 0.1),), (MARKUP,), (1,), ((0.5,),)
)

POINTS = (0.5, 0.6)


def of_sites(sites):
    return Curve("auroc", "", (0, 1), sites, POINTS, POINTS, POINTS, POINTS, (MARKUP, MARKUP), "higher")


NAMED = {
    "curve": curve.draw(of_sites(dict.fromkeys(SITES, POINTS))),
    "many": curve.draw(of_sites({f"{MARKUP}{i}": (0.5, 0.5 + i / 100) for i in range(12)})),
    "findings": findings.draw("auroc", {MARKUP: [(0, 0.5), (1, 0.6)]}, MARKUP),
    "matrix": matrix.draw(
        Matrix("", (f"local of {MARKUP}", "federated"), SITES, ((0.5, None), (0.6, 0.7)), ((None, None),) * 2,
               (MARKUP, ""))
    ),
    "reliability": reliability.draw(
        Reliability(MARKUP, MARKUP, {MARKUP: (Bin(0.1, 9, 1, 1 / 9, (0.0, 0.4)),)}, {})
    ),
    "participation": participation.draw({MARKUP: ["returned", "missing", "rejected", "asked"]}),
    **{name: draw(AGGREGATED) for name, draw in BY_NAME.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_name_with_markup_is_shown_as_it_is_written(validated, name):
    figure = NAMED[name]
    validated(figure)
    own = r"<extra>(%\{fullData\.name\})?</extra>|</?b>|<br>|<span style='font-size:0.4em'>|</span>"
    layout = {key: value for key, value in figure["layout"].items() if key != "uirevision"}  # never shown
    shown = [*texts(figure["data"]), *texts(layout)]
    if name != "lora-error":
        assert any("&lt;b&gt;x" in text for text in shown), "the name is there"
    for text in shown:
        assert "<img" not in text
        assert "<b>x" not in text
        assert "<" not in re.sub(own, "", text)


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_names_of_best_and_worst_do_not_lie_on_each_other(better):
    far = {f"site {i}": (0.5, 0.5 + i / 100) for i in range(12)}
    near = {f"site {i}": (0.5, 0.9) for i in range(12)}
    for sites, apart in ((far, False), (near, True)):
        told = Curve("auroc", "", (0, 1), sites, POINTS, POINTS, POINTS, POINTS, ("site 0",) * 2, better)
        labels = {note["text"].split(":")[0]: note for note in curve.draw(told)["layout"]["annotations"]}
        worst, best = labels["worst"], labels["best"]
        if apart:
            assert abs(worst["yshift"] - best["yshift"]) > 15
        else:
            assert (worst["y"] < best["y"]) == (better == "higher")
            assert worst["yshift"] == best["yshift"] == 0


def test_nothing_known_is_no_figure():
    nothing = (None, None)
    empty = Curve("auroc", "", (0, 1), {"a": nothing}, nothing, nothing, nothing, nothing, ("", ""), "higher")
    assert curve.draw(empty) is None
    assert curve.draw(Curve("auroc", "", (), {}, (), (), (), (), (), "higher")) is None
    assert findings.draw("auroc", {"edema": [], "mass": [(1, math.nan)]}) is None
    assert matrix.draw(Matrix("", ("federated",), ("a",), ((None,),), ((None,),), ("",))) is None
    assert reliability.draw(Reliability("edema", "", {"federated": ()}, {})) is None
    assert traffic.draw({"up": {}, "down": {}}) is None
    assert participation.draw({"a": []}) is None
    unknown = Aggregation(1, {}, {}, {}, (), (), (), (), ())
    without = Aggregation(1, SHARES, {}, {}, ((1.0, math.nan), (math.nan, 1.0)), (), ("x",), (1,), ((None,),))
    for name, draw in BY_NAME.items():
        assert draw(unknown) is None
        assert (draw(without) is None) == (name != "weights")


def test_values_that_are_no_numbers_leave_gaps(validated):
    values = (0.5, math.nan, 0.6)
    sites = {"a": values, "b": (None, None, 0.7)}
    told = Curve("auroc", "", (1, 2, 3), sites, *[values] * 4, ("a",) * 3, "higher")
    figure = curve.draw(told)
    validated(figure)
    lines = {trace["name"]: trace["y"] for trace in figure["data"]}
    assert lines["a"] == [0.5, None, 0.6]
    assert lines["b"] == [None, None, 0.7]
