"""Pictures that are no radiographs are there, repeat themselves, and are unlike a chest."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from client.data.dataset import load_site_data
from client.site import load_site
from common.errors import ConfigError
from common.sections import DataConfig, PretrainConfig
from simulations.experiment import Experiment
from simulations.phantom.cases import sample_cases
from simulations.phantom.modality import TILES, Modality, draw_pictures
from simulations.phantom.render import render
from simulations.prepare import prepare_sites

MODALITIES = get_args(Modality)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_picture_depends_on_its_own_case_only(modality: Modality) -> None:
    cases = sample_cases(5, seed=7)
    pictures = draw_pictures(modality, cases, 48)
    assert pictures.shape == (5, 48, 48)
    assert pictures.dtype == np.float32
    assert 0 <= pictures.min() < pictures.max() <= 1
    np.testing.assert_array_equal(draw_pictures(modality, cases.take([3]), 48)[0], pictures[3])
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(draw_pictures(modality, sample_cases(5, seed=8), 48)[0], pictures[0])


def test_a_shuffled_radiograph_has_the_patches_of_the_radiograph() -> None:
    cases = sample_cases(3, seed=7)
    (chest, shuffled), side = (draw_pictures(m, cases, 96) for m in ("chest", "shuffled")), 96 // TILES
    np.testing.assert_array_equal(chest, render(cases, 96))

    def tiles(picture: np.ndarray) -> set[bytes]:
        cut = picture.reshape(TILES, side, TILES, side).swapaxes(1, 2)
        return {tile.tobytes() for tile in cut.reshape(-1, side, side)}

    for one, other in zip(chest, shuffled, strict=True):
        assert tiles(one) == tiles(other)
        assert (one != other).mean() > 0.9


def test_sizes_that_tiles_do_not_divide_are_drawn_too() -> None:
    pictures = draw_pictures("shuffled", sample_cases(2, seed=1), 100)
    np.testing.assert_array_equal(pictures[:, 96:], render(sample_cases(2, seed=1), 100)[:, 96:])


def test_modalities_are_told_apart_at_a_glance() -> None:
    """By mean and spread of 4 x 4 cells, as a ranking of the first half learns for the second."""
    cases = sample_cases(40, seed=3)
    features, truth = [], []
    for label, modality in enumerate(MODALITIES):
        cells = draw_pictures(modality, cases, 48).reshape(40, 4, 12, 4, 12).swapaxes(2, 3)
        flat = cells.reshape(40, 16, 144)
        features.append(np.concatenate([flat.mean(axis=2), flat.std(axis=2)], axis=1))
        truth.append(np.full(40, label))
    x, y = np.concatenate(features), np.concatenate(truth)
    first = np.tile(np.arange(40) < 20, len(MODALITIES))
    fitted = LogisticRegression(max_iter=2000).fit(x[first], y[first])
    assert fitted.score(x[~first], y[~first]) > 0.9


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_site_has_them_beside_its_studies(modality: Modality, tmp_path: Path) -> None:
    spec = {"studies": 30, "seed": 4, "size": 32, "unlabelled": 12, "unlabelled_modality": modality}
    experiment = Experiment.build({"sites": {"north": {"phantom": spec}}, "data": {"image_size": 32}})
    (file,) = prepare_sites(experiment, tmp_path).values()
    site = load_site(file)
    table = pd.read_csv(file.parent / "unlabelled.csv", dtype=str, keep_default_na=False)
    studies = pd.read_csv(file.parent / "studies.csv", dtype=str)
    assert len(table) == 12
    assert not set(table["patient"]) & set(studies["patient"])
    assert not set(table.columns) & {*site.labels}
    assert (table["findings"] != "").all() == (modality == "chest")
    plan = DataConfig(findings=("edema",), image_size=32)
    data = load_site_data(site, plan, pretrain=PretrainConfig(rounds=1))
    assert data.pool is not None
    assert len(data.pool) == 12
    assert len(data.pixels) == 30


def test_an_unknown_modality_is_refused() -> None:
    with pytest.raises(ConfigError, match="unlabelled_modality"):
        Experiment.build({"sites": {"n": {"phantom": {"unlabelled_modality": "ct"}}}})
