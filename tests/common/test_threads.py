"""A process that trains has torch's threads, and none of numpy's beside them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.threads import cores_here

CODE = """
import numpy, torch
from threadpoolctl import ThreadpoolController
from common.threads import keep_to_torch
torch.set_num_threads(2)
before = {p["internal_api"]: p["num_threads"] for p in ThreadpoolController().info()}
keep_to_torch()
keep_to_torch()
after = {p["internal_api"]: p["num_threads"] for p in ThreadpoolController().info()}
assert "openblas" in before, before
assert after["openblas"] == 1, after
assert torch.get_num_threads() == 2
"""


def test_numpy_computes_in_its_own_thread_and_torch_keeps_its() -> None:
    """In a process of its own: the limit stays for as long as one lives."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system confines no process to cores")
def test_the_cores_of_a_confined_process_are_those_it_may_use() -> None:
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(own)})
        assert cores_here() == 1
    finally:
        os.sched_setaffinity(0, own)
    assert cores_here() == len(own)
