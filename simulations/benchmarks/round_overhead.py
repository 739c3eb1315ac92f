"""What a round of a deployment costs beyond the training of its slowest site, and where that goes.

A centre and three sites run as the processes of a deployment on this machine, with TLS, gateway,
gates, approvals and audits. Every moment is read from records that a deployment keeps anyway: the
run's ledger, each site's audit, and the log of its worker. A round lasts from the moment its sites
are asked until those of the next are: its commit is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w

from client.gate.audit import read_audit
from client.place import SiteFolder
from common.config import RunConfig
from server.centre.run_folder import RunFolder
from simulations.benchmarks.deployed import Deployed

SITES = {"north": 60, "south": 60, "east": 60}
"""Name -> studies."""
SIDE = 48
"""Pixels of the sites' images."""
LIMIT = 1.0
"""Seconds beyond the slowest site's training that the median round may take."""
PARTS = {
    "out": "the instruction goes out: signed, pushed, fetched by the site, checked, journalled",
    "in": "it is handed to the worker",
    "worked": "the worker validates, trains, and packs the update",
    "back": "the answer comes back: checked, journalled, audited",
    "up": "it is uploaded, fetched by the ServerApp, admitted",
    "rest": "aggregation, commit, ledger, until the next round is asked",
}
"""Part -> what happens in it, on the way of the site that answers last."""
_PLAN: dict[str, Any] = {
    "seed": 5,
    "data": {"findings": "effusion, cardiomegaly", "image_size": SIDE},
    "train": {"batch_size": 16, "steps": 4},
    "evaluate": {"replicates": 50, "local": False},
}
KINDS: dict[str, dict[str, Any]] = {
    "small adapter": {"model": {"backbone": "timm:test_vit"}, "pet": {"rank": 2}},
    "2.4 M parameters": {"pet": {"rank": 144}, "train": {"batch_size": 16, "steps": 1}},
    "2.4 M parameters, int8": {
        "pet": {"rank": 144},
        "train": {"batch_size": 16, "steps": 1},
        "wire": {"codec": "int8", "downlink": "int8"},
    },
}
_DONE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) train of round (\d+): done in ([\d.]+) s")


@dataclass(frozen=True)
class Visit:
    """One site's part of a round; moments are seconds since 1970."""

    taken: float
    """The gate let the instruction in."""
    began: float
    """The worker took it."""
    ended: float
    answered: float
    """The answer stood in the audit, before a byte of it left."""
    returned: float
    """The centre had admitted it."""

    @property
    def worked(self) -> float:
        """Seconds the worker worked on it."""
        return self.ended - self.began


@dataclass(frozen=True)
class Round:
    """A round's moments."""

    asked: float
    over: float
    """The next round was asked."""
    visits: Mapping[str, Visit]

    @property
    def slowest(self) -> float:
        """Seconds that the slowest site's worker worked."""
        return max(visit.worked for visit in self.visits.values())

    @property
    def overhead(self) -> float:
        """Seconds beyond that.

        >>> Round(10.0, 13.0, {"north": Visit(10.1, 10.2, 12.2, 12.3, 12.5)}).overhead
        1.0
        """
        return round(self.over - self.asked - self.slowest, 6)

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part on the way of the site that answered last; see `PARTS`."""
        last = max(self.visits.values(), key=lambda visit: visit.returned)
        moments = [self.asked, last.taken, last.began, last.ended, last.answered, last.returned, self.over]
        took = [after - before for before, after in pairwise(moments)]
        return dict(zip(PARTS, took, strict=True))


def rounds_of(run: RunFolder, sites: Mapping[str, SiteFolder]) -> list[Round]:
    """Read a run's rounds from the records; the last has no next one and is left out."""
    asked: dict[int, float] = {}
    returned: dict[tuple[str, int], float] = {}
    for event in run.events():
        if event.kind == "asked" and event.round:
            asked[event.round] = event.time
        elif event.kind == "returned" and event.round and event.site:
            returned[event.site, event.round] = event.time
    flower = {str(number) for number in run.flower_runs()}
    visits = {name: _visits(folder, flower) for name, folder in sites.items()}
    return [
        Round(
            asked[number],
            asked[number + 1],
            {name: Visit(*visits[name][number], returned[name, number]) for name in sites},
        )
        for number in sorted(asked)[:-1]
    ]


def worked_in(log: str) -> dict[int, tuple[float, float]]:
    """Return round -> when the worker began and ended, from its log; of a round asked twice the last.

    >>> worked_in("1970-01-02 00:00:10,500 train of round 3: done in 0.250 s")[3][1] % 60
    10.5
    """
    found = {}
    for moment, milliseconds, number, took in _DONE.findall(log):
        ended = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S").timestamp() + int(milliseconds) / 1000
        found[int(number)] = (ended - float(took), ended)
    return found


