"""Every figure of a run: valid for Plotly, true to the ledger, small, and quick."""

from __future__ import annotations

import json
import re
import statistics
import time
from html import unescape

import pytest

from server.ledger import Ledger
from server.measures import Measure
from server.monitor.figures import (
    FIGURES,
    Query,
    compare_figure,
)
from tests.server.monitor.figures.drawn import asked, places


@pytest.mark.parametrize("sites", [1, 6, 9, 50])
@pytest.mark.parametrize("name", FIGURES)
def test_plotly_takes_every_figure_whatever_the_number_of_sites(made, validated, name, sites):
    run = made(sites=sites, rounds={1: 2, 50: 70}.get(sites, 12))
    figure = FIGURES[name](run, Query())
    if sites == 1 and name == "pairs":
        assert figure is None
        return
    validated(figure)
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure, "only what JSON knows"
    assert len(figure["alt"]) > 40
    assert re.search(r"\d", figure["alt"]), "a description tells numbers"
    assert figure["caption"].endswith(".")
    assert "autosize" not in figure["layout"]
    assert figure["layout"]["height"] >= 180


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_that_has_only_begun_has_no_figure(begun, name):
    assert FIGURES[name](begun, Query()) is None


def test_what_the_query_chooses_is_what_is_drawn(made, validated):
    run = made()
    site, finding = "north", "edema"
    chosen = Query(metric="ece", finding=finding, site=site, round=5)
    for draw in FIGURES.values():
        validated(draw(run, chosen))
    drawn = {trace["name"]: trace for trace in FIGURES["curve"](run, chosen)["data"]}
    rows = asked(
        run,
        "SELECT round, value FROM measures WHERE name = 'ece' AND finding = ? AND site = ? ORDER BY round",
        (finding, site),
    )
    told = dict(zip(places(drawn[site]), drawn[site]["y"], strict=True))
    assert {number: value for number, value in told.items() if value is not None} == {
        number: pytest.approx(value, rel=1e-3) for number, value in rows
    }
    lines = FIGURES["findings"](run, chosen)["data"]
    [line] = [trace for trace in lines if trace["name"] == finding]
    assert [value for value in line["y"] if value is not None] == pytest.approx(
        [value for _, value in rows], rel=1e-3
    )
    assert FIGURES["weights"](run, chosen)["alt"].startswith("Round 5: ")
    assert f"at {site}" in FIGURES["reliability"](run, chosen)["alt"]


def test_mean_and_worst_are_those_of_the_ledger(made):
    run = made()
    drawn = {trace["name"]: trace for trace in FIGURES["curve"](run, Query())["data"]}
    found = {}
    query = "SELECT round, site, value FROM measures WHERE name = 'auroc' AND finding = '' AND site != ''"
    for number, site, value in asked(run, query):
        found.setdefault(number, {})[site] = value
    mean, worst = drawn["mean of sites"], drawn["worst site"]
    assert places(mean) == sorted(found)
    for number, value, low, name in zip(
        sorted(found), mean["y"], worst["y"], worst["customdata"], strict=True
    ):
        assert value == pytest.approx(statistics.fmean(found[number].values()), rel=1e-3)
        assert low == pytest.approx(min(found[number].values()), rel=1e-3)
        assert found[number][name] == min(found[number].values())


