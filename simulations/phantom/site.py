"""Writing a hospital to disk: pictures, a table with its gaps and errors, and ``site.toml``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import ConfigError, closest
from simulations.phantom.cases import FINDINGS, Cases, Population, sample_cases
from simulations.phantom.dicom import Header, encode
from simulations.phantom.render import render
from simulations.phantom.report import write_reports
from simulations.phantom.scanner import SCANNERS, Scanner, apply_scanner

Format = Literal["png", "dicom"]
_BATCH = 256
"""Studies drawn at a time, which bounds memory."""


def write_site(
    folder: Path,
    *,
    name: str,
    n: int,
    seed: int,
    size: int = 128,
    scanner: Scanner | str,
    population: Population | None = None,
    owned: Sequence[str] | None = None,
    format: Literal["png", "dicom"] = "png",
    label_noise: float = 0.0,
    missing_labels: float = 0.0,
    uncertain: float = 0.0,
    workers: int = 1,
) -> Path:
    """Write ``n`` studies and return the path of ``site.toml``; the same arguments, the same bytes.

    Only ``owned`` findings get a column. Of their labels, the share ``label_noise`` is flipped,
    then ``uncertain`` becomes -1 and ``missing_labels`` becomes empty. PNG files show what a
    viewer would, 8-bit, or 16-bit where the scanner stores more; DICOM files keep the stored
    values, inverted ones included.

    Raises:
        ConfigError: if the scanner, a finding or the format is unknown, or a share is outside [0, 1].
    """
    machine = find_scanner(scanner) if isinstance(scanner, str) else scanner
    columns = check_findings(FINDINGS if owned is None else owned)
    if format not in ("png", "dicom"):
        raise ConfigError(f"format {format!r} is not written", found=str(format), fix='use "png" or "dicom"')
    shares = {"label_noise": label_noise, "missing_labels": missing_labels, "uncertain": uncertain}
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(
                f"{key} must lie in [0, 1]", found=f"{share:g}", fix="give a share, such as 0.05"
            )
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    cases = sample_cases(n, seed=seed, population=population)
    paths: list[str] = []
    for start in range(0, n, _BATCH):
        part = cases.take(np.arange(start, min(start + _BATCH, n)))
        paths += _write_images(folder, part, machine, format, name, size, workers)
    labels = _annotate(cases, columns, **shares)
    _write_table(folder / "studies.csv", cases, paths, columns, labels)
    site = folder / "site.toml"
    _replace(site, _describe(name, columns, uncertain > 0).encode())
    return site


def find_scanner(name: str) -> Scanner:
    """Look a preset up by name.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in SCANNERS:
        known = ", ".join(SCANNERS)
        hint = closest(name, SCANNERS)
        raise ConfigError(
            f"scanner {name!r} is not known", found=name, fix=f"{hint}; one of {known}".removeprefix("; ")
        )
    return SCANNERS[name]


def check_findings(names: Sequence[str]) -> tuple[str, ...]:
    """Return the findings in the usual order.

    Raises:
        ConfigError: if one cannot be simulated, is repeated, or there is none.
    """
    for name in names:
        if name not in FINDINGS:
            known = f"one of {', '.join(FINDINGS)}"
            raise ConfigError(
                f"finding {name!r} cannot be simulated",
                found=name,
                fix=f"{closest(name, FINDINGS)}; {known}".removeprefix("; "),
            )
    if len(set(names)) != len(names) or not names:
        raise ConfigError(
            "a site needs findings, each once", found=", ".join(names) or "none", fix="list them once each"
        )
    return tuple(name for name in FINDINGS if name in names)


def _write_images(
    folder: Path, cases: Cases, machine: Scanner, format: Format, site: str, size: int, workers: int
) -> list[str]:
    pixels = apply_scanner(render(cases, size, workers=workers), machine, seed=cases.seed, index=cases.index)
    paths = []
    for row, image in enumerate(pixels):
        study = _study(int(cases.index[row]))
        if format == "dicom":
            header = Header(
                site=site,
                seed=cases.seed,
                patient=_patient(int(cases.patient[row])),
                study=study,
                view=str(cases.view[row]),
                age=int(cases.age[row]),
                female=bool(cases.female[row]),
            )
            path, content = f"images/{study}.dcm", encode(image, machine, header)
        else:
            path, content = f"images/{study}.png", png(image, machine)
        _replace(folder / path, content)
        paths.append(path)
    return paths


def png(image: NDArray[np.uint8] | NDArray[np.uint16], machine: Scanner) -> bytes:
    """Encode stored values as a viewer would show them, with 8 or 16 bits."""
    top = 2**machine.bits - 1
    shown = top - image if machine.inverted else image
    if machine.bits > 8:
        shown = np.round(shown * (65535 / top)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def _annotate(
    cases: Cases, columns: Sequence[str], *, label_noise: float, missing_labels: float, uncertain: float
) -> NDArray[np.str_]:
    """Return cells ``[n, columns]``: "1", "0", "-1" or empty.

    Draws for every finding, so that a site owning fewer has the same errors in those it owns.
    """
    u = np.random.default_rng([cases.seed, 31]).random((len(cases), 3, len(FINDINGS)))
    values = cases.labels.astype(np.int8)
    values = np.where(u[:, 0] < label_noise, 1 - values, values)
    cells = np.where(u[:, 1] < uncertain, -1, values).astype("U2")
    cells[u[:, 2] < missing_labels] = ""
    return cells[:, [FINDINGS.index(name) for name in columns]]


def _write_table(
    path: Path, cases: Cases, paths: Sequence[str], columns: Sequence[str], labels: NDArray[np.str_]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["path", "patient", "study", "view", "age", "sex", *columns, "indication", "findings", "impression"]
    )
    for row, report in enumerate(write_reports(cases)):
        writer.writerow(
            [
                paths[row],
                _patient(int(cases.patient[row])),
                _study(int(cases.index[row])),
                cases.view[row],
                int(cases.age[row]),
                "F" if cases.female[row] else "M",
                *labels[row],
                report.indication,
                report.findings,
                report.impression,
            ]
        )
    _replace(path, text.getvalue().encode())


def _patient(number: int) -> str:
    return f"PHANTOM-{number:05d}"


def _study(number: int) -> str:
    return f"S{number:06d}"


def _describe(name: str, columns: Sequence[str], unsure: bool) -> str:
    lines = [
        "# A simulated site: every picture is a phantom, no patient is behind it.",
        f'name = "{name}"',
        "",
        "# Where the table is, and the folder its image paths start from; both relative to this file.",
        "[data]",
        'table = "studies.csv"',
        'root = "."',
        "",
        "# The table's column for each thing the site knows about a study.",
        "[columns]",
        *(f'{key} = "{key}"' for key in ("path", "patient", "study", "view", "age", "sex")),
        "",
        "# Findings annotated here, and their columns: 1 present, 0 absent, -1 unsure, empty unknown.",
        "[labels]",
        *(f'{key} = "{key}"' for key in columns),
    ]
    if unsure:
        lines += [
            "",
            "# What to make of -1: ignore it, or take it for ones or zeros.",
            "[uncertainty]",
            *(f'{key} = "ignore"' for key in columns),
        ]
    return "\n".join(lines) + "\n"


def _replace(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    partial.replace(path)
