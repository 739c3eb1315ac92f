"""Whether fifty watchers slow a run down: rounds of one simulation with and without them, in turns.

    python -m simulations.benchmarks.monitor_watchers --pairs 12 --watchers 50

A monitor serves the run's folder all the time. For some rounds nobody looks; for the next ones
watchers follow the run as browsers do (`simulations.benchmarks.watchers`), and so on; which comes
first alternates. A pair lies within a minute, so what the machine does besides weighs little. A
round's seconds are from one ``round`` event of the ledger to the next; the first two rounds of
each stretch, in which watchers come or go, do not count.

In life watchers sit at other machines, so their process has a core of its own, which neither the
simulation nor the monitor uses; these two share the others. Ends with 1 if rounds took more than
``--most`` times as long (the geometric mean of the pairs), or if a watcher was not served.

On a machine whose cores are not its own the same round takes a tenth longer now and then, whoever looks.
So the ratio is also shown in its two factors: the simulation's processor time for a round, where that
noise is (and what the monitor's work costs in caches), and its time for each second of processor time,
which is what it waited for the core while the monitor had it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

from simulations.benchmarks.monitor_process import MonitorProcess

RUN = "watched"
REPLICATES = 10_000
SETTLING = 2
"""Rounds of each stretch in which watchers come or go."""
QUERIES = [
    {},
    {},
    {},
    {"metric": "ece"},
    {"finding": "effusion"},
    {"finding": "edema", "site": "north"},
    {"metric": "pr-auc", "site": "west"},
    {"metric": "loss"},
    {},
    {},
]
"""What watchers look at; six of ten look at the same."""


@dataclass(frozen=True)
class Stretch:
    """Some rounds on end, with watchers or without."""

    watched: bool
    first: int
    last: int
    waiting: float
    """Seconds of the simulation for each second of processor time it was given."""
    monitor: float
    """Processor seconds of the monitor meanwhile."""
    seen: dict[str, float]
    """What the watchers say, empty without."""


class Watchers:
    """Fifty tabs, or so, until ``leave``."""

    def __init__(self, address: str, count: int, cores: list[int]) -> None:
        command = [sys.executable, "-m", "simulations.benchmarks.watchers", address, RUN]
        command += ["--count", str(count), "--query", json.dumps(QUERIES)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._process.pid, cores)

    def leave(self) -> dict[str, float]:
        """Close every tab; returns what they saw."""
        told: dict[str, float] = json.loads(self._process.communicate(timeout=60)[0])
        return told


class Simulation:
    """A run as a command of its own, and how far it is."""

    def __init__(self, experiment: str, folder: Path, rounds: int, changes: Sequence[str]) -> None:
        command = [sys.executable, "-m", "simulations.cli", "run", experiment, "--quiet"]
        command += ["--out", str(folder), "--arms", "federated", "--set", f"rounds.count={rounds}"]
        command += [word for change in changes for word in ("--set", change)]
        self._ledger = folder / "ledger.sqlite"
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def ends(self) -> list[float]:
        """Return when each round ended, so far."""
        if not self._ledger.is_file():
            return []
        with closing(sqlite3.connect(f"file:{self._ledger}?mode=ro", uri=True)) as ledger:
            try:
                found = ledger.execute("SELECT time FROM events WHERE kind = 'round' ORDER BY id").fetchall()
            except sqlite3.OperationalError:
                return []
        return [moment for (moment,) in found]

    def spent(self) -> tuple[float, float]:
        """Return the time, and the processor time it has used, in seconds."""
        used = psutil.Process(self.process.pid).cpu_times()
        return time.monotonic(), used.user + used.system

    def wait_for(self, rounds: int) -> None:
        """Return when so many rounds are over.

        Raises:
            RuntimeError: if the run ends before.
        """
        while len(self.ends()) < rounds:
            if self.process.poll() is not None:
                raise RuntimeError(f"the simulation ended after {len(self.ends())} rounds")
            time.sleep(0.1)


def stretches(
    simulation: Simulation, monitor: MonitorProcess, pairs: int, rounds: int, watchers: tuple[int, list[int]]
) -> list[Stretch]:
    """Go through the run in stretches of so many rounds that count, after those that do not."""
    found: list[Stretch] = []
    over = 1  # the very first round warms up
    simulation.wait_for(over)
    for k in range(pairs):
        for watched in (False, True) if k % 2 == 0 else (True, False):
            before = monitor.work()
            looking = Watchers(monitor.address, *watchers) if watched else None
            simulation.wait_for(over + SETTLING)
            began, had = simulation.spent()
            simulation.wait_for(over + SETTLING + rounds)
            ended, has = simulation.spent()
            work, waiting = monitor.work() - before, (ended - began) / (has - had)
            seen = looking.leave() if looking else {}
            counted = over + SETTLING + 1, over + SETTLING + rounds
            found.append(Stretch(watched, *counted, waiting, work, seen))
            over = len(simulation.ends())
    return found


def interval(ratios: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the geometric mean, pairs drawn with replacement.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    logs = np.log(ratios)
    drawn = np.random.default_rng(0).integers(0, len(logs), (REPLICATES, len(logs)))
    low, high = np.quantile(logs[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return math.exp(low), math.exp(high)


def _told(ratios: Sequence[float]) -> str:
    low, high = interval(ratios)
    return f"{statistics.geometric_mean(ratios):.4f} ({low:.4f} to {high:.4f})"


def _ratios(found: Sequence[Stretch], ends: Sequence[float]) -> list[tuple[float, float]]:
    """Print the pairs; returns watched over alone for each: of a round's seconds, and of what it waited."""
    took = [later - earlier for earlier, later in pairwise(ends)]  # of round 2, 3 ...
    sys.stdout.write(
        f"{'pair':>4} {'round s':>8} {'watched':>8} {'ratio':>7} {'waiting':>8} {'monitor CPU s':>14}"
        f" {'events':>7} {'answers':>8} {'same':>6} {'errors':>7}\n"
    )
    ratios = []
    for k, pair in enumerate(zip(found[::2], found[1::2], strict=True)):
        alone, watched = sorted(pair, key=lambda stretch: stretch.watched)
        means = [statistics.fmean(took[s.first - 2 : s.last - 1]) for s in (alone, watched)]
        ratio, waiting = means[1] / means[0], watched.waiting / alone.waiting
        ratios.append((ratio, waiting))
        seen = watched.seen
        sys.stdout.write(
            f"{k + 1:>4} {means[0]:8.3f} {means[1]:8.3f} {ratio:7.3f} {waiting:8.3f} {watched.monitor:14.1f}"
            f" {seen['events']:7.0f} {seen['answers']:8.0f} {seen['unchanged']:6.0f} {seen['errors']:7.0f}\n"
        )
    return ratios


