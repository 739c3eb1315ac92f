"""Number formats on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.codec import DTYPES, encode_update
from common.sections import WireConfig

deltas = arrays(np.float32, st.integers(0, 40), elements=st.floats(-100, 100, width=32))


@given(deltas)
def test_fp32_is_the_identity(delta):
    encoded = encode_update(delta, WireConfig(codec="fp32"))
    assert encoded.dtype == np.float32
    assert encoded.tobytes() == delta.tobytes()


@given(deltas)
def test_fp16_is_the_nearest_half(delta):
    """Eleven significant bits: half a unit in the last place, or half the smallest subnormal."""
    encoded = encode_update(delta, WireConfig(codec="fp16"))
    assert encoded.dtype == np.float16
    error = np.abs(encoded.astype(np.float64) - delta)
    assert (error <= np.maximum(np.abs(delta.astype(np.float64)) * 2**-11, 2**-25)).all()


@pytest.mark.parametrize(("codec", "size"), [("fp32", 4), ("fp16", 2)])
def test_payload_is_counted_per_number(codec, size):
    wire = WireConfig(codec=codec)
    assert encode_update(np.ones(7, dtype=np.float32), wire).nbytes == 7 * size


def test_every_codec_of_the_config_has_a_format():
    assert set(DTYPES) == set(WireConfig.model_fields["codec"].annotation.__args__)
