"""The leak probe of a plan: on its own findings, and on the text its redaction leaves."""

from __future__ import annotations

import pytest

from client.site import load_site
from client.text.leak_probe import leak_probe
from client.text.plan_probe import probe_of_plan
from client.text.studies import one_per_study, read_reports, used_text
from common.config import RunConfig
from common.errors import TableError


def plan(redaction, findings="effusion, edema, mass"):
    return RunConfig.from_flat(
        {
            "data.text": True,
            "data.redaction": redaction,
            "data.findings": findings,
            "evaluate.replicates": 50,
        }
    )


def test_it_reads_what_the_plan_reads(make_report_site):
    """Raw reports name their findings; the redacted indication says next to nothing."""
    site = load_site(make_report_site())
    raw, indication = (probe_of_plan(site, plan(mode)) for mode in ("none", "indication"))
    assert raw.macro_auroc > 0.9 > 0.7 > indication.macro_auroc
    low, high = indication.macro_interval
    assert low < indication.macro_auroc < high
    assert raw.studies == indication.studies == 600


def test_it_is_the_probe_of_the_plan_s_findings_alone(make_report_site):
    site = load_site(make_report_site())
    found = probe_of_plan(site, plan("word", "edema, effusion, covid"))
    assert set(found.findings) == {"edema", "effusion"}  # the site does not annotate the third
    studies = one_per_study(read_reports(site))
    columns = [studies.findings.index(name) for name in ("edema", "effusion")]
    texts = [used_text(cells, "word")[0] for cells in studies.texts]
    again = leak_probe(
        texts,
        studies.labels[:, columns],
        studies.patient.tolist(),
        ("edema", "effusion"),
        seed=0,
        replicates=50,
    )
    assert again.macro_auroc == found.macro_auroc


def test_the_images_of_a_study_count_once(make_report_site):
    site = load_site(make_report_site(images=2, rows=300))
    assert probe_of_plan(site, plan("indication")).studies == 300


def test_a_site_without_reports_has_no_probe(make_report_site):
    site = load_site(make_report_site(indication=None, findings=None, impression=None))
    with pytest.raises(TableError, match="no column of reports"):
        probe_of_plan(site, plan("indication"))
