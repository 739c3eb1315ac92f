"""Clinical variables beside the image: one linear head over both, which starts with the image alone."""

from __future__ import annotations

import numpy as np
import torch

from common.clinical import scaled
from common.model.build import CLINICAL_WEIGHT

VARIABLES = "age, male, crp"


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = np.array([[50, 1, np.nan], [80, 0, 200], [np.nan] * 3, [20, 1, 5]], np.float32)
    return images, torch.from_numpy(scaled(values, VARIABLES.split(", ")))


def test_it_starts_with_the_image_alone_and_adds_what_it_says(make_model) -> None:
    model, plain = make_model(data__clinical=VARIABLES), make_model()
    images, clinical = batch()
    model.train_mode(False)
    plain.train_mode(False)
    torch.testing.assert_close(model.forward(images, clinical), plain.forward(images))
    state = model.initial_state()
    state.tensors[CLINICAL_WEIGHT][1, 0] = 2.0  # the second finding goes with age
    state.tensors[CLINICAL_WEIGHT][1, 5] = -3.0  # and with not having measured the third variable
    model.load(state)
    added = (model.forward(images, clinical) - plain.forward(images)).detach()
    expected = 2 * clinical[:, 0] - 3 * clinical[:, 5]
    torch.testing.assert_close(added[:, 1], expected, atol=1e-5, rtol=0)
    assert not added[:, [0, 2, 3]].abs().max() > 1e-5
    cut = model.frozen_blocks
    hidden = model.prefix(images, cut)
    torch.testing.assert_close(model.suffix(hidden, cut, clinical), model.forward(images, clinical))


def test_it_belongs_to_the_head(make_model) -> None:
    model = make_model(data__clinical=VARIABLES, pet__method="head")
    assert CLINICAL_WEIGHT in model.schema.head
    assert model.schema.numel == make_model(pet__method="head").schema.numel + 4 * 6
    assert model.frozen_blocks == len(model.arch.blocks)
    assert make_model(data__clinical=VARIABLES).base_digest == make_model().base_digest
