"""The figures that the page of a run has too: the same facts, drawn without a script."""

from __future__ import annotations

import math
import re
import shutil
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from server.facts.aggregation import aggregation
from server.facts.matrix import matrix
from server.facts.records import Aggregation, Bin, Matrix, Reliability
from server.facts.reliability import reliability
from server.facts.view import LedgerView
from server.report import read_report, render, write_report
from server.report_facts import aggregation_of, matrix_of, reliabilities_of
from server.report_heatmaps import aggregation_plot, drift_plot, matrix_plot, on, step_of
from server.report_reliability import reliability_plot
from server.report_schema import AggregationPart, DriftPart, Report
from server.report_spread import curves_plot, findings_plot
from server.report_svg import DIVERGING, INK, MIDDLE, PAGE, SEQUENTIAL
from server.summary import summarise
from simulations.benchmarks.large_ledger import write_large_ledger

STYLE = (Path(__file__).parents[3] / "server" / "templates" / "report.css").read_text(encoding="utf-8")
PAGE_STYLE = Path(__file__).parents[3] / "server" / "monitor" / "static" / "monitor.css"
EVIL = "<b>$x$ & co</b>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 sites, 12 rounds and 4 findings that never took place."""
    folder = tmp_path_factory.mktemp("told") / "run"
    write_large_ledger(folder, rounds=12, sites=6, findings=4, seed=3)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Its report as it is read back from the file, which is what the page is drawn of."""
    out = tmp_path_factory.mktemp("written")
    write_report(summarise(folder), out)
    return read_report(out / "report.json")


@pytest.fixture
def view(folder: Path):
    view = LedgerView(folder / "ledger.sqlite")
    yield view
    view.close()


class Words(HTMLParser):
    """Visible text, and the labels of drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.labels: list[str] = []
        self.feed(text)

    def handle_data(self, data):
        self.text += f"{data} "

    def handle_starttag(self, tag, attrs):
        self.labels += [value for name, value in attrs if (tag, name) == ("div", "aria-label")]


