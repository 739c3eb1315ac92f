"""Whether fifty watchers slow a run down: the same simulation with and without them, in pairs.

    python -m simulations.benchmarks.monitor_watchers --pairs 6 --watchers 50

A monitor serves the folder in both runs of a pair; in one of them watchers follow the run as
browsers do (`simulations.benchmarks.watchers`), in the other nobody does. Which comes first
alternates. A round's seconds are from one ``round`` event of the ledger to the next, so whatever
lies between rounds counts too; the first round, which warms up, does not.

The watchers are one process at the lowest priority. In life they sit at other machines: their own
processor time is told apart, and on a machine with few cores some of the slowdown is still theirs,
not the monitor's. ``--without-monitor`` compares with a run beside which no monitor serves at all.

Ends with 1 if the rounds took more than ``--most`` times as long (the geometric mean of the pairs).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from server.ledger import Ledger
from simulations.benchmarks.monitor_process import MonitorProcess

RUN = "watched"
REPLICATES = 10_000
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
class Outcome:
    """One run."""

    seconds: tuple[float, ...]
    """Of each round but the first."""
    processor: float
    """Processor seconds of the simulation."""
    monitor: float
    """Processor seconds of the monitor while the run went on."""
    peak: int
    """Most bytes of memory the monitor had."""
    seen: dict[str, float]
    """What the watchers say, empty without."""

    @property
    def round(self) -> float:
        """Mean seconds of a round."""
        return statistics.fmean(self.seconds)


@dataclass(frozen=True)
class Series:
    """What is run again and again."""

    experiment: str
    changes: tuple[str, ...]
    sites: Path
    """Sites that were prepared once."""

    def run(self, folder: Path, watchers: int, monitored: bool) -> Outcome:
        """Run once in an empty folder, with so many watchers."""
        out = folder / RUN
        shutil.copytree(self.sites, out / "sites")
        with ExitStack() as beside:
            monitor = beside.enter_context(MonitorProcess(folder)) if monitored else None
            # What the monitor does to start is not what it does for watchers.
            before = 0.0 if monitor is None else _settled(monitor)
            watching = _watch(monitor.address, watchers) if monitor is not None and watchers else None
            processor = self.simulate(out)
            work = 0.0 if monitor is None else monitor.work() - before
            seen = {} if watching is None else json.loads(watching.communicate(timeout=60)[0])
        seconds = round_seconds(out)
        shutil.rmtree(out)
        peak = 0 if monitor is None else monitor.peak
        return Outcome(seconds, processor, work, peak, seen)

    def simulate(self, out: Path) -> float:
        """Run the simulation as a command of its own; returns its processor seconds.

        Raises:
            RuntimeError: if it failed.
        """
        command = [sys.executable, "-m", "simulations.cli", "run", self.experiment, "--quiet"]
        command += ["--out", str(out), "--arms", "federated"]
        command += [word for change in self.changes for word in ("--set", change)]
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            raise RuntimeError(f"the simulation failed: {' '.join(command)}")
        return used.ru_utime + used.ru_stime


def round_seconds(folder: Path) -> tuple[float, ...]:
    """Return the seconds from each round's end to the next one's, as the ledger tells."""
    ledger = Ledger(folder / "ledger.sqlite")
    ends = [event.time for event in ledger.events() if event.kind == "round"]
    ledger.close()
    return tuple(later - earlier for earlier, later in pairwise(ends))


def interval(ratios: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the geometric mean, pairs drawn with replacement.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    logs = np.log(ratios)
    drawn = np.random.default_rng(0).integers(0, len(logs), (REPLICATES, len(logs)))
    low, high = np.quantile(logs[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return math.exp(low), math.exp(high)


def _watch(address: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "simulations.benchmarks.watchers", address, RUN, "--count", str(count)]
    command += ["--query", json.dumps(QUERIES)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _settled(monitor: MonitorProcess) -> float:
    """Wait until the monitor rests; returns what it has worked."""
    before = -1.0
    while monitor.work() - before > 0.01:
        before = monitor.work()
        time.sleep(0.5)
    return monitor.work()


def _compare(series: Series, folder: Path, options: argparse.Namespace) -> list[tuple[Outcome, Outcome]]:
    """Run the pairs, each (without, with) watchers, and print them as they come.

    ``its CPU`` is the ratio of the simulation's own processor seconds; what is not in it but in the
    ratio of the rounds was time spent waiting for a core.
    """
    pairs = []
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are cores")
    sys.stdout.write(f"{os.cpu_count()} cores; threads of the simulation: {threads}\n")
    sys.stdout.write(
        f"{'pair':>4} {'round s':>8} {'watched':>8} {'ratio':>7} {'its CPU':>8} {'monitor CPU s':>14}"
        f" {'watchers CPU s':>15} {'events':>7} {'answers':>8} {'same':>6} {'errors':>7}\n"
    )
    for k in range(options.pairs):
        found: dict[int, Outcome] = {}
        for watchers in (0, options.watchers) if k % 2 == 0 else (options.watchers, 0):
            monitored = bool(watchers) or not options.without_monitor
            found[watchers] = series.run(folder, watchers, monitored)
        alone, watched = found[0], found[options.watchers]
        pairs.append((alone, watched))
        seen = watched.seen
        sys.stdout.write(
            f"{k + 1:>4} {alone.round:8.3f} {watched.round:8.3f} {watched.round / alone.round:7.3f}"
            f" {watched.processor / alone.processor:8.3f} {watched.monitor:14.1f} {seen['processor']:15.1f}"
            f" {seen['events']:7.0f} {seen['answers']:8.0f} {seen['unchanged']:6.0f} {seen['errors']:7.0f}\n"
        )
        sys.stdout.flush()
    return pairs


def main() -> int:
    """Prepare the sites, run the pairs, print the ratio; returns 1 if it is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--without-monitor", action="store_true", help="no monitor where nobody watches")
    parser.add_argument("--most", type=float, default=1.02, help="of the ratio of round times")
    options = parser.parse_args()
    changes = (f"rounds.count={options.rounds}", *options.changes)
    with tempfile.TemporaryDirectory() as temporary:
        warm = Path(temporary) / "warm"
        Series(options.experiment, (*changes, "rounds.count=1"), warm).simulate(warm)
        series = Series(options.experiment, changes, warm / "sites")
        (Path(temporary) / "runs").mkdir()
        pairs = _compare(series, Path(temporary) / "runs", options)
    ratios = [watched.round / alone.round for alone, watched in pairs]
    ratio = math.exp(statistics.fmean(math.log(r) for r in ratios))
    low, high = interval(ratios)
    sys.stdout.write(
        f"rounds with {options.watchers} watchers took {ratio:.4f} times as long "
        f"(95 % interval {low:.4f} to {high:.4f}, {len(ratios)} pairs, limit {options.most:g})\n"
        f"the monitor took at most {max(o.peak for pair in pairs for o in pair) / 1e6:.0f} MB\n"
    )
    missed = [o.seen for _, o in pairs if o.seen["watching"] < options.watchers or o.seen["errors"]]
    if missed:
        sys.stdout.write(
            f"in {len(missed)} runs some watchers were not served; these do not count for much\n"
        )
    return int(ratio > options.most or bool(missed))


if __name__ == "__main__":
    sys.exit(main())
