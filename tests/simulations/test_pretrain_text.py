"""The embedded text encoder is made from seeds no experiment can use, the same way twice, and it learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.text.redaction import survivors
from common.model.digest import tensor_digest
from common.model.text.embedded import build_embedded
from common.model.text.tokens import Tokens
from common.model.text.words import CLS, MASK, PAD, SPECIAL, tokenize_words
from simulations.benchmarks.text_features import features, macro_auroc, phantom_reports, towers, trained_head
from simulations.pretrain.radiographs import FIRST_RESERVED_SEED, Radiographs, draw_radiographs
from simulations.pretrain.text import (
    FIRST_WORDS_SEED,
    Objectives,
    Written,
    draw_texts,
    hide,
    image_features,
    pretrain_text,
)


@pytest.fixture(scope="module")
def written() -> Written:
    return draw_texts(40)


@pytest.fixture(scope="module")
def radiographs() -> Radiographs:
    return draw_radiographs(8)


def test_reports_come_from_reserved_seeds_in_every_redaction(written: Written) -> None:
    assert FIRST_WORDS_SEED > FIRST_RESERVED_SEED
    assert len(written.texts) == len(written.findings) == len(written.impressions) == 40
    whole, words, sentences, indications = (written.texts[i::4] for i in range(4))
    assert whole[1].endswith(f"{written.findings[4]}\n{written.impressions[4]}")
    assert all(text.count("\n") == 2 for text in whole)
    assert not any("\n" in text for text in indications)
    for less, more in ((sentences, words), (words, whole)):
        assert sum(map(len, less)) < sum(map(len, more))
    assert not any(survivors(text.partition("\n")[2]) for text in (*words, *sentences))


def test_the_encoder_is_made_the_same_way_twice(written: Written, radiographs: Radiographs) -> None:
    digests = []
    seen = image_features(radiographs, 0)
    assert seen.shape == (8, 128)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    for _ in range(2):
        net = build_embedded(0)
        before = tensor_digest(net.state_dict())
        pretrain_text(net, written, radiographs, seen, 4, 4, 0)
        digests.append(tensor_digest(net.state_dict()))
    assert digests[0] == digests[1] != before


def test_only_words_are_hidden_and_guessed() -> None:
    tokens = tokenize_words(["No pleural effusion. " * 30, "Edema"], 128)
    ids, targets = hide(tokens, np.random.default_rng(0))
    asked = (targets >= 0).numpy()
    assert 0.05 < asked[tokens.mask].mean() < 0.25
    assert (targets.numpy()[asked] == tokens.ids[asked]).all()
    assert (tokens.ids[asked] >= SPECIAL).all()
    assert (ids.numpy()[~asked] == tokens.ids[~asked]).all()
    assert (ids.numpy()[~tokens.mask] == PAD).all()
    assert (ids[:, 0] == CLS).all()
    assert (ids.numpy()[asked] == MASK).mean() > 0.5
    nothing = Tokens(np.full((1, 3), CLS, dtype=np.int32), np.ones((1, 3), dtype=bool))
    assert (hide(nothing, np.random.default_rng(0))[1] < 0).all()


@pytest.mark.parametrize("kind", ["pairs", "sections"])
def test_a_few_steps_bring_together_what_belongs_together(kind: str) -> None:
    torch.manual_seed(0)
    net = build_embedded(0)
    objectives = Objectives(net, 128, 4)
    tokens = tokenize_words(["No edema.", "Edema.", "Line in place.", "Large effusion."], 16)
    others = tokenize_words(["Dry lungs.", "Wet.", "A catheter.", "Fluid, left."], 16)
    swapped = [1, 0, 3, 2]

    def loss(rows: list[int], offset: int = 0) -> torch.Tensor:
        if kind == "pairs":
            return objectives.pairs(tokens.take(rows), torch.eye(4), offset)
        return objectives.sections(tokens.take(rows), others, offset)

    optimizer = torch.optim.Adam([*net.parameters(), *objectives.parameters()], lr=1e-3)
    first = loss([0, 1, 2, 3])
    for step in range(12):
        optimizer.zero_grad()
        loss([0, 1, 2, 3], 7 * step).backward()
        optimizer.step()
    assert loss([0, 1, 2, 3]) < 0.8 * first
    assert loss(swapped) > first


def test_what_it_learnt_shows_in_a_head_that_is_trained_as_a_run_does() -> None:
    """``python -m simulations.benchmarks.text_features`` prints the whole table."""
    train, test = phantom_reports(400, seed=900_001), phantom_reports(300, seed=900_002)
    pretrained, random = (
        macro_auroc(
            trained_head(features(tower, train.texts("none")), train.labels),
            features(tower, test.texts("none")),
            test.labels,
        )
        for tower in towers()
    )
    assert pretrained > 0.94
    assert pretrained > random + 0.04
