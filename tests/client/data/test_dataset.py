"""From site.toml to arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.dataset import load_site_data
from client.site import SiteConfig
from common.errors import DataError, SplitError

Make = Callable[..., SiteConfig]
LABELS = '[labels]\nedema = "E"\neffusion = "P"\n'


def rows(count: int = 20) -> dict[str, list[object]]:
    return {
        "patient": [f"p{i // 2}" for i in range(count)],
        "view": ["PA"] * count,
        "E": ["1" if i % 3 == 0 else "0" for i in range(count)],
        "P": ["" if i % 2 else "0" for i in range(count)],
    }


def test_a_site(make_site: Make) -> None:
    data = load_site_data(make_site(rows(), LABELS), ["Edema", "hernia", "effusion"], 8)
    assert data.findings == ("edema", "hernia", "effusion")
    assert data.pixels.shape == (20, 8, 8)
    assert [int(image[0, 0]) for image in data.pixels] == [i * 7 for i in range(20)]
    assert data.owned.tolist() == [True, False, True]
    assert {name: len(indices) for name, indices in data.split.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    assert sorted(np.concatenate(list(data.split.values()))) == list(range(20))
    sets = [set(data.patients[indices]) for indices in data.split.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 10
    positives, negatives = zip(*(data.count_labels(name) for name in data.split), strict=True)
    np.testing.assert_array_equal(sum(positives), [7, 0, 0])
    np.testing.assert_array_equal(sum(negatives), [13, 0, 10])
    torch.from_numpy(data.pixels[data.split["train"]])


def test_the_split_does_not_follow_the_findings_asked_for(make_site: Make) -> None:
    site = make_site(rows(), LABELS)
    splits = [load_site_data(site, findings, 8).split for findings in (["edema"], ["effusion", "hernia"], [])]
    for other in splits[1:]:
        for name, indices in splits[0].items():
            np.testing.assert_array_equal(indices, other[name])


def test_bad_images_are_counted_and_in_no_split(make_site: Make, tmp_path: Path) -> None:
    site = make_site(rows(), LABELS)
    whole = load_site_data(site, ["edema"], 8)
    (tmp_path / "images" / "003.png").write_text("Doe^Jane")
    (tmp_path / "images" / "004.png").unlink()
    data = load_site_data(site, ["edema"], 8)
    assert data.quarantined == {"not-an-image": 1, "missing": 1}
    assert np.isnan(data.labels[[3, 4]]).all()
    for name, indices in data.split.items():
        assert set(indices) == set(whole.split[name]) - {3, 4}


def test_too_many_bad_images_stop_the_site(make_site: Make, tmp_path: Path) -> None:
    site = make_site(rows(), LABELS)
    for i in range(5):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="5 of 20 images cannot be used, more than") as caught:
        load_site_data(site, ["edema"], 8)
    assert "truncated: 5" in str(caught.value)
    assert "png" not in str(caught.value)


def test_nothing_readable_stops_the_site_whatever_is_allowed(make_site: Make) -> None:
    toml = '[data]\ntable = "studies.csv"\nmax_quarantined = 1.0\n'
    with pytest.raises(DataError, match="20 of 20"):
        load_site_data(make_site(rows(), toml, images=False), [], 8)


def test_a_dicom_files_own_view_counts_where_the_table_has_none(
    make_site: Make, make_dicom: Callable[..., Path], draw: Callable[..., np.ndarray]
) -> None:
    views = ["PA", "AP", "LL", "", "PA", "PA"]
    for i, view in enumerate(views):
        make_dicom(draw(), f"{i}.dcm", ViewPosition=view)
    table = {"patient": list("abcdef"), "path": [f"{i}.dcm" for i in range(6)], "E": [1, 0, 1, 0, 1, 0]}
    data = load_site_data(make_site(table, '[labels]\nedema = "E"\n', images=False), ["edema"], 8)
    assert sorted(np.concatenate(list(data.split.values()))) == [0, 1, 4, 5]
    assert data.removed == {"views": 2}
    assert data.quarantined == {}
    assert data.view.tolist() == views
    table["view"] = ["", "LL", "PA", "", "", ""]
    data = load_site_data(make_site(table, images=False), [], 8)
    assert data.view[data.split["train"]].tolist() == ["PA"] * len(data.split["train"])
    assert data.removed == {"views": 2}


def test_only_lateral_dicom(
    make_site: Make, make_dicom: Callable[..., Path], draw: Callable[..., np.ndarray]
) -> None:
    make_dicom(draw(), "0.dcm", ViewPosition="LL")
    with pytest.raises(DataError, match="of the views asked for"):
        load_site_data(make_site({"patient": ["a"], "path": ["0.dcm"]}, images=False), [], 8)


def test_the_tables_own_split_is_used(make_site: Make) -> None:
    table = {**rows(6), "split": ["test", "test", "train", "train", "val", "val"]}
    data = load_site_data(make_site(table, LABELS), ["edema"], 8)
    assert {name: indices.tolist() for name, indices in data.split.items()} == {
        "train": [2, 3],
        "validation": [4, 5],
        "test": [0, 1],
    }
    table["split"][1] = "train"
    with pytest.raises(SplitError):
        load_site_data(make_site(table, LABELS), ["edema"], 8)


def test_labelled_rows(make_site: Make) -> None:
    data = load_site_data(make_site(rows(), LABELS), ["effusion"], 8)
    assert all(i % 2 == 0 for i in data.labelled("train"))
    assert len(data.labelled("train")) == 7
