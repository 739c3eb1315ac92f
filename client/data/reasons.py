"""Why a study is set aside: a closed list of codes, safe to count and to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from common.errors import ImageError

Reason = Literal[
    "path",
    "missing",
    "not-a-file",
    "not-an-image",
    "truncated",
    "too-large",
    "too-deep",
    "dimensions",
    "decode",
    "unsupported-syntax",
    "modality",
    "colour",
    "multi-frame",
    "burned-in",
    "memory",
    "timeout",
    "crashed",
    "no-patient",
    "label-value",
    "conflict",
    "near-duplicate",
    "duplicate",
    "unknown-view",
    "view",
]


class Cause(NamedTuple):
    """What a code means and what a person can do about it."""

    meaning: str
    remedy: str
    fault: bool = True
    """Counts towards ``data.max_quarantined``; otherwise the study is merely not asked for."""


CAUSES: Mapping[str, Cause] = {
    "path": Cause(
        "the path is absolute, holds '..' or NUL, or leads out of data.root, also by a symbolic link",
        "write paths relative to data.root, or move the files under it",
    ),
    "missing": Cause("there is no such file, or it cannot be opened", "mount the share; check its rights"),
    "not-a-file": Cause("a pipe, a device, a socket or a folder, not a file", "point the row to the image"),
    "not-an-image": Cause("neither DICOM nor PNG nor JPEG, whatever its name says", "export it again"),
    "truncated": Cause("the file ends before its pixels do", "copy or export it again"),
    "too-large": Cause(
        "more pixels or bytes than any radiograph has, also once inflated", "export it again, or leave it out"
    ),
    "too-deep": Cause("sequences nested deeper than any real header", "export it without private tags"),
    "dimensions": Cause("the header's rows and columns are not those of the pixels", "export it again"),
    "decode": Cause("the decoder stopped: the pixels or the header are damaged", "export it again"),
    "unsupported-syntax": Cause(
        "no decoder for this transfer syntax is installed", "export it uncompressed or as JPEG 2000"
    ),
    "modality": Cause("not a radiograph for presentation (CR, DX): CT, MR, a report ...", "leave it out"),
    "colour": Cause("a colour picture: a screenshot, an overlay, a photograph", "export the original"),
    "multi-frame": Cause("several frames or pictures in one file", "export single images"),
    "burned-in": Cause(
        "letters may be burnt into the pixels (BurnedInAnnotation), as data.burned_in forbids",
        "clean the image, or change data.burned_in once you have looked",
    ),
    "memory": Cause("decoding took more memory than a worker may have", "export it again, or leave it out"),
    "timeout": Cause("decoding took longer than a worker may take", "export it again, or leave it out"),
    "crashed": Cause("the decoder crashed on this file; nothing else was affected", "export it again"),
    "no-patient": Cause("neither the table nor the file says whose image it is", "fill in columns.patient"),
    "label-value": Cause(
        "a label cell is not 1, 0, -1 or empty",
        "recode the cell, or list the words that mean present and absent",
    ),
    "conflict": Cause(
        "the same image stands in several rows that disagree on the patient or a label",
        "find out which row is right; all of them are set aside",
    ),
    "near-duplicate": Cause(
        "almost the same picture as an earlier study of another patient", "find out whose it is"
    ),
    "duplicate": Cause("the same picture as an earlier row, used once", "nothing", fault=False),
    "unknown-view": Cause("neither the table nor the file says which view it is", "fill in columns.view"),
    "view": Cause("a view that data.views does not ask for, such as a lateral", "nothing", fault=False),
}

MAX_PIXELS = 40_000_000
"""Rows x columns above which an image is refused unread; the largest detectors have 18 million."""
MAX_BYTES = 256 * 2**20
"""File size, also once inflated, above which an image is refused unread."""


class RefusedImage(ImageError):  # noqa: N818  (an image we count, not a fault)
    """An image that cannot be used. The text holds no name, path or value of the file's."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(f"{reason}: {problem}")
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (RefusedImage, (self.reason, self.problem.removeprefix(f"{self.reason}: ")))
