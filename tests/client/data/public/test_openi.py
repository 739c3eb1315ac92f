"""Open-i's XML reports: what is read of them, and what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.public import openi, openi_reports
from common.errors import TableError

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <uId id="CXR{n}"/>
   <MedlineCitation><Article><Abstract>
      <AbstractText Label="COMPARISON">None.</AbstractText>
      <AbstractText Label="INDICATION">Cough
         and fever</AbstractText>
      <AbstractText Label="FINDINGS"/>
      <AbstractText Label="IMPRESSION">Small effusion &amp; XXXX.</AbstractText>
   </Abstract></Article></MedlineCitation>
   <MeSH>{terms}</MeSH>
   {images}
</eCitation>
"""


def _report(n: int, *major: str, images: int = 1, automatic: str = "") -> str:
    terms = "".join(f"<major>{term}</major>" for term in major)
    terms += f"<automatic>{automatic}</automatic>" if automatic else ""
    named = "".join(f'<parentImage id="CXR{n}_IM-0001-{i}001"/>' for i in range(1, images + 1))
    return REPORT.format(n=n, terms=terms, images=named)


def test_each_image_carries_its_report(pack, tmp_path: Path) -> None:
    root = pack(
        r10=_report(10, "Pleural Effusion/left", images=2),
        r9=_report(9, "normal"),
        r8=_report(8, "normal", images=0),
    )
    columns = openi.read(root)
    assert columns["path"].tolist() == [
        "NLMCXR_png/CXR10_IM-0001-1001.png",
        "NLMCXR_png/CXR10_IM-0001-2001.png",
        "NLMCXR_png/CXR9_IM-0001-1001.png",
    ]
    assert columns["patient"].tolist() == columns["study"].tolist() == ["CXR10", "CXR10", "CXR9"]
    assert columns["effusion"].tolist() == ["1", "1", "0"]
    assert columns["indication"][0] == "Cough and fever"
    assert columns["report"][0] == "IMPRESSION: Small effusion & XXXX."


@pytest.mark.parametrize(
    ("major", "expected"),
    [
        (("Opacity/lung/base/left",), {"lung_opacity": "1", "nodule": "0"}),
        (("Opacity/pleura",), {"lung_opacity": "0"}),
        (("Subcutaneous Emphysema/left",), {"emphysema": "0"}),
        (("Pulmonary Emphysema",), {"emphysema": "1"}),
        (("Granulomatous Disease",), {"granuloma": "0"}),
        (("Calcified Granuloma/lung",), {"granuloma": "1", "calcified_granuloma": "1"}),
        (("Mass/mediastinum",), {"mass": "0"}),
        (("Cardiac Shadow/enlarged/mild",), {"cardiomegaly": "1"}),
        (("Thickening/pleura/apex",), {"pleural_thickening": "1"}),
        (("Thickening/bronchi",), {"pleural_thickening": "0"}),
        (("Hydropneumothorax",), {"pneumothorax": "1", "effusion": "1"}),
        (("No Indexing",), {"pneumothorax": ""}),
        ((), {"pneumothorax": ""}),
        (("Technical Quality of Image Unsatisfactory ", "Pneumonia"), {"pneumonia": "1", "mass": "0"}),
    ],
)
def test_headings_are_matched_whole(pack, major: tuple[str, ...], expected: dict[str, str]) -> None:
    # The program's own term is not used.
    columns = openi.read(pack(r1=_report(1, *major, automatic="Pneumothorax")))
    assert {finding: columns[finding][0] for finding in expected} == expected


def test_unpacked_reports_and_dicom_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "ecgen-radiology").mkdir()
    (tmp_path / "ecgen-radiology" / "7.xml").write_text(_report(7, "normal", images=2))
    (tmp_path / "NLMCXR_dcm" / "7").mkdir(parents=True)
    (tmp_path / "NLMCXR_dcm" / "7" / "7_IM-0001-1001.dcm").touch()
    paths = openi.read(tmp_path)["path"].tolist()
    assert paths == ["NLMCXR_dcm/7/7_IM-0001-1001.dcm", "NLMCXR_png/CXR7_IM-0001-2001.png"]


