"""Image and text: parity with transformers' CLIP loss, a frozen text side, and what it learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from client.pretrain import contrast
from client.pretrain.contrast import ImageText, Projections, info_nce
from common.model.text.encoder import load_text_tower
from common.phase import trained_names

REPORTS = {"pretrain__rounds": 2, "pretrain__task": "image-text"}


def test_the_loss_is_that_of_clip() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(6, 5, generator=generator) for _ in range(2))
    scale = torch.tensor(7.0)
    similarity = scale * functional.normalize(text, dim=-1) @ functional.normalize(image, dim=-1).T
    expected = image_text_contrastive_loss(similarity)
    torch.testing.assert_close(info_nce(image, text, scale), expected)


def test_pairs_that_fit_cost_less_than_pairs_that_do_not() -> None:
    image = torch.eye(4)
    assert info_nce(image, image, torch.tensor(50.0)) < 1e-6
    assert info_nce(image, image.roll(1, 0), torch.tensor(50.0)) > 40


def test_the_temperature_is_learnt_within_bounds() -> None:
    projections = Projections(4, 3)
    with torch.no_grad():
        projections.log_scale.fill_(100.0)
    assert torch.isfinite(projections(torch.randn(3, 4), torch.randn(3, 3)))


def test_reports_are_read_once_by_a_frozen_tower(make_model, make_pool, monkeypatch) -> None:
    model, pool = make_model(**REPORTS), make_pool(reports=True).pool
    loaded = []
    monkeypatch.setattr(
        contrast, "load_text_tower", lambda config: loaded.append(1) or load_text_tower(config)
    )
    first = ImageText(model, pool, ())
    second = ImageText(model, pool, ())
    assert loaded == [1]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    tower = load_text_tower(model.config)
    tokens = tower.tokenize(pool.texts, model.config.data.text_length)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    with torch.no_grad():
        expected = tower.pooled(tower.hidden(ids, mask), mask)
    torch.testing.assert_close(first._text(torch.arange(len(pool))), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("towers", ["vision", "both"])
def test_a_text_tower_that_pet_is_in_is_moved_too(make_model, make_pool, towers: str) -> None:
    model = make_model(**REPORTS, data__text=True, pet__towers=towers, pet__rank=2, lora__aggregation="ffa")
    names = trained_names(model.schema, model.config, 1)
    task = ImageText(model, make_pool(reports=True).pool, names)
    model.train_mode(True)
    task(torch.randn(4, model.channels, 32, 32), torch.arange(4)).backward()
    moved = {name for name, p in model.parameters.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("text.") for name in moved & {*names}) == (towers == "both")
    assert any(name.startswith("blocks.") for name in moved & {*names})
