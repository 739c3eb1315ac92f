"""Our readers against torchxrayvision's on the same real label tables.

Where they differ on purpose, the difference is counted and its reason stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from client.data.columns import Text, numbers
from client.data.public import padchest, vindr
from client.data.public.layouts import LAYOUTS
from client.data.public.openi_reports import read_reports
from client.data.public.published import read_table
from common.errors import LabelError
from common.findings import CHEXPERT_5, canonical, label_matrix

HEAD = 4_000
"""Rows of a large table that the default tier reads; `slow` reads all."""
LARGE = [pytest.param(HEAD, id="head"), pytest.param(None, id="full", marks=pytest.mark.slow)]

Root = Callable[..., Path]


def _theirs(dataset: Any) -> dict[str, NDArray[np.float32]]:
    """Return torchxrayvision's label columns under our names, where we have one."""
    columns = {}
    for name, values in zip(dataset.pathologies, dataset.labels.T, strict=True):
        with suppress(LabelError):
            columns[canonical(str(name))] = values
    return columns


def _values(cells: Text) -> NDArray[np.float64]:
    return numbers(cells)[0]


def test_nih_is_theirs(xrv: ModuleType, real_root: Root) -> None:
    columns = LAYOUTS["nih"](real_root("nih"))
    data = xrv.datasets.NIH_Dataset(".", views=["*"], unique_patients=False)
    assert len(columns["path"]) == len(data) == 112_120
    assert len(set(columns["patient"].tolist())) == data.csv.patientid.nunique() == 30_805
    assert Counter(columns["view"].tolist()) == Counter(data.csv["view"])
    assert [path.split("/")[1] for path in columns["path"].tolist()] == data.csv["Image Index"].tolist()
    theirs = _theirs(data)
    assert len(theirs) == 14
    for finding, values in theirs.items():
        np.testing.assert_array_equal(_values(columns[finding]), values, err_msg=finding)


@pytest.mark.parametrize("rows", LARGE)
def test_chexpert_keeps_what_they_turn_into_nan_and_zero(
    xrv: ModuleType, real_root: Root, rows: int | None
) -> None:
    root = real_root("chexpert", rows)
    columns = LAYOUTS["chexpert"](root)
    data = xrv.datasets.CheX_Dataset(".", str(root / "train.csv.gz"), views=["*"], unique_patients=False)
    assert len(columns["path"]) == len(data) == (rows or 223_414)
    patients = len(set(columns["patient"].tolist()))
    assert patients == data.csv.patientid.nunique()
    assert rows or patients == 64_540
    assert Counter(columns["view"].tolist()) == Counter(data.csv["view"])
    published = pd.read_csv(root / "train.csv.gz")
    healthy = (published["No Finding"] == 1).to_numpy()
    theirs = _theirs(data)
    assert len(theirs) == 13
    for finding, values in theirs.items():
        ours = _values(columns[finding])
        assert (ours == 1).sum() == (values == 1).sum(), finding
        # They drop -1, and write 0 into the blanks (and -1s) of a row with No Finding; we do neither.
        expected = np.where(ours == -1, np.nan, ours)
        if finding != "support_device":
            expected[healthy] = 0
        np.testing.assert_array_equal(expected, values, err_msg=finding)


@pytest.mark.parametrize("rows", LARGE)
def test_the_chexpert_5_policy_is_what_one_does_by_hand(real_root: Root, rows: int | None) -> None:
    root = real_root("chexpert", rows)
    columns = LAYOUTS["chexpert"](root)
    cells = {finding: _values(columns[finding]) for finding in CHEXPERT_5}
    ours = label_matrix(cells, list(CHEXPERT_5), CHEXPERT_5, len(columns["path"]))
    published = pd.read_csv(root / "train.csv.gz")
    by_hand = pd.DataFrame(
        {
            "atelectasis": published["Atelectasis"].replace(-1, 1),
            "edema": published["Edema"].replace(-1, 1),
            "effusion": published["Pleural Effusion"].replace(-1, 1),
            "cardiomegaly": published["Cardiomegaly"].replace(-1, 0),
            "consolidation": published["Consolidation"].replace(-1, 0),
        }
    )
    np.testing.assert_array_equal(ours, by_hand[list(CHEXPERT_5)].to_numpy(np.float32))
    assert rows or np.nansum(ours, axis=0).tolist() == [67_115, 65_230, 97_815, 27_000, 14_783]


