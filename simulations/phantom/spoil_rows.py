"""What goes wrong between the table and the disk: paths, labels, patients and images told twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from simulations.phantom.spoil_dicom import plain, radiograph, save
from simulations.phantom.spoil_pictures import jpeg, png
from simulations.phantom.spoiled import PLANTED, Code, Spoiled, Study

_LEADING_OUT = (
    "", "../outside/secret.png", "rows/../../outside/secret.png", "/etc/passwd", "C:\\images\\1.png",
    "rows/nul\0.png",
)  # fmt: skip
"""Paths that are none, leave data.root, or end sooner for C than for Python."""

SINGLE_CLASS = "fracture"
"""A finding of which the site has no positive."""
UNSURE = "effusion"
"""The finding whose -1 has a policy."""


def rows(studies: Iterator[Study]) -> Iterator[Spoiled]:
    """Yield the part of the catalogue that no single file's bytes make."""
    yield from _paths(studies)
    yield from _names(studies)
    yield from _cells(studies)
    yield from _repeated(studies)


def _paths(studies: Iterator[Study]) -> Iterator[Spoiled]:
    for path in _LEADING_OUT:
        yield Spoiled(path, "path", next(studies))
    yield Spoiled("rows/leads-out.png", "path", next(studies), _link("../../outside/secret.png"))
    yield Spoiled("rows/folder-leads-out/secret.png", "path", next(studies), _link_folder)
    yield Spoiled("rows/nowhere.png", "missing", next(studies))
    yield Spoiled("rows/leads-nowhere.png", "missing", next(studies), _link("gone.png"))
    yield Spoiled("rows/folder.dcm", "not-a-file", next(studies), Path.mkdir)
    yield Spoiled("rows/pipe.dcm", "not-a-file", next(studies), os.mkfifo)
    study = next(studies)
    yield Spoiled("rows/leads-inside.png", "", study, _link("../store/7.png", png(study.pixels)))


def _link(target: str, content: bytes | None = None) -> Callable[[Path], None]:
    """Make a symbolic link, and what it leads to if that is given."""

    def make(path: Path) -> None:
        path.symlink_to(target)
        if content is not None:
            led_to = path.parent / target
            led_to.parent.mkdir(exist_ok=True)
            led_to.write_bytes(content)

    return make


def _link_folder(path: Path) -> None:
    if not path.parent.is_symlink():
        path.parent.rmdir()
        path.parent.symlink_to("../../outside")


_NAMES = (
    "two  words.png", "a new\nline.png", "a,comma.png", 'a "quote".png', "<b onclick=alert(1)>.png",
    "=cmd|' !A1.png", "--help.png", "%s {0} $HOME `id`.png", "Röntgen 胸部 ☢.png", "\u202egnp.dcm",
    "[red]markup[.png", "no-suffix", f"{PLANTED}^Jane 1961.png", "x" * 200 + ".png",
)  # fmt: skip
"""Legal file names that break careless code: all of these images are sound."""


def _names(studies: Iterator[Study]) -> Iterator[Spoiled]:
    for name in _NAMES:
        study = next(studies)
        yield Spoiled(f"names/{name}", "", study, png(study.pixels))


_CELLS: Mapping[str, tuple[Code, Mapping[str, str]]] = {
    "unsure": ("", {UNSURE: "-1"}),
    "label-nan": ("", {"edema": "NaN", UNSURE: "nan"}),
    "label-empty": ("", {"edema": "", UNSURE: " "}),
    "label-as-float": ("", {"edema": "1.0"}),
    "odd-age-and-sex": ("", {"age": f"{PLANTED} 61", "sex": "?"}),
    "view-in-lower-case": ("", {"view": "pa"}),
    "label-maybe": ("label-value", {"edema": "maybe"}),
    "label-is-a-name": ("label-value", {"edema": PLANTED}),
    "label-2": ("label-value", {"edema": "2"}),
    "label-infinite": ("label-value", {"edema": "inf"}),
    "nobody": ("no-patient", {"patient": ""}),
    "lateral": ("view", {"view": "LATERAL"}),
    "no-view": ("unknown-view", {"view": ""}),
}


def _cells(studies: Iterator[Study]) -> Iterator[Spoiled]:
    for name, (code, cells) in _CELLS.items():
        study = next(studies)
        yield Spoiled(f"cells/{name}.png", code, study, png(study.pixels), cells)
    study = next(studies)
    yield Spoiled("cells/named-by-its-header.dcm", "", study, plain(study), {"patient": ""})
    study = next(studies)
    nobody = save(radiograph(study, PatientID="", PatientName=""))
    yield Spoiled("cells/nobody.dcm", "no-patient", study, nobody, {"patient": ""})


def _repeated(studies: Iterator[Study]) -> Iterator[Spoiled]:
    study = next(studies)
    yield Spoiled("repeated/1.png", "", study, png(study.pixels))
    yield Spoiled("repeated/1-copy.png", "duplicate", study, png(study.pixels))
    yield Spoiled("repeated/1.png", "duplicate", study)
    study = next(studies)
    for edema in "01":
        yield Spoiled("repeated/2.png", "conflict", study, png(study.pixels), {"edema": edema})
    study = next(studies)
    # One SOP Instance UID, two files: the second was annotated by someone else.
    for note, edema in (("first", "0"), ("second", "1")):
        content = save(radiograph(study, ImageComments=note))
        yield Spoiled(f"repeated/3-{note}.dcm", "conflict", study, content, {"edema": edema})
    study, other = next(studies), next(studies)
    for number, owner in enumerate((study, other)):
        content = png(study.pixels)
        yield Spoiled(f"repeated/4-{number}.png", "conflict", owner, content)
    study, other = next(studies), next(studies)
    yield Spoiled("repeated/5.png", "", study, png(study.pixels))
    yield Spoiled("repeated/5-resized.jpg", "near-duplicate", other, jpeg(_resized(study), quality=90))


def _resized(study: Study) -> np.ndarray:
    side = round(study.pixels.shape[0] * 1.02)
    return np.asarray(Image.fromarray(study.pixels).resize((side, side), Image.Resampling.BICUBIC))
