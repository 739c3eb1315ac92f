"""What the report says of reports as input: the probe beside the model, over the same findings."""

from __future__ import annotations

import pytest

from common.config import RunConfig
from server.report import render
from server.report_text import text_answer, text_arms, text_part, text_rows

FLAT = {"data.text": True, "data.redaction": "word", "model.fusion": "gated", "pet.towers": "text"}
FINDINGS = {"effusion": 0.9, "edema": 0.8}


def told(auroc=0.85, findings=None):
    interval = None if auroc is None else (auroc - 0.03, auroc + 0.03)
    return {
        "reports": 120 if auroc else 0,
        "auroc": auroc,
        "interval": interval,
        "findings": FINDINGS if findings is None else findings,
    }


@pytest.fixture
def with_text(report):
    def make(probe, **arms):
        part = text_part(RunConfig.from_flat(FLAT), probe)
        return report.model_copy(update={"text": part, "arms": {**report.arms, **arms}})

    return make


def test_a_model_of_images_alone_has_no_such_part(report):
    assert text_part(RunConfig(), None) is None
    assert "What the reports give away" not in render(report)


def test_each_figure_is_over_the_findings_the_probe_could_measure(with_text, report):
    row = {row.site: row for row in text_rows(with_text({"north": told(), "south": told(0.7)}))}["north"]
    areas = [report.arms["federated"].sites["north"].findings[name].auroc for name in FINDINGS]
    assert row.arms == (pytest.approx(sum(areas) / 2),)
    assert (row.alone, row.reports) == (0.85, 120)


def test_arms_without_a_modality_stand_beside_it(with_text, report):
    some = with_text({"north": told()}, **{"without-image": report.arms["local"]})
    assert text_arms(some) == ["federated", "without-image"]
    assert len(text_rows(some)[0].arms) == 2
    page = render(some)
    assert '<th scope="col">without image</th>' in page


@pytest.mark.parametrize(
    ("alone", "words"), [(0.99, "shows nothing"), (0.65, "A part of that"), (0.52, "the images'")]
)
def test_the_sentence_follows_the_figures(with_text, alone, words):
    """The model's means over the two findings at these sites lie between 0.7 and 0.95."""
    some = with_text({"north": told(alone), "east": told(alone)})
    answer = text_answer(some)
    assert words in answer and f"{alone:.3f}" in answer
    assert words.replace("'", "&#39;") in render(some)


def test_a_site_that_cannot_be_probed_is_shown_and_not_counted(with_text):
    some = with_text({"north": told(0.65), "west": told(None, {})})
    rows = {row.site: row for row in text_rows(some)}
    assert rows["west"].alone is None and rows["west"].arms == (None,)
    assert text_answer(some) == text_answer(with_text({"north": told(0.65)}))
    assert text_answer(with_text({"west": told(None, {})})) == ""


def test_a_deployment_is_told_where_the_probe_is_run(with_text):
    page = render(with_text(None))
    assert "fedcxr-site leak-probe site.toml" in page and "cannot say" in page
