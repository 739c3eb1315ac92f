"""The benchmarks of the monitor's page still run, and still say no when a limit is passed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

SMALL = ("--rounds", "6", "--sites", "4", "--findings", "3", "--samples", "2")


@pytest.mark.parametrize(("limits", "code"), [(("--most-ms", "60000"), 0), (("--most-mb", "1"), 1)])
def test_every_address_of_the_page_is_answered_and_timed(limits, code):
    command = [sys.executable, "-m", "simulations.benchmarks.monitor_page", *SMALL, *limits]
    told = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert "answered with" not in told.stdout
    for address in ("/runs/large/update", "/compare", "/api/v1/runs", "/metrics", "ledger.zip (file)"):
        assert address in told.stdout
    assert told.returncode == code, told.stdout + told.stderr
