"""How fast the monitor's page answers, over HTTP, on the ledger of a long run of many sites.

    python -m simulations.benchmarks.monitor_page --rounds 500 --sites 50 --findings 14

A real monitor serves the ledger of `simulations.benchmarks.large_ledger`; one client, on one kept
connection, asks for every address the page has, three ways:

- **first**: something nobody has asked for yet: another finding, site or metric each time;
- **again**: the same address, nothing having changed;
- **changed**: just after a round was appended, one a second, so that nothing kept is good any more;
  with the time of a core it took on average, which other work on the machine does not lengthen.

Ends with 1 if the median of an address of the page or the API is above ``--most-ms``, the process
took more than ``--most-mb``, or something was answered with an error. Files to download are timed
too, and only shown.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

import httpx

from server.ledger import Ledger
from server.measures import Measure
from simulations.benchmarks.large_ledger import write_large_ledger
from simulations.benchmarks.monitor_process import MonitorProcess, paced

RUN = "large"
OTHER = "other"
WAYS = ("first", "again", "changed")
_METRICS = ("auroc", "pr-auc", "ece")
_LINK = re.compile(r'href="(/runs/[^"]*/download/[^"?]+)')


@dataclass(frozen=True)
class Route:
    """Something to ask for; ``asks`` are its parameters that choose what is shown."""

    path: str
    asks: tuple[str, ...] = ()
    always: tuple[tuple[str, str], ...] = ()
    """Parameters it cannot do without."""
    counts: bool = True
    """Whether its median is held against the limit; a file's is not."""


@dataclass
class Timings:
    """What came back, by address."""

    milliseconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Address and way -> how long each answer took."""
    work: dict[str, list[float]] = field(default_factory=dict)
    """Address -> milliseconds of a core that the process took for each answer after a change."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Address -> bytes on the wire."""
    wrong: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """Address and status -> what was asked and not answered with 200."""

    def ask(self, client: httpx.Client, route: Route, way: str, query: dict[str, str]) -> None:
        """Ask once, and keep how long the whole answer took."""
        began = time.perf_counter()
        answer = client.get(route.path, params=dict(route.always) | query)
        took = time.perf_counter() - began
        if answer.status_code != httpx.codes.OK:
            asked = str(answer.url.raw_path, "ascii")
            self.wrong.setdefault((route.path, answer.status_code), []).append(asked)
        self.milliseconds.setdefault((route.path, way), []).append(1000 * took)
        self.sizes[route.path] = answer.num_bytes_downloaded


def routes(client: httpx.Client) -> list[Route]:
    """Return what there is to ask for: the pages, the API as its own description says, the files offered."""
    views = ("metric", "finding", "site")
    both = (("first", RUN), ("second", OTHER))
    found = [
        Route("/"),
        Route("/update"),
        Route(f"/runs/{RUN}", views),
        Route(f"/runs/{RUN}/update", views),
        Route("/compare", ("metric", "finding"), both),
        Route("/compare/update", ("metric", "finding"), both),
        Route("/metrics"),
        Route("/healthz"),
        Route("/openapi.json"),
    ]
    for path, methods in _described(client).items():
        asked = methods.get("get")
        left = set(re.findall(r"{(\w+)}", path)) - {"run"}
        if asked is None or left or path in {route.path for route in found}:
            continue
        named = {p["name"] for p in asked.get("parameters", []) if p.get("in") == "query"}
        known = tuple(name for name in views if name in named)
        needed = both if "second" in named else ()
        found.append(Route(path.replace("{run}", RUN), known, needed, "download" not in path))
    page = client.get(f"/runs/{RUN}").text
    found += [Route(path, counts=False) for path in dict.fromkeys(_LINK.findall(page))]
    return found


def _described(client: httpx.Client) -> dict[str, dict[str, dict[str, list[dict[str, str]]]]]:
    answer = client.get("/openapi.json")
    return answer.json().get("paths", {}) if answer.is_success else {}


class Writer:
    """Appends rounds to a ledger: copies of its last, one number on."""

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger(folder / "ledger.sqlite")
        self._record = list(self._ledger.rounds())[-1]
        self._last = int(self._record["round"])
        self._rows, self._details = _rows_of(folder, self._last)

    def append(self) -> None:
        """Write the events and numbers of one more round, as a run under way does."""
        self._last += 1
        number, record = self._last, self._record | {"round": self._last}
        cohort, returned = record["cohort"], record["returned"]
        asked = f"Round {number}: asking {len(cohort)} sites"
        self._ledger.event("asked", asked, round=number, cohort=cohort, deadline=600.0)
        rows = [Measure(name, finding, site, number, value) for name, finding, site, value in self._rows]
        self._ledger.put_round(record, rows, self._details)
        done = f"Round {number}: {len(returned)} of {len(cohort)} sites"
        facts = {key: value for key, value in record.items() if key != "round"}
        self._ledger.event("round", done, round=number, **facts)

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()


