"""Write natural sites of real radiographs as the COVID-19 image data collection publishes its own.

    python tests/e2e/covid_layout.py DATA OUT

DATA holds real_sites/manifest.csv; OUT gets a folder per site with metadata.csv and images/.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

SITES = ("hannover_de", "covid_italy", "covid_uk", "covid_northamerica")

PUBLISHED = (
    "patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated",
    "intubation_present", "went_icu", "in_icu", "needed_supplemental_O2", "extubated", "temperature",
    "pO2_saturation", "leukocyte_count", "neutrophil_count", "lymphocyte_count", "view", "modality",
    "date", "location", "folder", "filename", "doi", "url", "license", "clinical_notes", "other_notes",
)  # fmt: skip
ADDED = {
    "crp": "crp_val",
    "ldh": "ldh_val",
    "d_dimer": "d-dimer_val",
    "oxygen_pressure": "po2_val",
    "carbon_dioxide_pressure": "pco2_val",
}
"""Columns after the published ones -> key of ``clinical_json``."""

_CLINICAL = {
    "intubation_present": ("intubation_present",),
    "in_icu": ("in_icu",),
    "extubated": ("extubated",),
    "temperature": ("temperature",),
    "pO2_saturation": ("pO2_saturation", "spo2"),
    "leukocyte_count": ("leukocyte_count",),
    "neutrophil_count": ("neutrophil_count", "neutrophils_val"),
    "lymphocyte_count": ("lymphocyte_count", "lymphocytes_val"),
    "date": ("date",),
} | {column: (key,) for column, key in ADDED.items()}
_FINDINGS = {
    "COVID-19": "Pneumonia/Viral/COVID-19",
    "SARS": "Pneumonia/Viral/SARS",
    "Mycoplasma Bacterial Pneumonia": "Pneumonia/Bacterial/Mycoplasma",
    "Legionella": "Pneumonia/Bacterial/Legionella",
    "Streptococcus": "Pneumonia/Bacterial/Streptococcus",
    "Pneumocystis": "Pneumonia/Fungal/Pneumocystis",
    "COVID-19 (abnormality not visible)": "No Finding",
    "No Finding": "No Finding",
    "todo": "todo",
}


def write_covid_layout(manifest_root: Path, out: Path) -> Path:
    """Write ``SITE/metadata.csv`` and ``SITE/images`` for the four COVID-19 sites; returns ``out``."""
    source = manifest_root if (manifest_root / "manifest.csv").is_file() else manifest_root / "real_sites"
    with (source / "manifest.csv").open(encoding="utf-8", newline="") as file:
        images = list(csv.DictReader(file))
    for site in SITES:
        _write_site([image for image in images if image["site"] == site], source, out / site)
    return out


def _write_site(images: Iterable[Mapping[str, str]], source: Path, folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*PUBLISHED, *ADDED], restval="")
        writer.writeheader()
        for image in images:
            writer.writerow(_row(image))
            _place(source / image["image"], folder / "images" / Path(image["image"]).name)


def _row(image: Mapping[str, str]) -> dict[str, str]:
    clinical = json.loads(image["clinical_json"] or "{}")
    row = {
        column: next((str(clinical[key]) for key in keys if key in clinical), "")
        for column, keys in _CLINICAL.items()
    }
    # COVID-19 without the mention of a pneumonia is a test, not something seen.
    seen = image["lab_pneumonia"] != "" or image["lab_covid"] != "1"
    return row | {
        "patientid": image["patient_id"],
        "offset": image["offset_days"],
        "sex": image["sex"],
        "age": image["age"],
        "finding": _FINDINGS[image["finding_raw"]] if seen else "Unknown",
        "RT_PCR_positive": "Y" if image["lab_covid"] == "1" else "",
        "survival": _answer(image["out_survived"]),
        "intubated": _answer(image["out_intubated"]),
        "went_icu": _answer(image["out_icu"]),
        "needed_supplemental_O2": _answer(image["out_supplemental_o2"]),
        "view": image["view"],
        "modality": "X-ray",
        "location": image["country"],
        "folder": "images",
        "filename": Path(image["image"]).name,
        "url": image["orig_url"],
        "license": image["license"],
        "clinical_notes": image["report_text"],
    }


def _answer(flag: str) -> str:
    return {"1": "Y", "0": "N", "": ""}[flag]


def _place(image: Path, target: Path) -> None:
    """Link the file itself, not its name: a site refuses symbolic links that leave its folder."""
    target.unlink(missing_ok=True)
    try:
        os.link(image, target)
    except OSError:
        shutil.copyfile(image, target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/e2e/covid_layout.py DATA OUT")
    write_covid_layout(Path(sys.argv[1]), Path(sys.argv[2]))
