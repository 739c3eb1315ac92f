"""Images without labels beside a simulated site's studies: of other patients, of this or another modality."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import tomli_w

from common.files import write_atomic
from common.overrides import read_toml
from common.seeds import derive
from simulations.phantom.cases import Population, sample_cases
from simulations.phantom.modality import Modality, draw_pictures
from simulations.phantom.report import write_reports
from simulations.phantom.scanner import apply_scanner
from simulations.phantom.site import find_scanner, png

SEEDS = 1_000_000_000
"""Seeds from here on belong to the pretraining of the embedded weights."""
_TABLE = "unlabelled.csv"
_BATCH = 256


def write_unlabelled(
    site: Path,
    *,
    n: int,
    seed: int,
    size: int,
    scanner: str,
    population: Population,
    modality: Modality,
    workers: int = 1,
) -> None:
    """Write ``n`` pictures and their table beside ``site.toml``, and name them there in ``[unlabelled]``.

    They come from patients of their own and pass the site's own scanner; radiographs have reports.

    Raises:
        ConfigError: if the scanner is unknown.
    """
    folder, machine = site.parent, find_scanner(scanner)
    (folder / "unlabelled").mkdir(parents=True, exist_ok=True)
    cases = sample_cases(n, seed=derive(seed, "unlabelled") % SEEDS, population=population)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "patient", "study", "view", "indication", "findings", "impression"])
    for start in range(0, n, _BATCH):
        part = cases.take(np.arange(start, min(start + _BATCH, n)))
        pictures = draw_pictures(modality, part, size, workers=workers)
        stored = apply_scanner(pictures, machine, seed=part.seed, index=part.index)
        reports = write_reports(part) if modality == "chest" else [None] * len(part)
        for row, (image, report) in enumerate(zip(stored, reports, strict=True)):
            number = int(part.index[row])
            path = f"unlabelled/U{number:06d}.png"
            (folder / path).write_bytes(png(image, machine))
            view = str(part.view[row]) if modality == "chest" else ""
            words = (report.indication, report.findings, report.impression) if report else ("", "", "")
            patient = f"PHANTOM-U{int(part.patient[row]):05d}"
            writer.writerow([path, patient, f"U{number:06d}", view, *words])
    write_atomic(folder / _TABLE, text.getvalue().encode())
    body = read_toml(site)
    body["unlabelled"] = {"table": _TABLE, "views": "any"}
    write_atomic(site, tomli_w.dumps(body).encode())
