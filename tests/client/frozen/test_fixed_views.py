"""Fixed views of augmented images, and reports: kept as plain images are, and the same adapter as without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.augment import augment_as, normalise, to_float, view_draws
from client.data.dataset import SiteData
from common.errors import ConfigError
from common.model.build import CxrModel
from tests.client.frozen.frozen_parts import (
    STUDIES,
    gap,
    inputs_of,
    moved,
    never,
    trained,
)

VIEWS = {"train__augment": 0.8, "train__views": 3}


@pytest.mark.parametrize("scope", ["last-2", "all"])
def test_views_give_the_same_adapter_kept_or_not(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, scope: str
) -> None:
    model = make(pet__scope=scope, **VIEWS)
    plain = trained(model, site, inputs_of(model, site, prefix_cache=False))
    exact = inputs_of(model, site, tmp_path, cache_dtype="fp32")
    assert gap(trained(model, site, exact), plain, moved(model)) < 1e-4
    assert len([*tmp_path.glob("*.data")]) == (3 if scope == "last-2" else 0)
    fresh = make(pet__scope=scope, train__augment=0.8)
    other = trained(fresh, site, inputs_of(fresh, site))
    assert gap(other, plain, moved(model)) > 0.01


def test_a_step_sees_views_of_its_images_and_no_others(make: Callable[..., CxrModel], site: SiteData) -> None:
    model = make(pet__scope="last-2", **VIEWS)
    inputs, rows = inputs_of(model, site, cache_dtype="fp32"), site.split["train"][::-1].copy()
    seen = inputs.batch(rows, torch.Generator().manual_seed(0)).images
    which = torch.randint(1, 4, (len(rows),), generator=torch.Generator().manual_seed(0)).tolist()
    digests = inputs._digests()
    grey = to_float(torch.from_numpy(site.pixels[rows]))
    draws = torch.stack([view_draws(bytes(digests[r]), v) for r, v in zip(rows, which, strict=True)], dim=1)
    images = normalise(augment_as(grey, 0.8, draws), model.mean, model.std, model.channels)
    with torch.no_grad():
        torch.testing.assert_close(seen, model.prefix(images, 4), atol=1e-5, rtol=1e-5)
    assert {*which} == {1, 2, 3}
    plain = inputs.batch(rows).images
    assert ((plain - seen).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_views_are_an_image_s_own(site: SiteData, make: Callable[..., CxrModel]) -> None:
    """The same at whatever site and in whatever row; the first of many are those of few."""
    model = make(pet__scope="last-2", **VIEWS)
    turned = replace(site, pixels=site.pixels[::-1].copy())
    few, many = inputs_of(model, site), inputs_of(model, turned, views=5)
    rows = site.split["train"][10:20]
    for view in (1, 2, 3):
        here = few._images(rows, np.full(10, view))
        there = many._images(STUDIES - 1 - rows, np.full(10, view))
        assert torch.equal(here, there)
    assert torch.equal(few._images(np.array([2]), np.array([1])), few._images(np.array([3]), np.array([1])))
    assert not torch.equal(few._images(rows, np.full(10, 1)), few._images(rows, np.full(10, 2)))


def test_views_without_augmentation_are_an_error(make_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="views = 2 are of augmented images"):
        make_config(train__views=2)


# ---------------------------------------------------------------- reports


def test_reports_are_kept_on_disk_too(
    make: Callable[..., CxrModel], site: SiteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = replace(site, texts=tuple(f"Cough for {i % 7} days." for i in range(STUDIES)))
    over = {"data__text": True, "pet__towers": "vision", "pet__scope": "last-2"}
    model = make(**over)
    inputs = inputs_of(model, told, tmp_path)
    expected = trained(model, told, inputs)
    assert inputs.text_outputs == inputs.image_outputs == "disk"
    again = make(**over)
    monkeypatch.setattr(again, "read_text", never)
    monkeypatch.setattr(again, "prefix", never)
    assert trained(again, told, inputs_of(again, told, tmp_path)).digest() == expected.digest()


def test_in_a_probe_a_text_tower_that_is_tuned_later_stands_still(
    make: Callable[..., CxrModel], site: SiteData
) -> None:
    told = replace(site, texts=tuple(f"Cough for {i % 7} days." for i in range(STUDIES)))
    model = make(data__text=True, rounds__probe=1, rounds__count=2)
    inputs = inputs_of(model, told, cache_dtype="fp32")
    expected = trained(model, told, inputs_of(model, told, prefix_cache=False))
    assert gap(trained(model, told, inputs), expected, moved(model)) < 1e-4
    assert inputs.of_round(1).text_outputs == "memory" and inputs.of_round(2).text_outputs == "nowhere"
    dropping = make(data__text=True, rounds__probe=1, rounds__count=2, lora__dropout=0.1)
    inputs = inputs_of(dropping, told)
    expected = trained(dropping, told, inputs_of(dropping, told, prefix_cache=False))
    assert trained(dropping, told, inputs).digest() == expected.digest()
    assert inputs.of_round(1).text_outputs == "nowhere"
