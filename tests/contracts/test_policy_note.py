"""What the centre says of hospitals' policies is what a policy begins with."""

from __future__ import annotations

from client.gate.policy import Policy
from server.centre.run_commands import _COMMON_LEAST


def test_the_centre_knows_what_a_policy_begins_with() -> None:
    assert Policy().federation.min_sites == _COMMON_LEAST
    assert "median" not in Policy().federation.means