def main() -> int:
    """Run, watch in turns, print the ratio; returns 1 if it is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5, help="of each stretch, that count")
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--most", type=float, default=1.02, help="of the ratio of round times")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    theirs = cores[-1:]
    os.sched_setaffinity(0, cores[:-1] or theirs)  # what is started inherits it
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(cores) - 1))
    sys.stdout.write(f"{len(cores)} cores, one of them for the watchers\n")
    with tempfile.TemporaryDirectory() as temporary, MonitorProcess(Path(temporary)) as monitor:
        rounds = 10 + 2 * options.pairs * (
            options.rounds + SETTLING + 2
        )  # a round may pass while watchers leave
        folder = Path(temporary) / RUN
        simulation = Simulation(options.experiment, folder, min(rounds, 500), options.changes)
        try:
            watchers = (options.watchers, theirs)
            found = stretches(simulation, monitor, options.pairs, options.rounds, watchers)
            ratios = _ratios(found, simulation.ends())
        finally:
            simulation.process.kill()
            simulation.process.wait()
        peak = monitor.peak
    ratio = statistics.geometric_mean([took for took, _ in ratios])
    sys.stdout.write(
        f"rounds with {options.watchers} watchers took {_told([took for took, _ in ratios])} times as long "
        f"(95 % interval, {len(ratios)} pairs, limit {options.most:g}):\n"
        f"  {_told([took / waited for took, waited in ratios])} by processor time for a round\n"
        f"  {_told([waited for _, waited in ratios])} by waiting for the core\n"
        f"the monitor took at most {peak / 1e6:.0f} MB\n"
    )
    missed = [s for s in found if s.watched and (s.seen["watching"] < options.watchers or s.seen["errors"])]
    if missed:
        sys.stdout.write(f"in {len(missed)} stretches some watchers were not served\n")
    return int(ratio > options.most or bool(missed))


if __name__ == "__main__":
    sys.exit(main())
