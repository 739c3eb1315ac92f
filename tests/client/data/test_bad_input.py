"""Every file and every site of the catalogue of bad input gets the code that the catalogue says."""

from __future__ import annotations

import csv
import logging
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ImplicitVRLittleEndian, JPEGBaseline8Bit

from client.data.index import index_site
from client.data.reasons import CAUSES
from client.data.workers import shared_workers
from client.site import load_site
from common.errors import FedcxrError
from simulations.make_site import make_site
from simulations.phantom import spoil_dicom, spoil_pictures
from simulations.phantom.spoil import LEAST_SOUND, spoiled_studies
from simulations.phantom.spoil_sites import BROKEN
from simulations.phantom.spoiled import PLANTED, Spoiled, Study, draw_studies

SIDE = 64

OF_ROWS = {"no-patient", "label-value", "conflict", "near-duplicate", "duplicate", "unknown-view", "view"}
"""Codes that a file gets for what the table or another file says: by itself it is sound."""


@pytest.fixture(scope="module")
def catalogue() -> list[Spoiled]:
    return spoiled_studies(seed=1, size=SIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spoiled site."""
    place = tmp_path_factory.mktemp("spoilt")
    make_site(place, "spoilt", LEAST_SOUND, seed=0, size=SIDE, spoil=True)
    return place


def test_every_file_gets_its_code(catalogue: list[Spoiled], tmp_path: Path) -> None:
    files = [study for study in catalogue if isinstance(study.content, bytes)]
    paths = [tmp_path / str(i) for i in range(len(files))]
    for study, path in zip(files, paths, strict=True):
        path.write_bytes(study.content)  # type: ignore[arg-type]
    results = shared_workers().read(paths, SIDE, "crop", "require-no")
    wrong = {
        study.path: (study.code, facts.reason)
        for study, (facts, _) in zip(files, results, strict=True)
        if facts.reason != ("" if study.code in OF_ROWS else study.code)
    }
    assert not wrong


def test_sound_pictures_stay_what_they_are(catalogue: list[Spoiled], tmp_path: Path) -> None:
    """However it is stored, the picture is the phantom it was drawn as."""
    for study in catalogue:
        if study.code == "" and study.path.startswith(("dicom/", "pictures/")):
            (tmp_path / "image").write_bytes(study.content)  # type: ignore[arg-type]
            ((_, pixels),) = shared_workers().read([tmp_path / "image"], SIDE, "crop", "require-no")
            drawn = study.study.pixels.astype(float)
            assert pixels is not None, study.path
            assert np.corrcoef(pixels.ravel(), drawn.ravel())[0, 1] > 0.99, study.path


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("rows/folder.dcm", "not-a-file"),
        ("rows/pipe.dcm", "not-a-file"),
        ("rows/nowhere.png", "missing"),
        ("rows/leads-nowhere.png", "missing"),
        ("rows/nul\0.png", "path"),
    ],
)
def test_what_is_no_file(folder: Path, path: str, code: str) -> None:
    ((facts, pixels),) = shared_workers().read([folder / "images" / path], SIDE, "crop", "refuse")
    assert (facts.reason, pixels) == (code, None)


def many_elements(study: Study) -> bytes:
    private = b"".join(struct.pack("<HH2sH", 9, 0x1000 + i, b"LO", 0) for i in range(50_000)) * 3
    return spoil_dicom.plain(study).replace(b"\x10\x00\x10\x00PN", private + b"\x10\x00\x10\x00PN", 1)


def many_windows(study: Study) -> bytes:
    whole = spoil_dicom.save(spoil_dicom.radiograph(study), ImplicitVRLittleEndian)
    centre = b"\x28\x00\x50\x10\x04\x00\x00\x00"
    values = b"128\\" * 200_000
    return whole.replace(centre + b"128 ", centre[:4] + struct.pack("<I", len(values)) + values, 1)


def many_fragments(study: Study) -> bytes:
    whole = spoil_dicom.wrapped(study, spoil_pictures.jpeg(study.pixels), JPEGBaseline8Bit)
    item = b"\xfe\xff\x00\xe0"
    start = whole.index(item, whole.index(item) + 1)  # behind the offset table
    return whole[:start] + (item + bytes(4)) * 300_000 + whole[start:]


def text_bomb(study: Study) -> bytes:
    whole, text = spoil_pictures.png(study.pixels), b"Comment\0\0" + zlib.compress(bytes(2**28))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


@pytest.mark.parametrize(
    ("build", "code"),
    [(many_elements, "too-large"), (many_windows, ""), (many_fragments, ""), (text_bomb, "decode")],
)
def test_what_is_small_and_asks_for_much(tmp_path: Path, build: Callable[[Study], bytes], code: str) -> None:
    (study,) = draw_studies(1, seed=4, size=SIDE)
    (tmp_path / "image").write_bytes(build(study))
    since = time.monotonic()
    ((facts, _),) = shared_workers().read([tmp_path / "image"], SIDE, "crop", "require-no")
    assert facts.reason == code
    assert time.monotonic() - since < 10


def test_a_view_that_grows_when_it_is_written_in_capitals(tmp_path: Path) -> None:
    (study,) = draw_studies(1, seed=3, size=SIDE)
    ds = spoil_dicom.radiograph(study, SpecificCharacterSet="ISO_IR 100")
    ds.add_new("ViewPosition", "LO", "V" * 64)
    (tmp_path / "image").write_bytes(spoil_dicom.save(ds).replace(b"V" * 64, "ß".encode("latin-1") * 64))
    ((facts, _),) = shared_workers().read([tmp_path / "image"], SIDE, "crop", "refuse")
    assert facts.reason == "" and len(facts.view) <= 64


@pytest.mark.parametrize("case", BROKEN)
def test_every_broken_site_stops_with_its_code(
    folder: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(FedcxrError) as caught:
        index_site(load_site(folder / "broken" / case / "site.toml"))
    told = str(caught.value)
    assert caught.value.code == BROKEN[case][0], told
    assert caught.value.found or caught.value.fix, told
    assert len(told.splitlines()) <= 3 and max(map(len, told.splitlines())) < 200, told
    for text in (told, caplog.text):
        assert PLANTED.lower() not in text.lower() and "S00000" not in text, text


def test_expected_codes_are_written_beside_the_sites(folder: Path) -> None:
    with (folder / "broken" / "expected.csv").open(newline="") as file:
        expected = {row["case"]: row["code"] for row in csv.DictReader(file)}
    assert expected == {case: code for case, (code, _, _) in BROKEN.items()}
    assert {path.name for path in (folder / "broken").iterdir()} == {*BROKEN, "expected.csv"}
    with (folder / "spoiled.csv").open(newline="", encoding="utf-8") as file:
        assert {row["code"] for row in csv.DictReader(file)} <= {"", *CAUSES}