def _rows_of(folder: Path, number: int) -> tuple[list[tuple[str, str, str, float]], dict[str, object]]:
    """Return the numbers of the newest round that sites have measured whole, and the arrays of it."""
    database = sqlite3.connect(folder / "ledger.sqlite")
    try:
        query = "SELECT name, finding, site, value FROM measures WHERE round = ?"
        rows = database.execute(query, (number - 1,)).fetchall()
        kept = database.execute("SELECT name, value FROM details WHERE round = ?", (number,)).fetchall()
    finally:
        database.close()
    return rows, {name: json.loads(value) for name, value in kept}


def choices(route: Route, owned: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Yield parameters, each another choice, in an order that changes all of them at once.

    ``owned``: site -> the findings it annotates; a site is not asked for another.
    """
    findings = sorted({finding for of in owned.values() for finding in of})
    values = {"metric": _METRICS, "finding": findings, "site": [*owned]}
    every = [dict(zip(route.asks, one, strict=True)) for one in product(*(values[a] for a in route.asks))]
    random.Random(0).shuffle(every)
    for one in every:
        if not {"finding", "site"} <= one.keys() or one["finding"] in owned[one["site"]]:
            yield one


def measure(folder: Path, samples: int) -> tuple[list[Route], Timings, MonitorProcess]:
    """Ask for everything every way; returns the routes, the timings and the process, which has ended."""
    ledger = Ledger(folder / RUN / "ledger.sqlite")
    owned = {site: facts["findings"] for site, facts in ledger.sites().items()}
    ledger.close()
    timings = Timings()
    with MonitorProcess(folder) as monitor, httpx.Client(base_url=monitor.address, timeout=60) as client:
        known = routes(client)
        for route in known:
            for query in islice(choices(route, owned), samples if route.counts else 1):
                timings.ask(client, route, "first", query)
            for _ in range(samples if route.counts else 2):
                timings.ask(client, route, "again", {})
        writer = Writer(folder / RUN)
        dice, looked_at = random.Random(1), [route for route in known if route.counts]
        for _ in range(samples):
            with paced(1.0):
                writer.append()
                for route in dice.sample(looked_at, len(looked_at)):
                    before = monitor.work()
                    timings.ask(client, route, "changed", {})
                    timings.work.setdefault(route.path, []).append(1000 * (monitor.work() - before))
        writer.close()
    return known, timings, monitor


def show(known: list[Route], timings: Timings, say: Callable[[str], object]) -> float:
    """Print the table; returns the worst median of an address that counts, in milliseconds."""
    worst = 0.0
    titles = "".join(f"{way:>9} {'p95':>7}" for way in WAYS)
    say(f"{'milliseconds, median':<58}{titles} {'of a core':>9} {'bytes':>9}\n")
    for route in known:
        cells = []
        for way in WAYS:
            took = timings.milliseconds.get((route.path, way), [])
            if not took:
                cells.append(f"{'-':>9} {'':>7}")
                continue
            middle = statistics.median(took)
            late = sorted(took)[min(len(took) - 1, int(0.95 * len(took)))]
            worst = max(worst, middle) if route.counts else worst
            cells.append(f"{middle:9.1f} {late:7.1f}")
        name = route.path if route.counts else f"{route.path} (file)"
        work = (
            f"{statistics.fmean(timings.work[route.path]):9.0f}"
            if route.path in timings.work
            else f"{'-':>9}"
        )
        say(f"{name:<58}{''.join(cells)} {work} {timings.sizes.get(route.path, 0):9d}\n")
    return worst


def main() -> int:
    """Write the ledger, measure, print; returns 1 if a limit was passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--findings", type=int, default=14)
    parser.add_argument("--samples", type=int, default=30, help="of each address and way")
    parser.add_argument("--most-ms", type=float, default=200.0)
    parser.add_argument("--most-mb", type=float, default=300.0)
    parser.add_argument("--folder", type=Path, help="keep the ledgers here, or use those that are here")
    options = parser.parse_args()
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = (options.rounds, options.sites, options.findings)
        kept = options.folder / "-".join(map(str, size)) if options.folder else folder / "kept"
        if not (kept / "ledger.sqlite").is_file():
            write_large_ledger(kept, *size)
        shutil.copytree(kept, folder / "runs" / RUN)  # it is written to
        write_large_ledger(folder / "runs" / OTHER, options.rounds // 5, options.sites, options.findings, 1)
        known, timings, monitor = measure(folder / "runs", options.samples)
    worst, peak = show(known, timings, say), monitor.peak / 1e6
    for (_, status), asked in timings.wrong.items():
        say(f"answered with {status}, {len(asked)} times: {asked[0]}\n")
    say(f"worst median {worst:.0f} ms (limit {options.most_ms:g})\n")
    say(f"most memory {peak:.0f} MB (limit {options.most_mb:g})\n")
    return int(worst > options.most_ms or peak > options.most_mb or bool(timings.wrong))


if __name__ == "__main__":
    sys.exit(main())
