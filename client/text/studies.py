"""The reports of a site: which columns hold them, one per study, redacted as the site says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, column, free_text, listing, matches
from client.data.labels import annotated_findings, read_labels
from client.data.source import read_source
from client.site import SiteConfig
from client.text.leak_probe import ProbeResult, leak_probe
from client.text.redaction import Span, redact
from client.text.sections import split_report
from common.errors import ConfigError, TableError, closest
from common.sections import Redaction

COLUMN_KEYS: Mapping[str, str] = {
    "report": "report",
    "indication": "indication",
    "findings": "findings_text",
    "impression": "impression",
}
"""Field -> key of ``[columns]`` that names its column."""

Cells = tuple[tuple[str, str], ...]
"""Field and text of the filled cells of a row."""


@dataclass(frozen=True)
class Reports:
    """The rows of a site that its filters keep, one per image."""

    findings: tuple[str, ...]
    path: Text
    patient: Text
    study: Text
    labels: NDArray[np.float32]
    """``[rows, findings]``: 1, 0, NaN not annotated."""
    texts: tuple[Cells, ...]

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: NDArray[np.int64]) -> Reports:
        """Return these rows, in that order."""
        return replace(
            self,
            path=self.path[rows],
            patient=self.patient[rows],
            study=self.study[rows],
            labels=self.labels[rows],
            texts=tuple(self.texts[row] for row in rows),
        )


def read_reports(site: SiteConfig, wanted: Sequence[str] = ()) -> Reports:
    """Read the rows of a site with their text and the labels of everything it annotates.

    Args:
        wanted: Fields to read; empty: those that have a column.

    Raises:
        ConfigError: if a wanted field is unknown.
        TableError: if a column is missing, or no column holds text.
        LabelError: if a label column cannot be used.
    """
    columns, name = read_source(site), site.data.source
    path = column(columns, site.columns.path, "columns.path", name)
    patient = column(columns, site.columns.patient, "columns.patient", name)
    keep = np.ones(len(path), dtype=bool)
    for key, values in site.filter.items():
        keep &= matches(column(columns, key, f"filter.{key}", name), values)
    rows = np.flatnonzero(keep)
    study = np.full(len(path), "", dtype=np.str_)
    if site.columns.study in columns or "study" in site.columns.model_fields_set:
        study = column(columns, site.columns.study, "columns.study", name)
    written = text_columns(columns, site, wanted)
    if not written:
        raise TableError(
            f"{name} has no column of reports",
            found=listing(columns),
            fix="set columns.report, or columns.indication, columns.findings_text and columns.impression",
        )
    findings = annotated_findings(site, columns)
    return Reports(
        findings=findings,
        path=path[rows],
        patient=patient[rows],
        study=study[rows],
        labels=read_labels(columns, rows, site, findings).values,
        texts=tuple(
            tuple((field, str(text[row])) for field, text in written.items() if text[row]) for row in rows
        ),
    )


def text_columns(
    columns: Mapping[str, Text], site: SiteConfig, wanted: Sequence[str] = ()
) -> dict[str, Text]:
    """Return field -> its column of text, of the wanted fields or else of those that have one.

    Raises:
        ConfigError: if a wanted field is unknown.
        TableError: if a column is missing that was asked for, here or by site.toml.
    """
    for field in wanted:
        if field not in COLUMN_KEYS:
            fix = closest(field, COLUMN_KEYS) or f"choose among {', '.join(COLUMN_KEYS)}"
            raise ConfigError(f"{field!r} is not a field of a report", found=field, fix=fix)
    found = {}
    for field, key in COLUMN_KEYS.items():
        named = getattr(site.columns, key)
        if field in wanted or (not wanted and (named in columns or key in site.columns.model_fields_set)):
            found[field] = free_text(columns, named, f"columns.{key}", site.data.source)
    return found


def used_text(cells: Cells, mode: Redaction) -> tuple[str, list[tuple[str, Span]]]:
    """Return the text of a row as a model may read it, and the log: field and deletion.

    A field that the whole report holds under its heading is not taken twice.

    >>> used_text((("report", "FINDINGS: Edema."), ("indication", "Dyspnea.")), "indication")[0]
    'Dyspnea.'
    """
    held = {name for field, text in cells if field == "report" for name in split_report(text)}
    parts: list[str] = []
    log: list[tuple[str, Span]] = []
    for field, text in cells:
        if field not in held:
            left, spans = _redact(text, mode, field)
            log += [(field, span) for span in spans]
            parts += [left] if left else []
    return "\n".join(parts), log


@lru_cache(maxsize=2**12)
def _redact(text: str, mode: Redaction, field: str) -> tuple[str, tuple[Span, ...]]:
    """Redact once what the images of a study share."""
    redacted = redact(text, mode, field=field)
    return redacted.text, redacted.spans


def one_per_study(reports: Reports) -> Reports:
    """Keep the first row of every study that has a patient and text.

    Without a study's name, a patient's rows with the same text are one.
    """
    first: dict[tuple[str, str], int] = {}
    for row, cells in enumerate(reports.texts):
        patient, study = str(reports.patient[row]), str(reports.study[row])
        if patient and cells:
            first.setdefault((patient, study or repr(cells)), row)
    return reports.take(np.fromiter(first.values(), dtype=np.int64))


def probe_modes(
    reports: Reports, modes: Sequence[Redaction], *, seed: int
) -> Iterator[tuple[Redaction, ProbeResult]]:
    """Probe the same studies' text after each mode of redaction; a study left without text counts too.

    Raises:
        DataError: if there are fewer patients than folds.
    """
    studies = one_per_study(reports)
    for mode in modes:
        texts = [used_text(cells, mode)[0] for cells in studies.texts]
        yield mode, leak_probe(texts, studies.labels, studies.patient.tolist(), studies.findings, seed=seed)
