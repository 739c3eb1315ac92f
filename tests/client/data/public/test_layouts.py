"""What every layout owes to the rest of the client, and to the page that describes it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.public import chexpert, covid, nih, padchest
from client.data.public.layouts import LAYOUTS
from client.data.table import read_studies
from client.site import Layout, load_site
from common.clinical import VARIABLES
from common.errors import TableError
from common.findings import FINDINGS

ALWAYS = {"path", "patient", "study", "view", "age", "sex"}
SOMETIMES = {"split", "indication", "report", "MethodLabel"}
REAL = ["nih", "chexpert", "padchest", "vindr", "rsna", "siim", "openi"]
WHOLE = {"openi", "rsna"}
"""Small, or not packed as one table."""


def test_site_toml_knows_every_layout() -> None:
    assert set(LAYOUTS) == set(get_args(Layout)) - {"table", "folder"}


def test_every_layout_has_its_page(repository: Path) -> None:
    assert set(_examples(repository)) == set(LAYOUTS)


@pytest.mark.parametrize("layout", REAL)
def test_the_site_toml_on_its_page_reads_the_real_table(
    layout: str, repository: Path, real_root: Callable[..., Path], tmp_path: Path
) -> None:
    root = real_root(layout, None if layout in WHOLE else 2_000)
    example = re.sub(
        r'^root = "[^"]*"', f'root = "{root}"', _examples(repository)[layout], flags=re.MULTILINE
    )
    (tmp_path / "site.toml").write_text(f'name = "page"\n{example}', encoding="utf-8")
    table = read_studies(load_site(tmp_path / "site.toml"))
    assert len(table) >= 300
    assert np.isfinite(table.labels).any()


PARTS = {
    "nih": ("Data_Entry_2017_v2020.csv", nih._NEEDED),
    "chexpert": ("train.csv", ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABELS.values())),
    "padchest": (padchest.TABLE, padchest._NEEDED),
    "vindr": ("train.csv", ("image_id", "class_name", "rad_id")),
    "rsna": ("stage_2_train_labels.csv", ("patientId", "Target")),
    "siim": ("train-rle.csv", ("ImageId", "EncodedPixels")),
    "covid": ("metadata.csv", covid._NEEDED),
}
cells = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12),
    st.sampled_from(
        ["CheXpert-v1.0/train/patient1/study1/v.jpg", "X-ray", "1.0", "-1", "²", "9" * 5_000, "nan", "Y"]
    ),
)


@pytest.mark.parametrize("layout", PARTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_the_cells_is_read_or_refused(
    layout: str, data: st.DataObject, tmp_path: Path
) -> None:
    name, header = PARTS[layout]
    rows = data.draw(st.lists(st.tuples(*[cells] * len(header)), min_size=1, max_size=4))
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    try:
        columns = LAYOUTS[layout](tmp_path)
    except TableError:
        return
    assert len({cells.shape for cells in columns.values()}) == 1


def _examples(repository: Path) -> dict[str, str]:
    """Return the site.toml under each layout's heading."""
    page = (repository / "docs" / "public-sets.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (\w+)\n\n```toml\n(.*?)```", page, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_folder_is_told_apart_by_the_layouts_name(layout: str, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TableError, match=f"the {layout} layout needs") as caught:
            LAYOUTS[layout](root)
        assert caught.value.found == "an empty or missing folder"
        assert "docs/public-sets.md" in caught.value.fix


@pytest.mark.parametrize("layout", REAL)
def test_columns_keep_the_contract_on_real_rows(layout: str, real_root: Callable[..., Path]) -> None:
    columns = LAYOUTS[layout](real_root(layout, None if layout in WHOLE else 2_000))
    assert set(columns) >= ALWAYS
    rows = len(columns["path"])
    for name, cells in columns.items():
        assert cells.shape == (rows,) and cells.dtype.kind == "U", name
        assert name in ALWAYS | SOMETIMES or name in FINDINGS or name in VARIABLES, name
        if name in FINDINGS:
            assert set(np.unique(cells).tolist()) <= {"1", "0", "-1", ""}, name
    assert len(set(columns["path"].tolist())) == rows
    assert (columns["patient"] != "").all()
    assert not any(path.startswith("/") or ".." in path for path in columns["path"].tolist())
    assert not (set(columns["sex"].tolist()) - {"M", "F", ""})
    assert sum(name in FINDINGS for name in columns) >= 1
