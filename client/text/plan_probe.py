"""The leak probe of one plan: what the text the plan reads says of the findings the plan learns."""

from __future__ import annotations

import numpy as np

from client.site import SiteConfig
from client.text.leak_probe import ProbeResult, leak_probe
from client.text.studies import one_per_study, read_reports, used_text
from common.config import RunConfig


def probe_of_plan(site: SiteConfig, config: RunConfig) -> ProbeResult:
    """Predict the plan's findings at a site from its reports alone, redacted as the plan reads them.

    Each study counts once, all its splits together: the probe brings its own folds.

    Raises:
        TableError: if the site has no reports.
        DataError: if it has fewer patients than the probe has folds.
    """
    studies = one_per_study(read_reports(site))
    wanted = [finding for finding in config.data.findings if finding in studies.findings]
    columns = np.array([studies.findings.index(finding) for finding in wanted], dtype=np.int64)
    texts = [used_text(cells, config.data.redaction)[0] for cells in studies.texts]
    labels = studies.labels[:, columns]
    patients = studies.patient.tolist()
    return leak_probe(
        texts, labels, patients, wanted, seed=config.seed, replicates=config.evaluate.replicates
    )
