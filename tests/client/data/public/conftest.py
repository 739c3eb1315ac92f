"""Folders as public sets publish them: made-up rows in the exact format, or the real label tables."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

Write = Callable[..., Path]

SHIPPED = {
    "nih": ("Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017_v2020.csv.gz"),
    "chexpert": ("chexpert_train.csv.gz", "train.csv.gz"),
    "padchest": (
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
    ),
    "vindr": ("vinbigdata-train.csv.gz", "train.csv.gz"),
    "rsna": ("kaggle_stage_2_train_labels.csv.zip", "stage_2_train_labels.csv"),
    "siim": ("siim-pneumothorax-train-rle.csv.gz", "train-rle.csv.gz"),
    "openi": ("NLMCXR_reports.tgz", "NLMCXR_reports.tgz"),
}
"""Layout -> the real table torchxrayvision ships, and the name its own publisher gives it."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a CSV under the root (``tmp_path``), packed where the name ends in .gz."""

    def make(name: str, header: str, *rows: str | Sequence[object]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.StringIO()
        file.write(header + "\n")
        for row in rows:
            if isinstance(row, str):
                file.write(row + "\n")
            else:
                csv.writer(file, lineterminator="\n").writerow(row)
        content = file.getvalue().encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tmp_path

    return make


@pytest.fixture(scope="session")
def xrv() -> ModuleType:
    """torchxrayvision, imported as a user of it would."""
    pytest.importorskip("skimage")
    if importlib.util.find_spec("torchxrayvision") is None:
        pytest.skip("torchxrayvision is not installed")
    import common.model.torchvision_shim  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchxrayvision
    return torchxrayvision


@pytest.fixture(scope="session")
def tables() -> Path:
    """The folder of real label tables that torchxrayvision ships."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torchxrayvision is not installed")
    return Path(spec.submodule_search_locations[0]) / "data"


@pytest.fixture(scope="session")
def real_root(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Put a set's real label table, or its first rows, into a folder under its published name."""

    def make(layout: str, rows: int | None = None) -> Path:
        root = tmp_path_factory.mktemp(layout)
        source, name = SHIPPED[layout]
        if source.endswith(".zip"):
            with zipfile.ZipFile(tables / source) as archive:
                (root / name).write_bytes(archive.read(archive.namelist()[0]))
        elif rows is None:
            shutil.copyfile(tables / source, root / name)
        else:
            with gzip.open(tables / source, "rt", encoding="utf-8", newline="") as full:
                records = csv.reader(full)
                with gzip.open(root / name, "wt", encoding="utf-8", newline="") as head:
                    csv.writer(head).writerows(
                        record for _, record in zip(range(rows + 1), records, strict=False)
                    )
        return root

    return make


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """Write reports into NLMCXR_reports.tgz under the root, as the archive has them."""

    def make(**reports: str | bytes) -> Path:
        folder = tmp_path / "packed" / "ecgen-radiology"
        folder.mkdir(parents=True)
        for name, content in reports.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / f"{name.removeprefix('r')}.xml").write_bytes(data)
        with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
            archive.add(folder, arcname="ecgen-radiology")
        shutil.rmtree(tmp_path / "packed")
        return tmp_path

    return make
