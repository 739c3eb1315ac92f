"""What an update of any codec means is admitted like one in fp32; bytes that mean nothing are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.adapter import AdapterSchema
from common.codec import decode, encode
from common.config import RunConfig
from common.errors import NonFiniteError, NormError, SchemaError, UpdateError
from common.protocol import CODEC_ERROR, Answer
from server.admission import admit, admit_delta

SCHEMA = AdapterSchema((("b", (100,)), ("head", (2, 30))), ("head",))
PLANS = [
    RunConfig.from_flat({"data.findings": "edema, mass", "wire.codec": codec, "wire.entropy": entropy})
    for codec in ("int8", "topk")
    for entropy in (False, True)
]
VALUES = np.random.default_rng(0).normal(size=SCHEMA.numel).astype(np.float32)


def answer(update: np.ndarray, **metrics: float) -> Answer:
    told = {"num-examples": 20, "labelled": [20, 0], "loss": 0.5, "steps": 3, "seconds": 1.5}
    return Answer("north", update=update, metrics={**told, CODEC_ERROR: 0.01, **metrics})


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.wire.codec} {p.wire.entropy}")
def test_what_it_means_becomes_the_update(plan):
    update = encode(VALUES, plan.wire)
    admitted = admit(answer(update), "north", SCHEMA, plan, 50)
    assert SCHEMA.pack(admitted.delta).tobytes() == decode(update, plan.wire, SCHEMA.numel).tobytes()


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.wire.codec} {p.wire.entropy}")
@pytest.mark.parametrize(
    ("values", "error"),
    [
        pytest.param(VALUES[:-1], SchemaError, id="short"),
        pytest.param(np.append(VALUES, np.float32(1)), SchemaError, id="long"),
        pytest.param(np.where(np.arange(VALUES.size) == 3, np.nan, VALUES), NonFiniteError, id="NaN"),
        pytest.param(np.where(np.arange(VALUES.size) == 3, 3e38, VALUES), NormError, id="too large"),
    ],
)
def test_what_it_means_is_checked(plan, values, error):
    with pytest.raises(error):
        admit_delta(encode(values.astype(np.float32), plan.wire), SCHEMA, plan)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.wire.codec} {p.wire.entropy}")
@given(data=st.binary(max_size=400))
def test_whatever_bytes_come_it_is_a_coded_error_or_an_update(plan, data):
    try:
        delta = admit_delta(np.frombuffer(data, dtype=np.uint8), SCHEMA, plan)
    except UpdateError:
        return
    SCHEMA.check(delta)


def test_an_error_that_is_not_a_number_is_refused():
    plan = PLANS[0]
    with pytest.raises(NonFiniteError):
        admit(answer(encode(VALUES, plan.wire), **{CODEC_ERROR: float("nan")}), "north", SCHEMA, plan, 50)
