"""From site.toml to arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.assess import assess_site
from client.data.dataset import SiteData, load_site_data
from client.site import SiteConfig
from common.errors import DataError, SplitError
from common.sections import DataConfig

Make = Callable[..., SiteConfig]
SIZE = 16
LABELS = '[labels]\nedema = "E"\neffusion = "P"\n'


def rows(count: int = 20) -> dict[str, list[object]]:
    return {
        "patient": [f"p{i // 2}" for i in range(count)],
        "view": ["PA"] * count,
        "E": ["1" if i % 3 == 0 else "0" for i in range(count)],
        "P": ["" if i % 2 else "0" for i in range(count)],
    }


def load(site: SiteConfig, findings: Sequence[str], **plan: Any) -> SiteData:
    return load_site_data(site, DataConfig(findings=tuple(findings), image_size=SIZE, **plan))


def test_a_site(make_site: Make) -> None:
    data = load(make_site(rows(), LABELS), ["Edema", "hernia", "effusion"])
    assert data.findings == ("edema", "hernia", "effusion")
    assert data.pixels.shape == (20, SIZE, SIZE)
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
    splits = [load(site, findings).split for findings in (["edema"], ["effusion", "hernia"], ["nodule"])]
    for other in splits[1:]:
        for name, indices in splits[0].items():
            np.testing.assert_array_equal(indices, other[name])


def test_bad_images_are_counted_and_in_no_split(make_site: Make, tmp_path: Path) -> None:
    site = make_site(rows(), LABELS)
    whole = load(site, ["edema"])
    (tmp_path / "images" / "003.png").write_text("Doe^Jane")
    (tmp_path / "images" / "004.png").unlink()
    data = load(site, ["edema"])
    assert data.quarantined == {"not-an-image": 1, "missing": 1}
    assert np.isnan(data.labels[[3, 4]]).all()
    for name, indices in data.split.items():
        assert set(indices) == set(whole.split[name]) - {3, 4}


def test_too_many_bad_images_stop_the_site(make_site: Make, tmp_path: Path) -> None:
    site = make_site(rows(), LABELS)
    for i in range(5):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="5 of 20 studies cannot be used, more than") as caught:
        load(site, ["edema"])
    assert "truncated: 5" in str(caught.value)
    assert "png" not in str(caught.value)


def test_nothing_readable_stops_the_site_whatever_is_allowed(make_site: Make) -> None:
    toml = '[data]\ntable = "studies.csv"\nmax_quarantined = 1.0\n'
    with pytest.raises(DataError, match="20 of 20"):
        load(make_site(rows(), toml, images=False), ["edema"])


def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 4096, (24, 20)).astype(np.uint16)


def test_a_dicom_files_own_view_counts_where_the_table_has_none(
    make_site: Make, make_dicom: Callable[..., Path]
) -> None:
    for i, view in enumerate(["PA", "AP", "LL", "", "PA", "PA"]):
        make_dicom(noise(i), f"{i}.dcm", ViewPosition=view)
    table = {"patient": list("abcdef"), "path": [f"{i}.dcm" for i in range(6)], "E": [1, 0, 1, 0, 1, 0]}
    site = make_site(table, '[data]\ntable = "studies.csv"\nmax_quarantined = 0.5\n', images=False)
    assessed = assess_site(site, ["edema"], [], SIZE)
    assert assessed.table.code.tolist() == ["", "", "view", "unknown-view", "", ""]
    assert assessed.not_asked_for == {"view": 1}
    assert assessed.quarantined == {"unknown-view": 1}
    assert (assessed.split == "").tolist() == [False, False, True, True, False, False]
    table["view"] = ["", "LL", "PA", "", "", ""]
    site = make_site(table, '[data]\ntable = "studies.csv"\nmax_quarantined = 0.5\n', images=False)
    assessed = assess_site(site, ["edema"], [], SIZE)
    assert assessed.table.code.tolist() == ["", "view", "", "unknown-view", "", ""]
    assert assessed.table.view.tolist() == ["PA", "LL", "PA", "", "PA", "PA"]


def test_only_lateral_dicom(make_site: Make, make_dicom: Callable[..., Path]) -> None:
    make_dicom(noise(0), "0.dcm", ViewPosition="LL")
    with pytest.raises(DataError, match="no study of the site can be used") as caught:
        load(make_site({"patient": ["a"], "path": ["0.dcm"]}, images=False), ["edema"])
    assert caught.value.found == "view: 1"


def test_a_picture_of_two_patients_is_in_no_split(make_site: Make, tmp_path: Path) -> None:
    site = make_site(rows(), LABELS)
    images = tmp_path / "images"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))
    smooth = picture.resize((200, 200), Image.Resampling.BICUBIC)
    smooth.save(images / "004.png")
    (images / "005.png").write_bytes((images / "004.png").read_bytes())  # the same patient again
    smooth.resize((180, 180)).save(images / "007.png")  # and, scaled down, under another's name
    (images / "009.png").write_bytes((images / "010.png").read_bytes())
    codes = assess_site(site, ["effusion"], [], SIZE).table.code
    assert {i: code for i, code in enumerate(codes.tolist()) if code} == {
        5: "duplicate",
        7: "near-duplicate",
        9: "conflict",
        10: "conflict",
    }


def test_a_fraction_lies_within_a_larger_one(make_site: Make) -> None:
    site = make_site(rows(36), LABELS)
    drawn = [load(site, ["edema"], fraction=f).split for f in (0.01, 0.3, 0.6, 1.0)]
    trains = [set(split["train"].tolist()) for split in drawn]
    assert len(trains[0]) == 2  # one patient, two images
    assert trains[0] < trains[1] < trains[2] < trains[3]
    assert all(np.array_equal(split["test"], drawn[3]["test"]) for split in drawn)


def test_shots_without_enough_patients(make_site: Make) -> None:
    site = make_site(rows(36), LABELS)
    data = load(site, ["edema", "effusion"], shots=2)
    positives, negatives = data.count_labels("train")
    assert positives.tolist() == [2, 0]
    assert negatives.tolist() == [2, 0]  # nobody has an effusion: the finding stays hidden
    assert data.owned.tolist() == [True, False]
    with pytest.raises(DataError, match="no finding has 12 training patients"):
        load(site, ["edema", "effusion"], shots=12)


def test_the_tables_own_split_is_used(make_site: Make) -> None:
    table = {**rows(6), "split": ["test", "test", "train", "train", "val", "val"]}
    data = load(make_site(table, LABELS), ["edema"])
    assert {name: indices.tolist() for name, indices in data.split.items()} == {
        "train": [2, 3],
        "validation": [4, 5],
        "test": [0, 1],
    }
    table["split"][1] = "train"
    with pytest.raises(SplitError):
        load(make_site(table, LABELS), ["edema"])


def test_labelled_rows(make_site: Make) -> None:
    data = load(make_site(rows(), LABELS), ["effusion"])
    assert all(i % 2 == 0 for i in data.labelled("train"))
    assert len(data.labelled("train")) == 7
