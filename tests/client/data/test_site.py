"""site.toml: what is accepted, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.site import SiteConfig, load_site
from common.errors import ConfigError

MINIMAL = 'name = "north"\n[data]\ntable = "studies.csv"\n'


def load(folder: Path, text: str) -> SiteConfig:
    (folder / "site.toml").write_text(text)
    return load_site(folder / "site.toml")


def test_three_lines_are_enough_and_paths_are_beside_the_file(tmp_path: Path) -> None:
    site = load(tmp_path, MINIMAL)
    assert site.data.table == tmp_path.resolve() / "studies.csv"
    assert site.data.cache == tmp_path.resolve() / "cache"
    assert site.data.root == tmp_path.resolve()
    assert site.data.views == ("PA", "AP")
    assert site.evaluate.min_cell == 11


def test_every_key(tmp_path: Path) -> None:
    site = load(
        tmp_path,
        """
        name = "st-anna_2"
        [data]
        table = "/abs/studies.parquet"
        root = "images"
        cache = "c"
        state = "s"
        views = "any"
        max_quarantined = 0
        split = [0.8, 0, 0.2]
        split_seed = 3
        [columns]
        path = "file"
        patient = "pid"
        study = "acc"
        view = "proj"
        age = "age"
        sex = "sex"
        split = "fold"
        [filter]
        site = "hannover_de"
        year = [2019, 2020]
        [labels]
        "Pleural Effusion" = "Pleural_Effusion"
        bacterial_pneumonia = { column = "finding", positive = ["Bacterial"], negative = "Normal" }
        [uncertainty]
        effusion = "ignore"
        [device]
        name = "cuda:1"
        threads = 4
        [evaluate]
        min_cell = 5
        """,
    )
    assert site.data.table == Path("/abs/studies.parquet")
    assert site.data.views == ()
    assert site.filter == {"site": ("hannover_de",), "year": (2019, 2020)}
    assert site.labels["effusion"].column == "Pleural_Effusion"
    assert site.labels["bacterial_pneumonia"].negative == ("Normal",)
    assert site.uncertainty == {"effusion": "ignore"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "vews = ['PA']\n", ["data.vews", "'PA'", "did you mean 'views'?"]),
        (MINIMAL + "[lables]\neffusion = 'x'\n", ["unknown key lables", "did you mean 'labels'?"]),
        (MINIMAL + "[labels]\nefusion = 'x'\n", ["'efusion'", "did you mean 'effusion'?"]),
        (MINIMAL + "[labels]\nno_finding = 'x'\n", ["not a finding"]),
        (MINIMAL + "[labels]\neffusion = 'x'\n'pleural effusion' = 'y'\n", ["another name of 'effusion'"]),
        (
            MINIMAL + "[labels]\ncovid = {column = 'x', positiv = ['a']}\n",
            ["labels.covid.positiv", "did you mean 'positive'?"],
        ),
        (MINIMAL + "[labels]\ncovid = {column = 'x', positive = ['a']}\n", ["labels.covid", "both"]),
        (
            MINIMAL + "[labels]\ncovid = {column = 'x', positive = ['a'], negative = ['a']}\n",
            ["'a' is both positive and negative"],
        ),
        (MINIMAL + "max_quarantined = nan\n", ["data.max_quarantined", "finite", "nan"]),
        (MINIMAL + "max_quarantined = 1.5\n", ["data.max_quarantined", "1.5"]),
        (MINIMAL + "split = [0.7, 0.2, 0.2]\n", ["data.split", "add up to 1"]),
        (MINIMAL + "split = [0.7, inf, 0.2]\n", ["data.split", "inf"]),
        (MINIMAL + "split_seed = 1.5\n", ["data.split_seed", "1.5"]),
        (MINIMAL + "[uncertainty]\nedema = 'maybe'\n", ["uncertainty.edema", "'maybe'", "ignore"]),
        (MINIMAL + "[device]\nname = 'gpu'\n", ["device.name", "'gpu'"]),
        (MINIMAL + "[device]\nthreads = -1\n", ["device.threads", "-1"]),
        (MINIMAL + "[evaluate]\nmin_cell = true\n", ["evaluate.min_cell", "True"]),
        (MINIMAL.replace("north", "St Anna"), ["name", "'St Anna'"]),
        ("name = 'north'\n", ["data is missing"]),
        ("name = 'north'\n[data]\nviews = []\n", ["data.table is missing"]),
        ("name = \n", ["not valid TOML"]),
    ],
)
def test_mistakes_name_the_key_and_the_value(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for part in expected:
        assert part in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no site file"):
        load_site(tmp_path / "site.toml")


def test_frozen(tmp_path: Path) -> None:
    site = load(tmp_path, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        site.name = "south"
