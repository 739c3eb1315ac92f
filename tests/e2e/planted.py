"""Plant strings that name patients everywhere a hospital's export can hold them."""

from __future__ import annotations

import csv
from pathlib import Path

import pydicom


def plant_in_table(folder: Path, tag: str, count: int) -> list[str]:
    """Rename pictures, patients and studies, and fill report and comment cells; returns the strings."""
    file = folder / "studies.csv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    planted: list[str] = []

    def token(kind: str) -> str:
        planted.append(f"{tag}{kind}{len(planted):03d}Zwicky")
        return planted[-1]

    patients: dict[str, str] = {}
    for number, row in enumerate(rows):
        if len(planted) < count:
            old = folder / row["path"]
            new = old.with_name(f"{token('file')}{old.suffix}")
            old.rename(new)
            row["path"] = str(new.relative_to(folder))
            row["patient"] = patients.setdefault(row["patient"], token("patient"))
            row["report"] = f"Seen by Dr {token('doctor')}: no effusion, patient {row['patient']}."
            row["comment"] = token("comment")
        else:
            row["patient"] = patients.get(row["patient"], row["patient"])
            row["report"] = row.get("report", "")
            row["comment"] = ""
        if number == 3:  # an unreadable picture: its words name the file
            (folder / row["path"]).write_bytes(b"not a picture of " + token("broken").encode())
        if number == 5:  # a label nobody can read: its words name the cell
            row["effusion"] = token("cell")
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        writer.writerows(rows)
    return planted


def plant_in_headers(folder: Path, tag: str, count: int) -> list[str]:
    """Give DICOM files names, birth places, institutions and physicians; returns the strings."""
    planted: list[str] = []
    for file in sorted(folder.rglob("*.dcm")):
        if len(planted) >= count:
            break
        data = pydicom.dcmread(file)
        for keyword in (
            "PatientName", "ReferringPhysicianName", "InstitutionName", "PatientComments", "StationName",
        ):  # fmt: skip
            planted.append(f"{tag}{len(planted):03d}Zw"[:16])
            setattr(data, keyword, planted[-1])
        data.save_as(file)
    return planted
