"""The index of a site, and the command that writes it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.data.index import index_site
from client.data.workers import Workers
from client.site import SiteConfig

Make = Callable[..., SiteConfig]
TOML = '[labels]\nedema = "E"\n[clinical]\ncrp = "CRP"\n'


def rows(count: int = 12) -> dict[str, list[object]]:
    return {
        "patient": [f"PATIENT-{i // 2}" for i in range(count)],
        "view": ["PA"] * (count - 1) + ["LL"],
        "E": [i % 2 for i in range(count)],
        "CRP": [5 * i for i in range(count)],
        "age": [20 + i for i in range(count)],
    }


def test_every_row_is_in_it(make_site: Make, tmp_path: Path) -> None:
    site = make_site(rows(), TOML)
    (tmp_path / "images" / "003.png").write_text("not an image")
    index, pictures = index_site(site)
    assert len(index) == len(pictures) == 12
    assert index.code.tolist() == ["", "", "", "not-an-image", *[""] * 7, "view"]
    assert (index.split == "").tolist() == (index.code != "").tolist()
    assert index["label.edema"].tolist() == [i % 2 for i in range(12)]
    assert index["clinical.crp"].tolist() == [5 * i for i in range(12)]
    assert index["clinical.age"].tolist() == index.age.tolist()
    assert index.sha256[0] and not index.sha256[11]  # a lateral is not even opened
    shown = pictures[np.array([11, 2, 3])]
    assert shown[:, 0, 0].tolist() == [0, 14, 0]
    for split in ("train", "validation", "test"):
        patients = set(index.patient[index.split == split])
        assert patients and not patients & set(index.patient[~index.split.isin(["", split])])


def test_the_command_writes_and_a_second_run_reads_only_what_changed(
    make_site: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_site(rows(), TOML)
    file, folder = str(tmp_path / "site.toml"), tmp_path / "state" / "index"
    first = CliRunner().invoke(app, ["index", file])
    assert first.exit_code == 0, first.output
    assert "edema" in first.output and "PATIENT" not in first.output
    before = pd.read_parquet(folder / "index.parquet")
    for name in ("index.parquet", "index.html"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    read: list[Path] = []
    real = Workers.read

    def spy(self: Workers, paths: Iterable[Path], *how: Any) -> Any:
        wanted = list(paths)
        read.extend(wanted)
        return real(self, wanted, *how)

    monkeypatch.setattr(Workers, "read", spy)
    os.utime(tmp_path / "images" / "004.png", ns=(1, 1))
    assert CliRunner().invoke(app, ["index", file]).exit_code == 0
    assert [path.name for path in read] == ["004.png"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "index.parquet"), before)


def test_what_is_wrong_is_one_message(make_site: Make, tmp_path: Path) -> None:
    make_site({**rows(), "E": ["x"] * 12}, TOML)
    result = CliRunner().invoke(app, ["index", str(tmp_path / "site.toml")])
    assert result.exit_code == 3
    assert result.output.startswith("E_LABELS  ")
    assert "Traceback" not in result.output
