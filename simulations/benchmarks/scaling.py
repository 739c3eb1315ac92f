"""How the cost of a simulation grows with sites, rounds, studies and parameters: doublings and an exponent.

    python -m simulations.benchmarks.scaling --doublings 3 --repeats 4

One thing is doubled again and again while the others stay as small as they are at the start: 4 sites of 64
phantoms of 32 px, 2 rounds of one epoch, LoRA of rank 8 on a ViT of 6 blocks, 64 wide. Every run is a whole
simulation in this process, of studies already decoded: reading the sites, enrolment, rounds with validation,
commits, the test of the released model. The exponent b of seconds = a size^b is fitted by least squares to
the logarithms of all runs, which take turns; 0 is a cost that does not grow, 1 one in proportion. Because
part of every run is the same whatever is doubled, b of the last doubling stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import linregress, t

from client.app import worker_for
from common.config import RunConfig
from common.model.build import build_model
from simulations.benchmarks.pairs import seconds
from simulations.engine import run_inline
from simulations.experiment import Experiment
from simulations.prepare import prepare_sites
from simulations.run import quiet_libraries

START = {"sites": 4, "rounds": 2, "studies": 64, "rank": 8}
"""What is doubled -> where it starts."""
IN_WORDS = {"sites": "sites", "rounds": "rounds", "studies": "studies a site", "rank": "trained parameters"}
AT_MOST = 1.1
"""An exponent that is above this with 97.5 % confidence is more than growth in proportion."""


@dataclass(frozen=True)
class Growth:
    """How the cost grows with one thing."""

    exponent: float
    low: float
    high: float
    """95 % interval of the exponent."""
    last: float
    """Exponent of the last doubling, of median seconds."""


def experiment(sizes: Mapping[str, int]) -> Experiment:
    """Describe a simulation of so many sites, rounds, studies, and of a rank."""
    sites = {
        f"site-{k:03d}": {"phantom": {"studies": sizes["studies"], "seed": k + 1, "size": 32}}
        for k in range(sizes["sites"])
    }
    tree: dict[str, Any] = {
        "title": "scaling",
        "threads": 1,
        "arms": ["federated"],
        "data": {"findings": ["cardiomegaly", "effusion", "edema"], "image_size": 32},
        "model": {"backbone": "timm:test_vit"},
        "pet": {"rank": sizes["rank"]},
        "train": {"batch_size": 16, "prefix_cache": False},
        "rounds": {"count": sizes["rounds"], "deadline": 600.0},
        "evaluate": {"replicates": 20, "local": False, "pooled": False},
        "sites": sites,
    }
    return Experiment.build(tree)


def parameters(sizes: Mapping[str, int]) -> int:
    """Return how many parameters travel."""
    return build_model(experiment(sizes).run_config(sizes["sites"])).schema.numel


def growth(sizes: Sequence[float], times: Sequence[Sequence[float]]) -> Growth:
    """Fit the exponent; ``times`` are the seconds of every run of each size, sizes ascending.

    >>> growth([1, 2, 4], [[3.0, 3.0], [6.0, 6.0], [12.0, 12.0]])
    Growth(exponent=1.0, low=1.0, high=1.0, last=1.0)
    """
    logs = [(math.log(x), math.log(y)) for x, runs in zip(sizes, times, strict=True) for y in runs]
    found = linregress(*np.array(logs).T)
    wide = float(t.ppf(0.975, len(logs) - 2)) * float(found.stderr)
    slope = float(found.slope)
    step = math.log(sizes[-1] / sizes[-2])
    last = math.log(statistics.median(times[-1]) / statistics.median(times[-2])) / step
    return Growth(*(round(value, 9) for value in (slope, slope - wide, slope + wide, last)))


class Runs:
    """Simulations whose sites are laid out and decoded once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sites: dict[tuple[int, int], dict[str, Path]] = {}

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Lay out the sites of a simulation and run it once, so that every study is decoded."""
        key = sizes["sites"], sizes["studies"]
        if key not in self._sites:
            place = self._folder / f"sites-{key[0]}-{key[1]}"
            self._sites[key] = prepare_sites(experiment(sizes), place)
            self.time(sizes)

    def time(self, sizes: Mapping[str, int]) -> float:
        """Return the seconds of a whole run."""
        files = self._sites[sizes["sites"], sizes["studies"]]
        config: RunConfig = experiment(sizes).run_config(len(files))
        folder = self._folder / "run"
        worker_for.cache_clear()
        took = seconds(lambda: run_inline(config, files, folder))
        shutil.rmtree(folder)
        for file in files.values():  # what a site keeps of a run is not the next one's
            shutil.rmtree(file.parent / "state", ignore_errors=True)
        return took


def main(argv: Sequence[str] | None = None) -> int:
    """Print the doublings; returns 1 if something grows faster than in proportion."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--doublings", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=[*START], default=[*START])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    quiet_libraries()
    _say(f"{os.cpu_count()} cores, 1 thread; held fixed: {', '.join(f'{k} {v}' for k, v in START.items())}")
    points = {name: _points(name, chosen.doublings) for name in chosen.only}
    times: dict[str, list[list[float]]] = {name: [[] for _ in sizes] for name, sizes in points.items()}
    with tempfile.TemporaryDirectory() as made:
        runs = Runs(Path(made))
        for sizes in points.values():
            for one in sizes:
                runs.prepare(one)
        for _ in range(chosen.repeats):
            for name, sizes in points.items():
                for k, one in enumerate(sizes):
                    times[name][k].append(runs.time(one))
    found, missed = {}, []
    for name, sizes in points.items():
        along = [parameters(one) if name == "rank" else one[name] for one in sizes]
        grown = growth(along, times[name])
        found[name] = {"sizes": along, "seconds": times[name], **asdict(grown)}
        interval = f"95 % interval {grown.low:.2f} to {grown.high:.2f}, {chosen.repeats} runs of each"
        _say(
            f"\n{IN_WORDS[name]}: exponent {grown.exponent:.2f} ({interval}); last doubling {grown.last:.2f}"
        )
        for size, runs_of in zip(along, times[name], strict=True):
            _say(
                f"{size:10,}  {statistics.median(runs_of):8.3f} s  {min(runs_of):8.3f} to {max(runs_of):.3f}"
            )
        if grown.low > AT_MOST:
            missed.append(f"{IN_WORDS[name]}: exponent {grown.exponent:.2f}, expected {AT_MOST} or less")
    for line in missed:
        _say(f"MISSED: {line}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({**found, "missed": missed}, indent=1))
    return bool(missed)


def _points(name: str, doublings: int) -> list[dict[str, int]]:
    return [{**START, name: START[name] << k} for k in range(doublings + 1)]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
