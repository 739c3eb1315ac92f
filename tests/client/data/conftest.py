"""Small images and sites, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from client.data.workers import Workers
from client.site import SiteConfig, load_site

PLANTED = ("Doe^Jane", "MRN-77231", "77231")
"""A name and identifiers that must never show up in a message."""


def gradient(height: int = 24, width: int = 20, top: int = 255) -> NDArray[np.uint16]:
    """Make a picture that is unlike its mirror image and its transpose."""
    ramp = np.linspace(0, top, height * width).reshape(height, width)
    ramp[: height // 4, : width // 4] = top
    ramp[-1, -1] = 0
    return ramp.astype(np.uint16)


@pytest.fixture
def make_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Write a CR image; keyword arguments set or (None) remove elements."""

    def make(
        stored: NDArray[Any], name: str = "image.dcm", syntax: str = ExplicitVRLittleEndian, **elements: Any
    ) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SOPClassUID = ComputedRadiographyImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.PatientName, dataset.PatientID = PLANTED[0], PLANTED[1]
        dataset.Modality = "CR"
        dataset.Rows, dataset.Columns = stored.shape
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = stored.dtype.itemsize * 8
        dataset.BitsStored = 12 if stored.dtype.itemsize == 2 else 8
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
        for key, value in elements.items():
            if value is None:
                delattr(dataset, key)
            else:
                setattr(dataset, key, value)
        path = tmp_path / name
        dataset.save_as(path, enforce_file_format=True)
        return path

    return make


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., SiteConfig]:
    """Write a site of PNGs with a table and site.toml; returns its settings.

    ``rows`` gives the table; a ``path`` column is added, with an image for each row.
    """

    def make(rows: dict[str, list[Any]], toml: str = "", *, images: bool = True) -> SiteConfig:
        frame = pd.DataFrame(rows)
        if "path" not in frame:
            frame["path"] = [f"images/{i:03d}.png" for i in range(len(frame))]
        if images:
            (tmp_path / "images").mkdir(exist_ok=True)
            for i, path in enumerate(frame["path"]):
                pixels = np.full((20, 24), (i * 7) % 256, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / str(path))
        frame.to_csv(tmp_path / "studies.csv", index=False)
        head = 'name = "north"\n'
        if "[data]" not in toml:
            head += '[data]\ntable = "studies.csv"\n'
        (tmp_path / "site.toml").write_text(head + toml)
        return load_site(tmp_path / "site.toml")

    return make


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write small pictures of noise under names that tell the workers what to do."""

    def make(*names: str) -> list[Path]:
        paths = []
        for i, name in enumerate(names):
            noise = np.random.default_rng(i).integers(0, 256, (40 + i, 50)).astype(np.uint8)
            paths.append(tmp_path / f"{name}.png")
            Image.fromarray(noise).save(paths[-1])
        return paths

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files decoded since the test began."""
    seen: list[str] = []
    real = Workers.read

    def spy(self: Workers, paths: Iterable[Path], *how: Any) -> Any:
        wanted = list(paths)
        seen.extend(path.name for path in wanted)
        return real(self, wanted, *how)

    monkeypatch.setattr(Workers, "read", spy)
    return seen


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as pair:
        yield pair


@pytest.fixture
def draw() -> Callable[..., NDArray[np.uint16]]:
    return gradient


@pytest.fixture
def planted() -> tuple[str, ...]:
    return PLANTED
