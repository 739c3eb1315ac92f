"""What pretraining may use: training studies whole, or images apart, and nothing that is held out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from client.data.dataset import SiteData, load_site_data
from client.data.unlabelled import Unlabelled
from client.site import SiteConfig, load_site
from common.errors import ConfigError, TableError
from common.sections import DataConfig, PretrainConfig

Make = Callable[..., SiteConfig]
LABELS = '[labels]\nedema = "edema"\n'
PATIENTS = 18


def rows(**more: list[Any]) -> dict[str, list[Any]]:
    """Two images a patient, one of every other patient's with edema; a quarter is not annotated."""
    names = [f"p{i // 2}" for i in range(2 * PATIENTS)]
    edema = [["1", "0", "", "0"][i % 4] for i in range(2 * PATIENTS)]
    return {"patient": names, "view": ["PA"] * len(names), "edema": edema, **more}


def load(site: SiteConfig, task: str = "masked-image", rounds: int = 1, **plan: Any) -> SiteData:
    told = {"rounds": rounds, "task": task, **plan.pop("pretrain", {})}
    data = DataConfig(findings=("edema",), image_size=16, **plan)
    return load_site_data(site, data, pretrain=PretrainConfig.model_validate(told))


def pool_of(data: SiteData) -> Unlabelled:
    assert data.pool is not None
    return data.pool


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(noise).resize((24, 24), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def apart(make_site: Make, tmp_path: Path) -> Callable[..., SiteConfig]:
    """A site with a table of images apart, a patient and a file of which are in its test split too."""

    def make(table: dict[str, list[Any]] | None = None, toml: str = "") -> SiteConfig:
        site = make_site(rows(), LABELS)
        for i in range(2 * PATIENTS):
            picture(tmp_path / "images" / f"{i:03d}.png", i)
        for i in range(6):
            picture(tmp_path / "apart" / f"{i}.png", 100 + i)
        told = table or {"path": [f"apart/{i}.png" for i in range(6)], "patient": [f"q{i}" for i in range(6)]}
        pd.DataFrame(told).to_csv(tmp_path / "unlabelled.csv", index=False)
        with (tmp_path / "site.toml").open("a") as stream:
            stream.write(toml or '[unlabelled]\ntable = "unlabelled.csv"\nviews = "any"\n')
        assert site.unlabelled is None
        return load_site(tmp_path / "site.toml")

    return make


def test_every_training_study_counts_annotated_or_not_drawn_or_not(make_site: Make) -> None:
    site = make_site(rows(), LABELS)
    whole, few = load(site), load(site, fraction=0.01)
    shots = load(site, shots=2)
    assert pool_of(whole).rows.tolist() == whole.split["train"].tolist()
    assert len(few.split["train"]) == 2 < len(pool_of(few))
    for data in (few, shots):
        assert pool_of(data).rows.tolist() == pool_of(whole).rows.tolist()
    held = [*whole.split["validation"], *whole.split["test"]]
    assert not set(held) & set(pool_of(whole).rows.tolist())
    assert np.isnan(whole.labels[pool_of(whole).rows]).any()  # some are not annotated
    assert pool_of(whole).texts == ()


def test_nothing_is_read_where_the_plan_does_not_pretrain(make_site: Make) -> None:
    site = make_site(rows(), LABELS)
    assert load(site, rounds=0).pool is None
    assert load_site_data(site, DataConfig(findings=("edema",), image_size=16)).pool is None


def test_reports_come_redacted_as_pretraining_asks(make_site: Make) -> None:
    said = ["Heart enlarged. Small effusion on the left."] * PATIENTS + [""] * PATIENTS
    site = make_site(rows(findings=said), LABELS)
    raw = pool_of(load(site, "image-text", pretrain={"redaction": "none"}))
    assert 0 < len(raw) < len(pool_of(load(site)))  # an image without a report is left out
    assert set(raw.texts) == {said[0]}
    assert len(raw.texts) == len(raw.paths) == len(raw.rows)
    word = pool_of(load(site, "image-text", pretrain={"redaction": "word"}))
    assert all("effusion" not in text and "left" in text for text in word.texts)
    nothing = load(site, "image-text", pretrain={"redaction": "indication"})
    assert len(pool_of(nothing)) == 0 < len(nothing.split["train"])


def test_images_apart_are_used_instead(apart: Callable[..., SiteConfig]) -> None:
    data = load(apart())
    assert pool_of(data).paths.tolist() == [f"apart/{i}.png" for i in range(6)]
    assert len(pool_of(data).pixels) == 6
    assert len(data.pixels) == 2 * PATIENTS  # the labelled ones are where they were
    for i in range(6):
        pixels = pool_of(data).pixels[pool_of(data).rows[i]]
        with Image.open(pool_of(data).root / str(pool_of(data).paths[i])) as image:
            assert abs(pixels.mean() - np.asarray(image).mean()) < 6


def test_neither_patient_nor_file_that_is_held_out(
    apart: Callable[..., SiteConfig], caplog: pytest.LogCaptureFixture
) -> None:
    data = load(apart())
    test, train = data.split["test"][0], data.split["train"][0]
    same_patient, in_training = str(data.patients[test]), str(data.patients[train])
    table = {
        "path": ["apart/0.png", f"images/{test:03d}.png", "apart/1.png", "apart/2.png"],
        "patient": [same_patient, "somebody", in_training, "q2"],
    }
    with caplog.at_level(logging.INFO, "client.data.unlabelled"):
        used = pool_of(load(apart(table)))
    assert used.paths.tolist() == ["apart/1.png", "apart/2.png"]
    assert "2 unlabelled images belong to studies held out" in caplog.text
    assert same_patient not in caplog.text


def test_a_table_that_has_a_split_is_believed(apart: Callable[..., SiteConfig]) -> None:
    table = {
        "path": [f"apart/{i}.png" for i in range(4)],
        "patient": ["a", "b", "c", "d"],
        "split": ["train", "test", "valid", "train"],
    }
    assert pool_of(load(apart(table))).paths.tolist() == ["apart/0.png", "apart/3.png"]


def test_a_folder_without_a_table(make_site: Make, make_dicom: Callable[..., Path], tmp_path: Path) -> None:
    site = make_site(rows(), LABELS)
    (tmp_path / "dicom").mkdir()
    for i in range(3):
        grey = np.random.default_rng(i).integers(0, 4096, (24, 20)).astype(np.uint16)
        make_dicom(grey, f"dicom/{i}.dcm", PatientID=f"x{i}", ViewPosition="PA")
    with (tmp_path / "site.toml").open("a") as stream:
        stream.write('[unlabelled]\nroot = "dicom"\n')
    site = load_site(tmp_path / "site.toml")
    assert pool_of(load(site)).paths.tolist() == ["0.dcm", "1.dcm", "2.dcm"]


def test_both_caches_stay_as_they_are(apart: Callable[..., SiteConfig], tmp_path: Path) -> None:
    """Two tables in one cache would each throw the other's pixels out."""
    site = apart()
    load(site)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("pixels-*.u8")}
    assert len(files) == 2
    load(site)
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("pixels-*.u8")}


@pytest.mark.parametrize(
    ("toml", "error", "words"),
    [
        ("[unlabelled]\n", ConfigError, "unlabelled.table"),
        ('[unlabelled]\ntabel = "a.csv"\n', ConfigError, "did you mean 'table'"),
        ('[unlabelled]\ntable = "nowhere.csv"\n', TableError, "nowhere.csv"),
        ('[unlabelled]\ntable = "unlabelled.csv"\n', TableError, "PA or AP"),
        ('[unlabelled]\nroot = "nowhere"\n', TableError, "not a folder"),
    ],
)
def test_what_is_wrong_is_said(
    apart: Callable[..., SiteConfig], toml: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load(apart(toml=toml))
