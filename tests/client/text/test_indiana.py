"""The real reports of Indiana University, used in place: no sentence of them is in this repository.

Thresholds are what was measured, less a margin: they guard against a step back, and the labels they
compare with are themselves imperfect (annotators' MeSH headings; doubt is coded either way, and
"nodule" where a report says granuloma, or the other way round).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from client.site import load_site
from client.text import commands
from client.text.labeller import label_report
from client.text.studies import one_per_study, read_reports

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

AGREEMENT = {
    "atelectasis": (0.98, 0.90),
    "cardiomegaly": (0.99, 0.85),
    "effusion": (0.97, 0.89),
    "pneumothorax": (0.96, 0.85),
    "consolidation": (0.91, 0.97),
    "lung_opacity": (0.90, 0.91),
    "edema": (0.85, 0.83),
    "emphysema": (0.93, 0.98),
    "fracture": (0.80, 0.88),
    "hernia": (0.96, 0.93),
    "infiltration": (0.91, 0.82),
    "pneumonia": (0.77, 0.82),
    "scoliosis": (0.93, 0.87),
    "support_device": (0.98, 0.66),
    "aortic_elongation": (1.00, 0.94),
}
"""Finding -> precision and recall of "present", as measured."""
MARGIN = 0.06


def test_labels_agree_with_the_annotators(indiana: Path) -> None:
    studies = one_per_study(read_reports(load_site(indiana), ["report"]))
    assert len(studies) > 3800
    read = [label_report(cells[0][1]) for cells in studies.texts]
    denied = denied_wrongly = 0
    for j, finding in enumerate(studies.findings):
        said = np.array([labels.get(finding, np.nan) for labels in read])
        truth = studies.labels[:, j]
        denied += int(((said == 0) & ~np.isnan(truth)).sum())
        denied_wrongly += int(((said == 0) & (truth == 1)).sum())
        if finding in AGREEMENT:
            known = ~np.isnan(truth)
            hits = int(((said == 1) & (truth == 1)).sum())
            precision, recall = hits / int(((said == 1) & known).sum()), hits / int((truth == 1).sum())
            expected = AGREEMENT[finding]
            assert precision > expected[0] - MARGIN, finding
            assert recall > expected[1] - MARGIN, finding
    assert denied > 10_000
    assert denied_wrongly < 0.005 * denied


@pytest.mark.e2e
def test_the_leak_falls_with_every_step_of_redaction(indiana: Path) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("leak-probe")(commands.leak_probe)
    result = CliRunner().invoke(app, [str(indiana), "--json"])
    assert result.exit_code == 0, result.output
    modes = json.loads(result.output)["modes"]
    raw, word, sentence, indication = (modes[m] for m in ("none", "word", "sentence", "indication"))
    assert len(raw["findings"]) > 18
    assert raw["macro_auroc"] > 0.97
    assert 0.85 < word["macro_auroc"] < 0.97
    assert 0.57 < sentence["macro_auroc"] < 0.78
    assert 0.50 < indication["macro_auroc"] < 0.63
    for more, less in ((raw, word), (word, sentence), (sentence, indication)):
        assert more["interval"][0] > less["interval"][1]
