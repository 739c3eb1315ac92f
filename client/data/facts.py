"""What an image file says about itself. Patient data: it stays at the site."""

from __future__ import annotations

from typing import Literal, NamedTuple

BurnedIn = Literal["refuse", "require-no", "accept"]
"""What becomes of a DICOM file by its Burned In Annotation (PS3.3 C.7.6.1): ``refuse`` sets YES
aside, ``require-no`` also a file that does not say, ``accept`` takes all."""


class Facts(NamedTuple):
    """Facts of one file, '' where it does not tell; all but the hashes come from a DICOM header."""

    reason: str = ""
    """Why the file cannot be used, a code of `client.data.reasons`; '' if it can."""
    view: str = ""
    """PA, AP, L, LL, RL ..., upper case."""
    patient: str = ""
    study: str = ""
    """Study Instance UID."""
    instance: str = ""
    """SOP Instance UID."""
    accession: str = ""
    sex: str = ""
    """M or F."""
    age: str = ""
    """DICOM Age String, such as 061Y."""
    scanner: str = ""
    """Manufacturer and model."""
    sha256: str = ""
    """Of the file's bytes, 64 hex digits."""
    phash: str = ""
    """256-bit perceptual hash of the picture, 64 hex digits."""
