"""The page: one file, nothing from a network, text as text, and drawn for every kind of run."""

from __future__ import annotations

import re

import numpy as np
import pytest

from common.metrics import evaluate_scores
from server import report_figures as figures
from server.report import read_report, render, to_json, write_report
from server.report_arms import build_arm, build_comparison
from tests.html_page import Page

EVIL = "<script>alert('$x$ --> url(#a)')</script>"


@pytest.fixture(scope="module")
def html(report):
    return render(report)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def renamed(parts, old="south", new=EVIL):
    return {new if name == old else name: part for name, part in parts.items()}


def test_the_page_asks_nothing_of_any_network(html, page):
    assert "://" not in html
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "data", "action", "srcset", "poster"}:
            assert value.startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html


def test_identifiers_are_unique_and_every_reference_has_its_target(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for _, name, v in page.attributes if name == "href"}
    wanted |= {v[5:-1] for _, name, v in page.attributes if name == "clip-path"}
    wanted |= {v for _, name, v in page.attributes if name == "aria-labelledby"}
    assert wanted <= set(ids)


def test_the_page_can_be_read_without_seeing_it(page):
    assert ("html", "lang", "en") in page.attributes
    assert {"header", "main", "footer"} <= set(page.tags)
    assert page.tags["h1"] == 1
    scopes = sum(tag == "th" and name == "scope" for tag, name, _ in page.attributes)
    assert scopes == page.tags["th"]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    assert len(labels) == page.tags["svg"] == 5
    assert all(len(label) > 30 for label in labels)


def test_the_answer_comes_first_and_the_losers_before_the_table_of_sites(page, report):
    text = page.text
    answer = text.index("Federated training raised")
    assert answer < text.index("Who got worse") < text.index("Site by site")
    for entry in report.worse_sites:
        assert f"{entry.difference:.3f}".replace("-", "−") in text
    assert "within noise" in text and report.adapter_sha256 in text
    assert "south rejected (E_NORM)" in text


def test_no_stand_in_colour_and_no_formula_is_left(html):
    assert not re.search(r"#010[1-5][0-9a-f]{2}", html)
    assert "currentColor" in html and "var(--arm-1)" in html


def test_both_files_say_the_same_and_are_the_same_every_time(report, tmp_path):
    path = write_report(report, tmp_path / "out")
    assert path.name == "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]
    first = path.read_bytes()
    again = read_report(path.parent / "report.json")
    assert again == report
    assert write_report(again, path.parent).read_bytes() == first


def test_a_failed_write_leaves_the_last_report_whole(report, tmp_path, monkeypatch):
    path = write_report(report, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(report.model_copy(update={"title": "Another"}), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert path.exists()


def test_markup_in_a_name_is_shown_as_text(make_report, report):
    arms = {name: arm.model_copy(update={"sites": renamed(arm.sites)}) for name, arm in report.arms.items()}
    evil = make_report(
        title="<b>bold</b>",
        arms=arms,
        sites=renamed(report.sites),
        comparison=report.comparison.model_copy(update={"sites": renamed(report.comparison.sites)}),
        worse_sites=[e.model_copy(update={"site": EVIL}) for e in report.worse_sites],
        thumbnail_baseline=renamed(report.thumbnail_baseline),
        notes=("<img src=x onerror=alert(1)>",),
    )
    page = Page(render(evil))
    assert not {"script", "img", "b"} & set(page.tags)
    assert "<script>alert('$x$" in page.text and "<img src=x" in page.text
    assert "<b>bold</b>" in page.text


def test_a_name_in_letters_the_fonts_lack_is_drawn_without_a_warning(report):
    gaps = renamed(report.comparison.sites, new="東京")
    drawn = figures.forest_plot(
        report.model_copy(update={"comparison": report.comparison.model_copy(update={"sites": gaps})})
    )
    assert "東京" in drawn.svg


def test_one_site_alone(make_report, report):
    north = {"north": report.comparison.sites["north"]}
    arms = {
        name: arm.model_copy(update={"sites": {"north": arm.sites["north"]}})
        for name, arm in report.arms.items()
    }
    text = Page(
        render(
            make_report(
                arms=arms,
                sites={"north": report.sites["north"]},
                comparison=report.comparison.model_copy(update={"sites": north}),
                worse_sites=(),
                thumbnail_baseline=None,
            )
        )
    ).text
    assert "macro AUROC at north" in text and "No site got worse." in text
    assert "Mean of sites" not in text


def test_without_a_local_arm_the_page_says_what_it_cannot_tell(make_report, report):
    federated = {"federated": report.arms["federated"]}
    page = Page(render(make_report(arms=federated, comparison=None, worse_sites=())))
    assert "cannot say which sites gained" in page.text
    assert "Cannot be told" in page.text


def test_undefined_is_shown_as_such(make_report):
    nothing = evaluate_scores(
        np.full((20, 1), 0.5, np.float32), np.full((20, 1), np.nan), range(20), ["nodule"],
        generator=np.random.default_rng(0),
    )  # fmt: skip
    arms = {name: build_arm(name, {}, {"north": nothing}) for name in ("local", "federated")}
    html = render(
        make_report(
            arms=arms, comparison=build_comparison({"north": None}), worse_sites=(), rounds=(),
            thumbnail_baseline=None, adapter_sha256=None, notes=(),
        )
    )  # fmt: skip
    text = Page(html).text
    assert "No AUROC is defined at any site" in text
    assert "n/a" in text and "No round was run." in text and "none released" in text
    assert 'title="undefined' in html
    assert "nan" not in text.lower().split() and "None" not in text


def test_an_empty_report_still_draws(make_report):
    text = Page(
        render(
            make_report(
                arms={}, sites={}, comparison=None, worse_sites=(), rounds=(), versions={},
                thumbnail_baseline=None, notes=(),
            )
        )
    ).text  # fmt: skip
    assert "No arm was measured at any site." in text


def test_many_sites_and_rounds_draw(make_report, report):
    sites = tuple(f"hospital number {i} of the region" for i in range(11))
    north = report.comparison.sites["north"]
    arms = {
        name: arm.model_copy(update={"sites": dict.fromkeys(sites, arm.sites["north"])})
        for name, arm in report.arms.items()
    }
    part = report.rounds[0].model_copy(
        update={"cohort": sites, "returned": sites[1:], "missing": sites[:1], "rejected": {}}
    )
    rounds = [part.model_copy(update={"round": i + 1}) for i in range(45)]
    page = Page(
        render(
            make_report(
                arms=arms, sites=dict.fromkeys(sites, report.sites["north"]), worse_sites=(),
                rounds=rounds, thumbnail_baseline=None,
                comparison=report.comparison.model_copy(
                    update={"sites": dict.fromkeys(sites, north)}
                ),
            )
        )
    )  # fmt: skip
    assert "over 11 sites" in page.text and "and 33 more rounds" in page.text


def test_drawing_leaves_matplotlib_as_it_was(report):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.training_curves(report)
    assert dict(matplotlib.rcParams) == before


def test_json_has_sorted_keys_and_ends_with_a_line(report):
    text = to_json(report)
    assert text.endswith("}\n") and text.index('"adapter_sha256"') < text.index('"arms"')