PADCHEST = {
    # On the rows both keep: positive for torchxrayvision alone, and for us alone.
    "effusion": (39, 34),  # pericardial effusion; hydropneumothorax, empyema
    "emphysema": (203, 0),  # subcutaneous emphysema
    "hilar_enlargement": (1_337, 0),  # adenopathy, also calcified; pulmonary artery enlargement
    "infiltration": (1_859, 75),  # consolidation, air bronchogram; miliary opacities
    "mass": (406, 0),  # mediastinal, soft tissue, pleural and breast masses
    "nodule": (2_159, 0),  # pseudonodule
    "support_device": (0, 9_294),  # tubes and lines, of which theirs has a label of its own
    "tuberculosis": (1_005, 0),  # tuberculosis sequelae
}


@pytest.mark.filterwarnings("ignore:Parsing integer or float values with a format")
@pytest.mark.parametrize("rows", LARGE)
def test_padchest_differs_where_parts_of_words_mislead(
    xrv: ModuleType, real_root: Root, rows: int | None
) -> None:
    root = real_root("padchest", rows)
    columns = LAYOUTS["padchest"](root)
    table = str(root / f"{padchest.TABLE}.gz")
    data = xrv.datasets.PC_Dataset(str(root), table, views=["*"], unique_patients=False)
    assert len(columns["path"]) == (rows or 160_861)
    if rows is None:
        assert len(set(columns["patient"].tolist())) == 67_625
        assert len(data) == 158_616
        assert Counter(columns["view"].tolist()) == {
            "PA": 91_728, "L": 49_579, "AP SUPINE": 14_346, "AP": 4_559, "COSTAL": 630, "EXCLUDE": 11, "": 8,
        }  # fmt: skip
    image = {path.rpartition("/")[2]: i for i, path in enumerate(columns["path"].tolist())}
    # They leave out rows without labels, children and those without a year of birth, 21 bad files.
    kept = np.array([image[name] for name in data.csv["ImageID"]])
    unlike = {}
    for finding, values in _theirs(data).items():
        ours, theirs = columns[finding][kept] == "1", values == 1
        if (ours != theirs).any():
            unlike[finding] = (int((theirs & ~ours).sum()), int((ours & ~theirs).sum()))
    if rows is None:
        assert unlike == PADCHEST
    else:
        assert set(unlike) <= set(PADCHEST)


def test_vindr_takes_the_majority_where_they_take_anyone(xrv: ModuleType, real_root: Root) -> None:
    root = real_root("vindr")
    columns = LAYOUTS["vindr"](root)
    data = xrv.datasets.VinDr_Dataset(".")
    order = np.argsort(data.csv.image_id.to_numpy())
    assert columns["patient"].tolist() == data.csv.image_id.to_numpy()[order].tolist()
    table = read_table(root / "train.csv.gz", "vindr", ("image_id", "class_name", "rad_id"))
    _, image = np.unique(table["image_id"], return_inverse=True)
    readers = vindr.count_readers(image, table["rad_id"], np.ones(len(image), dtype=bool))
    assert set(readers.tolist()) == {3}
    counts = {}
    names = {"ILD": "interstitial_lung_disease", "Nodule/Mass": "nodule_or_mass"}
    for name, values in zip(data.pathologies, data.labels[order].T, strict=True):
        if name == "Other Lesion":
            continue
        finding = names.get(str(name)) or canonical(str(name))
        seen = np.isin(table["class_name"], vindr.LABELS[finding])
        votes = vindr.count_readers(image, table["rad_id"], seen)
        np.testing.assert_array_equal(votes > 0, values == 1, err_msg=finding)
        np.testing.assert_array_equal(votes >= 2, columns[finding] == "1", err_msg=finding)
        counts[finding] = (int((votes > 0).sum()), int((votes >= 2).sum()))
    assert counts == {
        "aortic_enlargement": (3067, 2346), "atelectasis": (186, 62), "calcification": (452, 177),
        "cardiomegaly": (2300, 1817), "consolidation": (353, 121), "effusion": (1032, 634),
        "fibrosis": (1617, 1017), "infiltration": (613, 245), "interstitial_lung_disease": (386, 152),
        "lung_opacity": (1322, 547), "nodule_or_mass": (826, 405), "pleural_thickening": (1981, 882),
        "pneumothorax": (96, 58),
    }  # fmt: skip


