"""Pretraining draws from seeds no experiment can use, learns, and repeats itself."""

from __future__ import annotations

import pytest
import torch

from client.pretrain.masked import patches, reconstruction_loss
from common.errors import ConfigError
from common.model.digest import tensor_digest
from simulations.experiment import Experiment
from simulations.pretrain.__main__ import build
from simulations.pretrain.masked import PATCH, pretrain_masked
from simulations.pretrain.radiographs import FIRST_RESERVED_SEED, SIZE, Radiographs, draw_radiographs
from simulations.pretrain.reports import hashed_ngrams, pretrain_reports


@pytest.fixture(scope="module")
def radiographs() -> Radiographs:
    return draw_radiographs(8)


def test_experiments_cannot_use_the_seeds_of_pretraining() -> None:
    sites = {"north": {"phantom": {"seed": FIRST_RESERVED_SEED}}}
    with pytest.raises(ConfigError, match=r"sites\.north\.phantom\.seed"):
        Experiment.build({"sites": sites})


@pytest.mark.parametrize("objective", [pretrain_masked, pretrain_reports])
def test_an_objective_moves_the_encoder_the_same_way_twice(objective, radiographs: Radiographs) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digests = []
    for _ in range(2):
        net = build(0)
        before = tensor_digest(net.state_dict())
        objective(net, radiographs, 2, 4, 0)
        digests.append(tensor_digest(net.state_dict()))
    torch.set_num_threads(threads)
    assert digests[0] == digests[1] != before


def test_only_hidden_patches_count(radiographs: Radiographs) -> None:
    clean = torch.from_numpy(radiographs.pixels[:2]).float() / 255
    target = patches(clean, PATCH)
    assert target.shape == (2, (SIZE // 8) ** 2, 64)
    normalised = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-4).sqrt()
    kept = torch.arange(10).expand(2, 10)
    wrong = normalised.clone()
    wrong[:, :10] += 5.0
    assert reconstruction_loss(wrong, clean, kept) == 0
    wrong[:, 10:] += 1.0
    assert reconstruction_loss(wrong, clean, kept) == pytest.approx(1.0, abs=1e-5)


def test_a_negation_is_another_word_than_the_finding() -> None:
    assert set(hashed_ngrams("No effusion.")) - set(hashed_ngrams("Effusion."))
    assert hashed_ngrams("No effusion. Edema.") != hashed_ngrams("Effusion. No edema.")