def test_means_of_findings_follow_a_run_that_goes_on_and_goes_back(tmp_path):
    from server.facts.runs import Run

    def numbers(r, shift):
        return [
            Measure("auroc", "edema", site, r, 0.5 + 0.01 * r + add + shift)
            for site, add in (("a", 0.0), ("b", 0.1))
        ]

    def record(r):
        return {
            "round": r, "status": "committed", "cohort": ["a", "b"], "returned": ["a", "b"], "missing": [],
            "rejected": {}, "up": 1, "down": 1, "examples": {"a": 1, "b": 1},
        }  # fmt: skip

    def drawn():
        [line] = FIGURES["findings"](run, Query())["data"]
        return dict(zip(line["x"], line["y"], strict=True))

    with_run = tmp_path / "run"
    with_run.mkdir()
    ledger = Ledger(with_run / "ledger.sqlite")
    run = Run("run", with_run)
    for number in (1, 2, 3):
        ledger.put_round(record(number), numbers(number, 0.0), {})
    assert drawn() == {r: pytest.approx(0.55 + 0.01 * r) for r in (1, 2, 3)}
    ledger.put_round(record(4), [*numbers(4, 0.0), Measure("auroc", "edema", "late", 3, 0.9)], {})
    after = drawn()
    assert after[4] == pytest.approx(0.59)
    assert after[3] == pytest.approx((0.53 + 0.63 + 0.9) / 3, rel=1e-3), "what came a round later counts"
    ledger.reset_rounds([record(1)])
    ledger.put_round(record(2), numbers(2, 0.2), {})
    assert drawn() == {1: pytest.approx(0.56), 2: pytest.approx(0.77)}
    run.close()
    ledger.close()


def test_the_matrix_prints_what_the_sites_measured(made):
    run = made()
    figure = FIGURES["matrix"](run, Query())
    heat, numbers = figure["data"][0], next(t for t in figure["data"] if t.get("mode") == "text")
    models = [unescape(text) for text in figure["layout"]["yaxis"]["ticktext"]]
    sites = figure["layout"]["xaxis"]["ticktext"]
    arm_of = {f"local of {site}": f"local:{site}" for site in sites}
    for i, model in enumerate(models):
        for j, site in enumerate(sites):
            arm = "local" if model == f"local of {site}" else arm_of.get(model, model)
            [(text,)] = asked(
                run,
                "SELECT metrics FROM evaluations WHERE arm = ? AND site = ? AND split = 'test'",
                (arm, site),
            )
            value = json.loads(text)["macro-auroc"]
            assert heat["z"][i][j] == pytest.approx(value, rel=1e-3)
            k = [*zip(numbers["x"], numbers["y"], strict=True)].index((j, i))
            assert numbers["text"][k] == f"{value:.3f}"
    outlined = {(round(s["x0"] + 0.48), round(s["y0"] + 0.47)) for s in figure["layout"]["shapes"]}
    assert outlined == {(sites.index(site), models.index(f"local of {site}")) for site in sites}
    stars = figure["data"][-1]
    for column, above in zip(stars["x"], stars["y"], strict=True):
        j, i = round(column - 0.3), round(above + 0.24)
        assert heat["z"][i][j] == max(line[j] for line in heat["z"])


def test_weights_cosines_pairs_and_drift_are_those_of_the_round(made):
    run = made()
    query = Query(round=7)
    of_round = "SELECT site, value FROM measures WHERE name = ? AND finding = '' AND round = 7"
    shares, cosines = (dict(asked(run, of_round, (name,))) for name in ("weight", "cosine"))
    figure = FIGURES["weights"](run, query)
    bars = figure["data"][0]
    names = [re.match(r"(.*?)  <b>", text).group(1) for text in figure["layout"]["yaxis"]["ticktext"]]
    assert dict(zip(names, bars["x"], strict=True)) == {
        site: pytest.approx(100 * share, rel=1e-3) for site, share in shares.items()
    }
    assert bars["x"] == sorted(bars["x"], reverse=True)
    dots = figure["data"][-1]
    assert dict(zip([names[i] for i in dots["y"]], dots["x"], strict=True)) == {
        site: pytest.approx(value, rel=1e-3) for site, value in cosines.items()
    }
    [(text,)] = asked(run, "SELECT value FROM details WHERE name = 'pairs' AND round = 7")
    told, figure = json.loads(text), FIGURES["pairs"](run, query)
    order = [told["sites"].index(site) for site in figure["layout"]["xaxis"]["ticktext"]]
    for i, line in zip(order, figure["data"][0]["z"], strict=True):
        for j, value in zip(order, line, strict=True):
            assert (value is None) if i == j else value == pytest.approx(told["cosines"][i][j], abs=1e-3)
    rows = asked(run, "SELECT round, value FROM details WHERE name = 'drift' ORDER BY round")
    heat = FIGURES["drift"](run, query)["data"][0]
    assert heat["x"] == [number for number, _ in rows]
    for k, (_, text) in enumerate(rows):
        assert [line[k] for line in heat["z"]] == pytest.approx(json.loads(text)["values"], rel=1e-3)