def _visits(folder: SiteFolder, flower: set[str]) -> dict[int, tuple[float, float, float, float]]:
    moments: dict[tuple[str, int], float] = {}
    for line in read_audit(folder):
        if line.get("stage") == "train" and line.get("run") in flower:
            moments[line["kind"], line["round"]] = datetime.fromisoformat(line["time"]).timestamp()
    worked = worked_in((folder.logs / "worker.log").read_text())
    return {
        number: (moments["instruction", number], *worked[number], moments["answer", number])
        for kind, number in moments
        if kind == "answer"
    }


def settings_of(kind: str, rounds: int) -> dict[str, Any]:
    """Return the settings of a plan for a kind of adapter."""
    together = {"count": rounds + 1, "sites": len(SITES), "quorum": len(SITES), "deadline": 120.0}
    return {**_PLAN, **KINDS[kind], "rounds": together}


@dataclass(frozen=True)
class Measured:
    """What a kind of adapter took."""

    rounds: Sequence[Round]
    superlink: float
    """Seconds of a processor that Flower's SuperLink used for each answer, from the question on."""

    @property
    def overhead(self) -> float:
        """Seconds that the median round took beyond its slowest site's work."""
        return _middle([one.overhead for one in self.rounds])

    @property
    def bound(self) -> float:
        """Seconds of a processor that the SuperLink, which is one process, uses for a round."""
        return self.superlink * len(SITES)

    def verdict(self, most: float) -> str:
        """Say how the median round stands to the limit."""
        if self.overhead <= most:
            return f"within the limit of {most:g} s"
        if self.bound > most:
            return f"above {most:g} s, of which Flower's SuperLink alone uses {self.bound:.3f} s"
        return f"above the limit of {most:g} s"

    def missed(self, most: float) -> bool:
        """Whether a round takes longer than it may where the engine leaves room for it."""
        return self.overhead > most >= self.bound


def measure(root: Path, kinds: Sequence[str], rounds: int) -> dict[str, Measured]:
    """Run each kind of adapter in one deployment under ``root``."""
    plans = {kind: settings_of(kind, rounds) for kind in kinds}
    found: dict[str, Measured] = {}
    with Deployed(root, SITES, [RunConfig.build(plan) for plan in plans.values()], size=64) as deployed:
        for number, (kind, settings) in enumerate(plans.items()):
            plan = root / f"plan-{number}.toml"
            plan.write_text(tomli_w.dumps(settings))
            before = deployed.processor("superlink")
            run = deployed.run(plan, f"run-{number}")
            used = deployed.processor("superlink") - before
            answers = sum(_answers(folder, run) for folder in deployed.sites.values())
            found[kind] = Measured(rounds_of(run, deployed.sites), used / answers)
    return found


def _answers(folder: SiteFolder, run: RunFolder) -> int:
    flower = {str(number) for number in run.flower_runs()}
    return sum(line["kind"] == "answer" and line["run"] in flower for line in read_audit(folder))


def lines_of(kind: str, measured: Measured) -> list[str]:
    """Say in words what the rounds of a kind took, and what bounds them."""
    rounds = measured.rounds
    parts = [one.parts() for one in rounds]
    lines = [
        f"{kind}: {len(rounds)} rounds of {len(SITES)} sites, seconds: median (least to most)",
        f"  beyond the slowest site's work  {_spread([one.overhead for one in rounds])}",
        f"  that work                       {_spread([one.slowest for one in rounds])}",
        "  on the way of the site that answers last:",
    ]
    lines += [f"    {_spread([p[name] for p in parts])}  {words}" for name, words in PARTS.items()]
    worst = max((name for name in PARTS if name != "worked"), key=lambda n: _middle([p[n] for p in parts]))
    return [
        *lines,
        f"  what takes longest of it: {PARTS[worst]}",
        f"  what bounds it: Flower's SuperLink, one process, uses {measured.superlink:.3f} s of a processor "
        f"for a site and an instruction, polls included: {measured.bound:.3f} s for {len(SITES)} sites",
    ]


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float]) -> str:
    return f"{_middle(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a kind's median is above the limit and the SuperLink alone is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of each kind of adapter")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--most", type=float, default=LIMIT, help="seconds beyond the slowest site")
    parser.add_argument("--folder", type=Path, help="keep the deployment here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    say = sys.stdout.write
    say(f"{os.cpu_count()} cores, 1 thread a site\n")
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(options.folder or Path(temporary), options.kinds, options.rounds)
    for kind, measured in found.items():
        say("\n".join(lines_of(kind, measured)) + "\n")
    for kind, measured in found.items():
        verdict = measured.verdict(options.most)
        say(f"{kind}: {measured.overhead:.3f} s beyond the slowest site, {verdict}\n")
    if options.json:
        facts = {
            kind: {
                "superlink": each.superlink,
                "rounds": [{"overhead": r.overhead, "slowest": r.slowest, **r.parts()} for r in each.rounds],
            }
            for kind, each in found.items()
        }
        options.json.write_text(json.dumps(facts, indent=1))
    return int(any(measured.missed(options.most) for measured in found.values()))


if __name__ == "__main__":
    sys.exit(main())
