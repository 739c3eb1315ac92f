"""A site on disk: readable, repeatable, and silent about what it does not own."""

import csv
import tomllib
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image

from common.errors import ConfigError
from simulations.make_site import make_site
from simulations.phantom.cases import sample_cases
from simulations.phantom.render import render
from simulations.phantom.scanner import SCANNERS, apply_scanner
from simulations.phantom.site import write_site


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def table(folder):
    with (folder / "studies.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_arguments_same_bytes(tmp_path):
    for form in ("png", "dicom"):
        for name in ("a", "b"):
            write_site(
                tmp_path / form / name, name="north", n=5, seed=3, size=48, scanner="portable", format=form
            )
        assert content(tmp_path / form / "a") == content(tmp_path / form / "b")
        write_site(tmp_path / form / "a", name="north", n=5, seed=3, size=48, scanner="portable", format=form)
        assert content(tmp_path / form / "a") == content(tmp_path / form / "b")


def test_site_toml_points_at_what_is_there(tmp_path):
    path = write_site(
        tmp_path,
        name="north",
        n=6,
        seed=3,
        size=48,
        scanner="cr_plate",
        owned=("edema", "effusion"),
        uncertain=0.3,
    )
    site = tomllib.loads(path.read_text())
    assert site["name"] == "north" and site["data"] == {"table": "studies.csv", "root": "."}
    assert site["labels"] == {"effusion": "effusion", "edema": "edema"}
    assert site["uncertainty"] == {"effusion": "ignore", "edema": "ignore"}
    rows = table(tmp_path)
    assert set(site["columns"].values()) <= set(rows[0])
    assert "cardiomegaly" not in rows[0] and "nodule" not in rows[0]
    for row in rows:
        with Image.open(tmp_path / row["path"]) as image:
            pixels = np.asarray(image)
        assert pixels.shape == (48, 48) and pixels.dtype == np.uint16 and pixels.max() > 30_000


def test_labels_carry_noise_gaps_and_doubt(tmp_path):
    write_site(
        tmp_path, name="s", n=300, seed=5, size=32, scanner="reference", owned=("effusion",),
        label_noise=0.1, missing_labels=0.2, uncertain=0.1,
    )  # fmt: skip
    cells = np.array([row["effusion"] for row in table(tmp_path)])
    truth = sample_cases(300, seed=5).labels[:, 1]
    assert np.mean(cells == "") == pytest.approx(0.2, abs=0.06)
    assert np.mean(cells == "-1") == pytest.approx(0.08, abs=0.05)
    known = np.isin(cells, ["0", "1"])
    assert np.mean(cells[known].astype(int) != truth[known]) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("scanner", ["reference", "old_film", "flat_panel", "inverted_dr"])
def test_dicom_round_trip(tmp_path, scanner):
    machine = SCANNERS[scanner]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_site(tmp_path, name="s", n=3, seed=9, size=40, scanner=scanner, format="dicom")
        cases = sample_cases(3, seed=9)
        wanted = apply_scanner(render(cases, 40), machine, seed=9, index=cases.index)
        for row, record in enumerate(table(tmp_path)):
            ds = pydicom.dcmread(tmp_path / record["path"])
            np.testing.assert_array_equal(ds.pixel_array, wanted[row])
            assert ds.PhotometricInterpretation == ("MONOCHROME1" if machine.inverted else "MONOCHROME2")
            assert ds.BitsStored == machine.bits and ds.Modality == machine.modality
            assert ds.ViewPosition == record["view"] and ds.PatientID == record["patient"]
            assert str(ds.PatientName) == record["patient"].replace("-", "^")
            assert ds.PatientSex == record["sex"] and int(ds.PatientAge[:3]) == int(record["age"])
            assert "Laterality" not in ds and ds.BurnedInAnnotation == "NO"
            assert ds.SOPInstanceUID.is_valid and ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_one_patient_one_sex(tmp_path):
    write_site(tmp_path, name="s", n=40, seed=2, size=32, scanner="reference")
    seen = {}
    for row in table(tmp_path):
        assert seen.setdefault(row["patient"], row["sex"]) == row["sex"]
    assert len(seen) < 40


def test_make_site_explains_itself(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'portable'"):
        make_site(tmp_path / "x", "north", 3, 1, scanner="portabel")
    with pytest.raises(ConfigError, match="did you mean 'effusion'"):
        make_site(tmp_path / "x", "north", 3, 1, findings=["effusoin"])
    with pytest.raises(ConfigError, match="png or dicom"):
        make_site(tmp_path / "x", "north", 3, 1, format="jpeg")
    with pytest.raises(ConfigError, match="at least one study"):
        make_site(tmp_path / "x", "north", 0, 1)
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_site(tmp_path / "full", "north", 3, 1)
    path = make_site(tmp_path / "x", "north", 3, 1, size=32, findings=["effusion"], prevalence=0.2)
    assert path == tmp_path / "x" / "site.toml" and len(table(tmp_path / "x")) == 3