def test_views_come_from_the_headers_table(pack, write) -> None:
    pack(r7=_report(7, "normal", images=3))
    rows = [("CXR7_IM-0001-1001", "PA"), ("CXR7_IM-0001-2001", "LARGE LATERAL")]
    root = write("nlmcxr_dicom_metadata.csv.gz", "imageid,View Position", *rows)
    assert openi.read(root)["view"].tolist() == ["PA", "L", ""]


def test_without_the_headers_table_views_are_unknown(
    pack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openi, "shipped", lambda root, name: None)
    assert openi.read(pack(r7=_report(7, "normal")))["view"].tolist() == [""]
    assert "nlmcxr_dicom_metadata.csv.gz" in caplog.text


LAUGHS = '<!DOCTYPE l [<!ENTITY a "PLANTED"><!ENTITY b "&a;&a;&a;">]><eCitation><uId id="&b;"/></eCitation>'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS, "declares"),
        (LAUGHS.encode("utf-16"), "not UTF-8"),
        ('<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE', "not XML"),
        ("<eCitation><uId id='PLANTED'></eCitation>", "not XML"),
        ("<eCitation/>", "no uId"),
        ("<a>" * 80_000, "not XML"),
        ("<e>" + "x" * 300_000 + "</e>", "far larger"),
        ("", "not XML"),
    ],
    ids=["entities", "utf-16 entities", "utf-7", "unbalanced", "no uId", "deep", "large", "empty"],
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_a_report_unlike_any_published_is_refused(
    pack: Callable[..., Path], tmp_path: Path, content: str | bytes, said: str, unpacked: bool
) -> None:
    root = pack(r5=content)
    if unpacked:
        with tarfile.open(root / "NLMCXR_reports.tgz") as archive:
            archive.extractall(root, filter="data")
        (root / "NLMCXR_reports.tgz").unlink()
    with pytest.raises(TableError, match=said) as caught:
        openi.read(root)
    assert "5.xml" in str(caught.value)
    assert "PLANTED" not in str(caught.value)


def _archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_nothing_is_written_whatever_the_members_are_called(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    link = tarfile.TarInfo("ecgen-radiology/2.xml")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    good = _report(3, "normal").encode()
    _archive(root / "NLMCXR_reports.tgz", (tarfile.TarInfo("../../3.xml"), good), (link, b""))
    assert openi.read(root)["patient"].tolist() == ["CXR3"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["NLMCXR_reports.tgz", "root"]


def test_an_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openi_reports, "_MAX_ARCHIVE", 2**20)
    path = tmp_path / "NLMCXR_reports.tgz"
    _archive(path, (tarfile.TarInfo("padding.bin"), bytes(3 * 2**20)))
    with pytest.raises(TableError, match="far more than the published"):
        openi.read(tmp_path)
    # A header may itself be announced as gigabytes of names.
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(3 * 2**20)))
    with pytest.raises(TableError, match="far more than the published"):
        openi.read(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"PLANTED" + data, lambda data: b""]
)
def test_a_damaged_archive_is_refused(pack, damage: Callable[[bytes], bytes]) -> None:
    root = pack(**{f"r{n}": _report(n, "normal") for n in range(20)})
    path = root / "NLMCXR_reports.tgz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TableError, match="cannot be read") as caught:
        openi.read(root)
    assert "PLANTED" not in str(caught.value)


def test_a_report_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ecgen-radiology").mkdir()
    (tmp_path / "ecgen-radiology" / "1.xml").symlink_to(tmp_path / "gone.xml")
    with pytest.raises(TableError, match=r"1\.xml is not a file"):
        openi.read(tmp_path)


def test_a_folder_without_reports_is_refused(tmp_path: Path, pack) -> None:
    with pytest.raises(TableError, match=r"needs NLMCXR_reports\.tgz or ecgen-radiology/"):
        openi.read(tmp_path)
    with pytest.raises(TableError, match="name no image"):
        openi.read(pack(r1=_report(1, "normal", images=0)))
