"""An index as `fedcxr-site index` writes it, with identifiers planted that must not be shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

PLANTED = ("MRN-77", "Doe", "1.2.840.77")
"""What every patient, file and study of the index is called after."""


def build_index(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, max(rows // 3, 1), rows)
    view = rng.choice(["PA", "AP", ""], rows, p=[0.6, 0.38, 0.02]).astype(object)
    code = np.full(rows, "", dtype=object)
    code[: rows // 20] = "truncated"
    code[rows // 20 : rows // 15] = "near-duplicate"
    code[rows // 15 : rows // 10] = "view"
    split = np.array(["train", "validation", "test"], dtype=object)[np.digitize(patient % 10, (7, 8))]
    age = rng.normal(58, 18, rows).clip(0, 99)
    age[rng.random(rows) < 0.1] = np.nan
    index = pd.DataFrame(
        {
            "path": [f"MRN-77{p:05d}/Doe^{i}.png" for i, p in enumerate(patient)],
            "patient": [f"MRN-77{p:05d}" for p in patient],
            "study": [f"1.2.840.77.{i // 2}" if i % 5 else "" for i in range(rows)],
            "view": view,
            "sex": rng.choice(["M", "F", ""], rows).astype(object),
            "age": age.astype(np.float32),
            "scanner": rng.choice(["GE Definium", "Agfa DX-D", ""], rows, p=[0.7, 0.2, 0.1]).astype(object),
            "split": np.where(code == "", split, ""),
            "code": code,
        }
    )
    for finding, share in (("effusion", 0.3), ("pneumothorax", 0.01), ("covid", 0.0), ("hernia", np.nan)):
        cells = (rng.random(rows) < share).astype(np.float32)
        cells[rng.random(rows) < 0.1] = np.nan
        index[f"label.{finding}"] = cells if share == share else np.float32(np.nan)
    temperature = rng.normal(37.4, 0.8, rows).astype(np.float32)
    temperature[rng.random(rows) < 0.7] = np.nan
    return index.assign(**{"clinical.temperature": temperature, "clinical.crp": np.float32(np.nan)})


@pytest.fixture
def make_index() -> Callable[..., pd.DataFrame]:
    return build_index


@pytest.fixture
def planted_names() -> tuple[str, ...]:
    return PLANTED