def cells(svg: str) -> int:
    """Count the cells of a heat map, without those of its key."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--(?:seq|div)-\d+\)', svg)
    return sum(path.count("M") for path in paths) - len(SEQUENTIAL)


# ---- the same facts ------------------------------------------------------------------------------


def test_the_report_draws_the_very_facts_that_the_page_of_the_run_draws(told, view):
    assert matrix_of(told) == matrix(view)
    assert aggregation_of(told) == aggregation(view)
    findings = reliabilities_of(told)
    assert [one.finding for one in findings] == list(view.config().data.findings)
    for one in findings:
        assert one == reliability(view, one.finding)


def test_a_report_without_these_parts_has_no_such_figure(report):
    assert matrix_of(report) is None
    assert aggregation_of(report) is None
    assert reliabilities_of(report.model_copy(update={"arms": {}})) == []
    assert matrix_plot(None) is aggregation_plot(None) is drift_plot(None) is reliability_plot([]) is None


def test_a_ledger_from_before_measures_were_kept_still_gives_a_report(folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    with sqlite3.connect(old / "ledger.sqlite") as db:
        db.execute("DROP TABLE measures")
        db.execute("DROP TABLE details")
        db.execute("UPDATE run SET value = '1' WHERE key = 'schema'")
    db.close()
    report = summarise(old)
    assert drift_plot(aggregation_of(report)) is None
    text = Words(render(report)).text
    assert "Site by site" in text and "How far each part of the adapter moved" not in text


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_has_each_figure_under_its_heading_with_its_numbers_in_words(told):
    words = Words(render(told))
    headings = (
        "Every model at every site", "How the updates of round 12 became one",
        "How far each part of the adapter moved", "Do the probabilities mean what they say?",
    )  # fmt: skip
    assert [heading for heading in headings if heading not in words.text] == []
    labels = " ".join(words.labels)
    assert "largest weight" in labels and "least alike" in labels and "farthest" in labels
    error = reliabilities_of(told)[0].ece
    assert f"ECE {error['federated']:.3f}" in labels and f"ECE {error['calibrated']:.3f}" in labels


def test_a_report_of_a_thousand_cells_can_be_mailed(tmp_path):
    write_large_ledger(tmp_path / "run", rounds=60, sites=40, findings=8, seed=1)
    page = write_report(summarise(tmp_path / "run"), tmp_path / "out").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    assert "<script" not in page and "://" not in page and "<img" not in page
    assert not re.search(r"#010[1-5][0-9a-f]{2}", page)


def test_in_a_table_of_many_sites_who_was_missing_is_named(tmp_path):
    write_large_ledger(tmp_path / "run", rounds=30, sites=14, findings=2, seed=1)
    report = summarise(tmp_path / "run")
    gone = [(part.round, site) for part in report.rounds for site in (*part.missing, *part.rejected)]
    assert gone, "the made-up run has none, so this shows nothing"
    page = render(report)
    rows = dict(
        re.findall(
            r'<tr[^>]*><th scope="row">(\d+)</th><td class="left">committed(.*?)</tr>', page, re.DOTALL
        )
    )
    for number, site in gone:
        assert re.search(rf"\b{re.escape(site)}\b", rows[str(number)])


# ---- drawings ------------------------------------------------------------------------------------


def test_the_matrix_shows_every_number_the_best_and_who_trained_it():
    shown = Matrix(
        "", ("local of a", "local of <b>", "federated"), ("a", "<b>"),
        ((0.8, 0.7), (None, 0.75), (0.82, 0.75)),
        ((None, None), (None, None), (None, None)), ("a", "<b>", ""),
    )  # fmt: skip
    drawn = matrix_plot(shown)
    for text in ("0.800", "0.700", "0.820", "n/a", "local of &lt;b&gt;"):
        assert f">{text}</text>" in drawn.svg
    assert drawn.svg.count(">0.750</text>") == 2
    assert cells(drawn.svg) == 5, "one for each number"
    stars = re.findall(r"<use [^>]*fill: var\(--page\)", drawn.svg)
    assert len(stars) == 3, "federated at a, and two that tie at <b>"
    assert "Best at a federated (0.820); at <b> local of <b> and federated (0.750)." in drawn.alt


def test_nothing_measured_is_no_matrix():
    assert matrix_plot(Matrix("", ("federated",), ("a",), ((None,),), ((None,),), ("",))) is None


def test_weights_and_pairs_stand_in_one_order_the_heaviest_first():
    pairs = ((1.0, 0.5, -0.3), (0.5, 1.0, 0.1), (-0.3, 0.1, 1.0))
    weights = {"a": 0.2, "b": 0.5, EVIL: 0.3}
    found = Aggregation(3, weights, {}, {"a": 0.9, EVIL: -0.2}, pairs, (), (), (), ())
    drawn = aggregation_plot(found)
    names = re.findall(r">(b|a|&lt;b&gt;\$x\$ &amp; co&lt;/b&gt;|&lt;b&gt;\$x\$ &amp; co…)</text>", drawn.svg)
    assert [name[:4] for name in names[:3]] == ["b", "&lt;", "a"]
    numbers = re.findall(r">(−?0\.\d\d)</text>", drawn.svg)
    assert [n for n in numbers if n in {"0.50", "−0.30", "0.10"}] == [
        "0.10", "0.50", "0.10", "−0.30", "0.50", "−0.30",
    ]  # fmt: skip
    assert "1.00" not in numbers, "a site's cosine with itself says nothing"
    assert "least in line with the aggregate: <b>$x$ & co</b>, cosine −0.20" in drawn.alt


def test_one_site_has_a_weight_and_no_pairs():
    drawn = aggregation_plot(Aggregation(1, {"a": 1.0}, {}, {}, ((1.0,),), (), (), (), ()))
    assert "100 %" in drawn.svg and "cosine of pairs" not in drawn.svg and "div-" not in drawn.svg


def test_drift_draws_each_block_and_a_long_run_in_stretches():
    rounds = tuple(range(1, 501))
    values = tuple((0.001 * r, 0.002 * r, None) for r in rounds)
    found = Aggregation(500, {}, {}, {}, (), (), ("blocks.0", "head", "late"), rounds, values)
    drawn = drift_plot(found)
    assert all(f">{name}</text>" in drawn.svg for name in found.drift_blocks)
    # 500 rounds run through 7 steps of the scale in blocks.0, which gets half as far, and 13 in head.
    assert cells(drawn.svg) == 7 + 13
    assert "farthest head (1)" in drawn.alt and "least blocks.0 (0.5)" in drawn.alt
    assert drift_plot(Aggregation(1, {}, {}, {}, (), (), ("a",), (1,), ((None,),))) is None


def test_reliability_puts_before_and_after_into_one_panel_for_each_finding():
    def bins(*places: tuple[float, float]) -> tuple[Bin, ...]:
        return tuple(Bin(m, 100, round(100 * s), s, (max(0, s - 0.05), min(1, s + 0.05))) for m, s in places)

    both = {"federated": bins((0.1, 0.2), (0.6, 0.5)), "calibrated": bins((0.2, 0.2), (0.5, 0.5))}
    drawn = reliability_plot(
        [
            Reliability(
                "edema", "", {**both, "local": bins((0.3, 0.9))}, {"federated": 0.1, "calibrated": 0.0}
            ),
            Reliability("lung_opacity", "", {"federated": both["federated"]}, {"federated": None}),
        ]
    )
    assert ">edema</text>" in drawn.svg and ">lung opacity</text>" in drawn.svg
    assert ">ECE 0.100 before, 0.000 after</text>" in drawn.svg and ">ECE n/a before</text>" in drawn.svg
    markers = [len(re.findall(rf"<use [^>]*fill: var\(--arm-{i}\)", drawn.svg)) for i in range(3)]
    assert markers == [0, 4 + 1, 2 + 1], "points of both panels, and one of each in the legend"
    assert "before calibration (federated model) ECE 0.100, 2 bins" in drawn.alt


def test_the_spread_of_many_sites_is_theirs(report):
    sites = [f"s{i}" for i in range(20)]
    rounds = [
        report.rounds[0].model_copy(
            update={
                "round": r, "cohort": tuple(sites), "returned": tuple(sites), "missing": (), "rejected": {},
                "loss": {site: 1 / r + i / 100 for i, site in enumerate(sites)},
                "validation_auroc": {site: 0.5 + i / 100 + r / 50 for i, site in enumerate(sites)},
            }
        )
        for r in (1, 2, 3)
    ]  # fmt: skip
    drawn = curves_plot(report.model_copy(update={"rounds": tuple(rounds)}))
    mean = np.mean([0.5 + i / 100 + 3 / 50 for i in range(20)])
    assert f"mean over sites {mean:.3g} after round 3" in drawn.alt
    assert "worst at s0 with 0.56" in drawn.alt and "worst at s19 with 0.523" in drawn.alt
    assert curves_plot(report.model_copy(update={"rounds": ()})) is None


def test_findings_over_many_sites_are_told_by_their_mean(report):
    drawn = findings_plot(report)
    areas = [s.findings["edema"].auroc for s in report.arms["federated"].sites.values()]
    known = [area for area in areas if area is not None]
    assert 1 < len(known) < len(areas), "one of the sites does not annotate it"
    assert f"edema {math.fsum(known) / len(known):.3f}" in drawn.alt
    assert findings_plot(report.model_copy(update={"arms": {}})) is None


# ---- the parts of the file -----------------------------------------------------------------------


def test_a_part_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="1 lists of 2 distances"):
        DriftPart(blocks=("a", "b"), rounds=(1,), values=((0.1,),))
    with pytest.raises(ValueError, match="2 lists of 2 cosines"):
        AggregationPart(
            round=1, weights={"a": 0.5, "b": 0.5}, norms={}, cosines={}, pairs=((1.0,),), drift=None
        )


# ---- colours -------------------------------------------------------------------------------------


def themes(style: str) -> list[dict[str, str]]:
    """The variables of a style sheet in light and in dark."""
    light, dark = re.split(r"@media screen and \(prefers-color-scheme: dark\)", style)[:2]
    found = [dict(re.findall(r"--([\w-]+):\s*([^;]+);", part)) for part in (light, dark.split("\n}")[0])]
    return [found[0], {**found[0], **found[1]}]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("hues", "name"), [(SEQUENTIAL, "seq"), (DIVERGING, "div")])
def test_a_number_on_a_cell_can_be_read(theme, hues, name):
    colours = themes(STYLE)[theme]
    middle = colours["on-middle"].removeprefix("var(--").removesuffix(")")
    texts = {INK: colours["ink"], PAGE: colours["page"], MIDDLE: colours[middle]}
    for step, hue in enumerate(hues):
        dark, light = sorted((luminance(colours[f"{name}-{step}"]), luminance(texts[on(step, hues)])))
        assert (light + 0.05) / (dark + 0.05) >= 4.0, (step, hue)


def test_the_sequential_scale_goes_one_way_so_that_it_is_told_without_hue():
    for theme, falls in zip(themes(STYLE), (True, False), strict=True):
        shades = [luminance(theme[f"seq-{i}"]) for i in range(len(SEQUENTIAL))]
        assert shades == sorted(shades, reverse=falls)


def test_the_scales_are_those_of_the_live_page():
    style = PAGE_STYLE.read_text(encoding="utf-8")
    for name in ("seq", "div"):
        lives = re.findall(rf"--scale-{name}: ([^;]+);", style)
        for live, theme in zip(lives[:2], themes(STYLE), strict=True):
            assert [theme[f"{name}-{i}"] for i in range(0, 13, 2)] == live.split(", ")


def test_steps_cover_a_scale_from_end_to_end():
    steps = [step_of(value, 0.5, 0.6) for value in np.linspace(0.5, 0.6, 200)]
    assert steps == sorted(steps) and set(steps) == set(range(13))
    assert step_of(0.7, 0.5, 0.6) == 12 and step_of(0.1, 0.5, 0.6) == 0
    assert step_of(0.5, 0.5, 0.5) == 6
