"""The benchmark of growth fits what numpy fits, and runs what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulations.benchmarks.scaling import START, experiment, growth, main, parameters


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_is_found_again(exponent: float) -> None:
    sizes = [4.0, 8.0, 16.0, 32.0]
    dice = np.random.default_rng(3)
    times = [[0.3 * x**exponent * float(dice.lognormal(0, 0.05)) for _ in range(5)] for x in sizes]
    found = growth(sizes, times)
    xs = np.repeat(np.log(sizes), 5)
    slope = np.polyfit(xs, np.log(np.ravel(times)), 1)[0]
    assert found.exponent == pytest.approx(slope)
    assert found.low < exponent < found.high and found.high - found.low < 0.15
    assert found.last == pytest.approx(exponent, abs=0.2)


def test_one_thing_is_doubled_and_the_others_stay() -> None:
    small, more = experiment(START), experiment({**START, "sites": 8})
    assert (len(small.sites), len(more.sites)) == (4, 8)
    assert experiment({**START, "rounds": 16}).rounds.count == 16
    studies = experiment({**START, "studies": 128}).sites["site-000"].phantom
    assert studies is not None and studies.studies == 128
    ranks = [parameters({**START, "rank": rank}) for rank in (8, 16, 32)]
    assert ranks[2] - ranks[1] == 2 * (ranks[1] - ranks[0]) > 0


@pytest.mark.slow
def test_the_whole_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert main(["--doublings", "1", "--repeats", "2", "--only", "rounds", "--json", str(out)]) in (0, 1)
    found = json.loads(out.read_text())
    assert found["rounds"]["sizes"] == [2, 4] and len(found["rounds"]["seconds"][1]) == 2
    assert "rounds: exponent" in capsys.readouterr().out
