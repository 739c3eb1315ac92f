"""Which tensors a round trains."""

from __future__ import annotations

import pytest

from common.adapter import AdapterSchema
from common.phase import trained_count, trained_names

SCHEMA = AdapterSchema(
    (
        ("b.lora_A.weight", (2, 5)),
        ("b.lora_B.weight", (7, 2)),
        ("head.weight", (3, 4)),
        ("norm.weight", (4,)),
    ),
    ("head.weight",),
)
A, B, HEAD, NORM = SCHEMA.names


@pytest.mark.parametrize("round_number", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("aggregation", "odd", "even"),
    [
        ("fedit", {A, B}, {A, B}),
        ("fedex", {A, B}, {A, B}),
        ("ffa", {B}, {B}),
        ("rolora", {B}, {A}),
    ],
)
def test_factors_by_round(make_config, aggregation, odd, even, round_number):
    config = make_config(lora__aggregation=aggregation)
    names = trained_names(SCHEMA, config, round_number)
    assert set(names) == {HEAD, NORM} | (odd if round_number % 2 else even)
    assert list(names) == [n for n in SCHEMA.names if n in names]


def test_count_over_a_run(make_config):
    assert trained_count(SCHEMA, make_config(lora__aggregation="rolora")) == 10 + 14 + 12 + 4
    assert trained_count(SCHEMA, make_config(lora__aggregation="ffa")) == 14 + 12 + 4


def test_another_method_trains_everything_whatever_lora_says(make_config):
    config = make_config(pet__method="norm", lora__aggregation="ffa")
    assert trained_names(SCHEMA, config, 1) == SCHEMA.names
