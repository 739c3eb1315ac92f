"""Real radiographs through the same door. Skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.data.dataset import SiteData, load_site_data
from client.site import load_site
from common.sections import DataConfig

pytestmark = pytest.mark.real_data


def load(real_data: Path, folder: Path, site: str, labels: dict[str, str], size: int = 64) -> SiteData:
    root = real_data / "real_sites"
    lines = [
        f'name = "{site}"',
        f'[data]\ntable = "{root / "manifest.csv"}"\nroot = "{root}"\nviews = ["PA", "AP", "AP Supine"]',
        '[columns]\npath = "image"\npatient = "patient_id"',
        f'[filter]\nsite = "{site}"',
        "[labels]",
        *(f"{finding} = {source}" for finding, source in labels.items()),
    ]
    (folder / "site.toml").write_text("\n".join(lines))
    plan = DataConfig(findings=tuple(labels), image_size=size)
    return load_site_data(load_site(folder / "site.toml"), plan)


def test_severe_course_in_the_united_kingdom(real_data: Path, tmp_path: Path) -> None:
    data = load(real_data, tmp_path, "covid_uk", {"severe": '"out_severe"'})
    assert sum(map(len, data.split.values())) == 88
    assert data.quarantined == {"unknown-view": 9}
    for name in data.split:
        positives, negatives = data.count_labels(name)
        assert positives[0] > 0
        assert negatives[0] > 0


def test_findings_of_small_images(real_data: Path, tmp_path: Path) -> None:
    labels = {"effusion": '"lab_effusion"', "cardiomegaly": '"lab_cardiomegaly"', "nodule": '"lab_nodule"'}
    data = load(real_data, tmp_path, "nih64_us", labels, size=112)
    assert data.pixels.shape == (1000, 112, 112)
    positives = np.stack([data.count_labels(name)[0] for name in data.split])
    assert positives.sum(axis=0)[:2].tolist() == [170, 83]
    assert (positives > 0).all()
    share = positives[:, 0] / positives[:, 0].sum()
    np.testing.assert_allclose(share, [0.7, 0.1, 0.2], atol=0.1)


def test_words_as_labels(real_data: Path, tmp_path: Path) -> None:
    source = '{ column = "finding_raw", positive = ["Bacterial"], negative = "Viral-Other" }'
    data = load(real_data, tmp_path, "guangzhou_cn", {"bacterial_pneumonia": source})
    positives, negatives = zip(*(data.count_labels(name) for name in data.split), strict=True)
    assert sum(positives)[0] == 134
    assert sum(negatives)[0] > 100