def test_rsna_is_theirs_but_for_opacities_that_are_no_pneumonia(xrv: ModuleType, real_root: Root) -> None:
    columns = LAYOUTS["rsna"](real_root("rsna"))
    data = xrv.datasets.RSNA_Pneumonia_Dataset(".", views=["*"])
    assert len(columns["path"]) == len(data) == 26_684
    assert columns["study"].tolist() == data.csv.patientId.tolist()
    assert Counter(columns["view"].tolist()) == Counter(data.csv["view"])
    np.testing.assert_array_equal(_values(columns["pneumonia"]), data.labels[:, 1])
    # They say "no opacity" wherever there is none that may be pneumonia: 20,672 images.
    opacity = _values(columns["lung_opacity"])
    assert (opacity == 1).sum() == (data.labels[:, 0] == 1).sum() == 6_012
    assert np.isnan(opacity).sum() == (data.labels[:, 0] == 0).sum() == 20_672
    # Five patients are older than anyone.
    assert (columns["age"] == "").sum() == (data.csv.PatientAge > 120).sum() == 5


def test_siim_has_a_row_per_image_where_they_have_one_per_mask(xrv: ModuleType, real_root: Root) -> None:
    columns = LAYOUTS["siim"](real_root("siim"))
    data = xrv.datasets.SIIM_Pneumothorax_Dataset("no folder of images")
    assert len(data) == 12_954
    theirs = pd.Series(data.labels[:, 0]).groupby(data.csv["ImageId"].str.strip()).max()
    assert columns["patient"].tolist() == theirs.index.tolist()
    assert len(theirs) == 12_047
    np.testing.assert_array_equal(_values(columns["pneumothorax"]), theirs.to_numpy())
    assert (columns["pneumothorax"] == "1").sum() == 2_669


OPENI = {
    # Positive images: by annotators' headings (ours), by parts of a program's terms (theirs).
    "atelectasis": (616, 711),
    "calcified_granuloma": (511, 416),
    "cardiomegaly": (693, 493),
    "edema": (87, 144),
    "effusion": (292, 346),
    "emphysema": (199, 193),
    "fibrosis": (36, 39),
    "fracture": (165, 189),
    "granuloma": (610, 781),
    "hernia": (90, 97),
    "infiltration": (116, 174),
    "lung_opacity": (958, 819),
    "mass": (23, 13),
    "nodule": (211, 157),
    "pleural_thickening": (82, 68),
    "pneumonia": (77, 158),
    "pneumothorax": (54, 44),
}


def test_openi_reads_what_they_read_and_labels_by_annotator(xrv: ModuleType, real_root: Root) -> None:
    root = real_root("openi")
    columns = LAYOUTS["openi"](root)
    data = xrv.datasets.Openi_Dataset(".", views=["*"], unique_patients=False)
    rows = {name: i for i, name in enumerate(data.csv.imageid)}
    order = [rows[path.split("/")[1].removesuffix(".png")] for path in columns["path"].tolist()]
    assert len(columns["path"]) == len(data) == 7_470
    assert columns["patient"].tolist() == data.csv.uid.to_numpy()[order].tolist()
    assert len(set(columns["patient"].tolist())) == 3_851
    assert Counter(columns["view"].tolist()) == {
        "PA": 3_591,
        "": 2_589,
        "LL": 717,
        "AP": 423,
        "L": 121,
        "RL": 29,
    }
    reports = read_reports(root)
    assert len(reports) == 3_955
    # The terms are read alike: their rule on our reading gives their labels.
    terms = ["|".join(np.unique(report.automatic)) for report in reports for _ in report.images]
    spelled = {"infiltration": "infiltrat", "atelectasis": "atelecta", "lung_opacity": "opacity"}
    theirs = _theirs(data)
    del theirs["lung_lesion"]  # No heading of the annotators' says lesion.
    counts = {}
    for finding, values in theirs.items():
        wanted = spelled.get(finding, finding.replace("_", " "))
        again = np.array([wanted in each for each in terms])
        np.testing.assert_array_equal(again, values[order] == 1, err_msg=finding)
        counts[finding] = (int((columns[finding] == "1").sum()), int((values == 1).sum()))
    assert counts == OPENI
    # 95 reports, 172 images, were not indexed; to them the finding was never looked for.
    assert (columns["effusion"] == "").sum() == 172