def test_abandoned_rounds_are_shaded(tmp_path, made):
    from server.facts.runs import Run

    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number, status in ((1, "committed"), (2, "abandoned"), (3, "abandoned"), (4, "committed")):
        record = {
            "round": number, "status": status, "cohort": ["a"], "returned": ["a"], "missing": [],
            "rejected": {}, "up": 1, "down": 1,
        }  # fmt: skip
        ledger.put_round(record, [Measure("auroc", "", "a", number, 0.6)], {})
    run = Run("run", tmp_path)
    figure = FIGURES["curve"](run, Query())
    assert [(shape["x0"], shape["x1"]) for shape in figure["layout"]["shapes"]] == [(1.5, 3.5)]
    assert FIGURES["curve"](made(), Query())["layout"]["shapes"] == []
    run.close()
    ledger.close()


def test_an_evaluation_that_is_set_again_is_drawn_anew(tmp_path):
    from server.facts.runs import Run

    ledger, run = Ledger(tmp_path / "ledger.sqlite"), Run("run", tmp_path)
    told = {"mass.bins-studies": [60], "mass.bins-positives": [6], "mass.bins-mean": [0.2]}

    def drawn():
        points = FIGURES["reliability"](run, Query())["data"][0]
        return FIGURES["matrix"](run, Query())["data"][0]["z"], points["x"], points["y"]

    for arm, area, mean in (("federated", 0.71, 0.2), ("federated", 0.72, 0.3), ("pooled", 0.81, 0.2)):
        ledger.put_evaluation(arm, "test", "a", told | {"macro-auroc": area, "mass.bins-mean": [mean]})
        first = drawn()
    assert first == ([[0.72], [0.81]], [0.3], [0.1])
    ledger.put_evaluation("federated", "test", "a", told | {"macro-auroc": 0.73, "mass.bins-mean": [0.4]})
    assert drawn() == ([[0.73], [0.81]], [0.4], [0.1])
    run.close()
    ledger.close()


def test_two_runs_lie_in_one_figure(made, validated):
    first, second = made(), made(sites=9)
    figure = compare_figure(first, second, Query())
    validated(figure)
    names = [trace["name"] for trace in figure["data"]]
    assert names == [first.key, f"{first.key}, worst site", second.key, f"{second.key}, worst site"]
    dashes = {trace["line"].get("dash", "solid") for trace in figure["data"]}
    assert dashes == {"solid", "dash"}
    symbols = [trace["marker"]["symbol"] for trace in figure["data"] if "marker" in trace]
    assert len({*symbols}) == 2, "colour is not the only sign"


@pytest.mark.slow
def test_a_long_run_of_many_sites_is_drawn_small_and_quickly(made):
    run = made(sites=50, rounds=500, findings=14)
    for draw in FIGURES.values():
        draw(run, Query())  # what is read once
    for name, draw in FIGURES.items():
        took = []
        for _ in range(3):
            began = time.process_time()
            figure = draw(run, Query())
            took.append(time.process_time() - began)
        size = len(json.dumps(figure, separators=(",", ":"), ensure_ascii=False).encode())
        assert min(took) < 0.06, f"{name} took {1000 * min(took):.0f} ms"
        assert size < 400_000, f"{name} is {size / 1000:.0f} kB"
