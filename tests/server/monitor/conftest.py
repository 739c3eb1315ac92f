"""A centre with a run under way, and a browser to look at it with: what the tests of the pages stand on."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from playwright.sync_api import Browser, sync_playwright

from common.config import RunConfig
from server.centre.folder import CentreFolder
from server.centre.registry import Registry
from server.centre.run_folder import RunFolder
from server.facts.runs import Runs
from server.ledger import Ledger
from server.measures import Measure
from server.monitor.serve import make_server, serve
from server.monitor.state import Monitor
from tests.server.monitor.markup import MARKUP

FINDINGS = ("cardiomegaly", "effusion", "edema", "consolidation")


class PageRun:
    """Writes a run as a centre would, from a clock of its own, so that a test decides how far it is."""

    def __init__(
        self, folder: Path, sites: Sequence[str], rounds: int = 8, began: float | None = None
    ) -> None:
        self.sites, self.rounds = list(sites), rounds
        self.time = time.time() - 300.0 if began is None else began
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(folder / "ledger.sqlite", clock=lambda: self.time)
        flat = {
            "rounds.count": rounds,
            "data.findings": ", ".join(FINDINGS),
            "pet.rank": 4,
            "rounds.deadline": 900.0,
        }
        config = RunConfig.from_flat(flat).to_flat()
        self.digests = {name: letter * 64 for name, letter in (("plan", "a"), ("base", "b"), ("code", "c"))}
        plan = {"digests": self.digests, "versions": {"fedcxr": "0.1.0"}, "config": config}
        (folder / "plan.toml").write_text(tomli_w.dumps(plan))
        self.ledger.put("config", config)
        for name, digest in self.digests.items():
            self.ledger.put(f"{name}_digest", digest)
        self.ledger.put("trained_parameters", 59_251)

    def enrol(self) -> None:
        """Let every site enrol."""
        self.ledger.event("plan", "plan aaaaaaaaaaaa: lora on embedded", digest="a" * 64, started=self.time)
        for i, site in enumerate(self.sites):
            self.time += 0.5
            facts: dict[str, Any] = {
                "train-studies": 900 + 70 * i,
                "validation-studies": 110,
                "test-studies": 120,
            }
            facts |= {"patients": 800, "quarantined.E_IMAGE": i % 3}
            kept = FINDINGS if i % 3 else FINDINGS[:3]
            self.ledger.put_site(site, facts | {"findings": list(kept)})
            self.ledger.event("enrolled", f"{site}: {900 + 70 * i} training studies", site=site, **facts)

    def ask(self, number: int) -> None:
        """Begin a round."""
        self.time += 1.0
        text = f"Round {number}: asking {len(self.sites)} sites"
        self.ledger.event("asked", text, round=number, cohort=self.sites, deadline=900.0)

    def answer(self, number: int, site: str) -> None:
        """Let a site's answer of a round arrive."""
        self.time += 2.0
        text = f"Round {number}: {site} returned 0.3 MB, 900 studies"
        self.ledger.event("returned", text, round=number, site=site, up=297_000)

    def reject(self, number: int, site: str) -> None:
        """Let an answer arrive that is not taken."""
        self.time += 2.0
        reason = "the update is larger than strategy.max_update_norm (found 312, at most 100)"
        text = f"Round {number}: {site} left out, E_NORM: {reason}"
        facts = {"code": "E_NORM", "reason": reason, "up": 297_000}
        self.ledger.event("rejected", text, round=number, site=site, **facts)

    def commit(self, number: int, missing: Sequence[str] = (), rejected: Sequence[str] = ()) -> None:
        """End a round."""
        self.time += 1.0
        back = [site for site in self.sites if site not in missing and site not in rejected]
        record: dict[str, Any] = {
            "round": number, "status": "committed", "cohort": self.sites, "returned": back,
            "missing": list(missing), "rejected": dict.fromkeys(rejected, "E_NORM"),
            "loss": {site: 0.4 + 0.3 * math.exp(-number / 3) + 0.01 * i for i, site in enumerate(back)},
            "steps": dict.fromkeys(back, 28), "examples": {site: 900 + 70 * i for i, site in enumerate(back)},
            "update_norm": {site: 1.5 / number + 0.1 * i for i, site in enumerate(back)},
            "payload": dict.fromkeys(back, 296_000), "lora_error": 0.09 / number,
            "seconds": 21.0 + number % 3, "up": 297_000 * len(back), "down": 298_000 * len(self.sites),
        }  # fmt: skip
        share = 1.0 / len(back)
        rows = [
            Measure("lora-error", "", "", number, 0.09 / number),
            Measure("seconds", "", "", number, 21.0),
        ]
        for i, site in enumerate(back):
            level = 0.83 - 0.012 * i - 0.28 * math.exp(-number / 2)
            told = {"auroc": level, "pr-auc": level - 0.3, "ece": 0.2 / number, "loss": record["loss"][site]}
            told |= {"weight": share, "cosine": 0.9 - 0.07 * i, "update-norm": record["update_norm"][site]}
            told |= {"up": 297_000.0, "down": 298_000.0, "seconds": 12.0 + i}
            rows += [Measure(name, "", site, number, value) for name, value in told.items()]
            rows += [
                Measure(name, finding, site, number, told[name] + 0.02 * k)
                for name in ("auroc", "pr-auc", "ece")
                for k, finding in enumerate(FINDINGS)
            ]
        cosines = [
            [1.0 if i == k else 0.6 - 0.1 * abs(i - k) for k in range(len(back))] for i in range(len(back))
        ]
        blocks = ["blocks.0", "blocks.1", "blocks.2", "head"]
        drift = {"blocks": blocks, "values": [0.1 * number * (k + 1) for k in range(4)]}
        self.ledger.put_round(record, rows, {"pairs": {"sites": back, "cosines": cosines}, "drift": drift})
        facts = {name: record[name] for name in ("missing", "rejected", "status")}
        text = f"Round {number}: {len(back)} of {len(self.sites)} sites"
        self.ledger.event("round", text, round=number, **facts)

    def whole_round(self, number: int, **how: Any) -> None:
        """Make a round from its question to its end."""
        self.ask(number)
        for site in self.sites:
            if site not in (*how.get("missing", ()), *how.get("rejected", ())):
                self.answer(number, site)
        for site in how.get("rejected", ()):
            self.reject(number, site)
        self.commit(number, **how)

    def test(self) -> None:
        """Measure every model at every site, and end the run."""
        arms = ["local", "federated", "calibrated", *(f"local:{site}" for site in self.sites)]
        for a, arm in enumerate(arms):
            for i, site in enumerate(self.sites):
                if arm == f"local:{site}":
                    continue
                level = 0.76 + 0.03 * (arm in ("federated", "calibrated")) - 0.004 * i - 0.002 * a
                told: dict[str, Any] = {
                    "studies": 120,
                    "macro-auroc": level,
                    "macro-interval": [level - 0.03, level + 0.03],
                }
                if arm == "federated":
                    told["gain.macro"] = [0.02, -0.004 + 0.01 * (i % 2), 0.04]
                for finding in FINDINGS:
                    told |= {
                        f"{finding}.auroc": level,
                        f"{finding}.positives": 40,
                        f"{finding}.negatives": 80,
                    }
                    if arm in ("federated", "calibrated"):
                        shift = 0.12 if arm == "federated" else 0.0
                        told |= {f"{finding}.bins-studies": [50, 40, 30], f"{finding}.ece": 0.02 + shift}
                        told |= {f"{finding}.bins-positives": [5, 12, 20]}
                        told |= {f"{finding}.bins-mean": [0.1 + shift, 0.3 + shift, 0.66 + shift]}
                self.ledger.put_evaluation(arm, "test", site, told)
            self.time += 0.5
            self.ledger.event("tested", f"{arm}: mean test AUROC over {len(self.sites)} sites", arm=arm)
        self.time += 0.5
        self.ledger.event("finished", "run finished")


class PageCentre:
    """A centre's folder with its registry, and runs in it."""

    def __init__(self, root: Path, sites: Sequence[str]) -> None:
        self.folder = CentreFolder(root)
        root.mkdir(parents=True)
        (root / "centre.toml").write_text('name = "centre"\naddress = "h:1"\nlisten = "h:1"\nadmin = "h:2"\n')
        Registry(self.folder.registry).close()
        with self._registry() as db:
            row = "INSERT INTO sites (name, state, invited_at) VALUES (?, 'admitted', 0)"
            db.executemany(row, [(site,) for site in sites])
        self._held = ExitStack()

    @contextmanager
    def _registry(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.folder.registry)
        with db:
            yield db
        db.close()

    def hear(self, site: str, ago: float = 0.0) -> None:
        """Let a site have called some seconds ago."""
        with self._registry() as db:
            db.execute("UPDATE sites SET heard_at = ? WHERE name = ?", (time.time() - ago, site))

    def run(self, name: str, sites: Sequence[str], **how: Any) -> PageRun:
        """Begin a run that this process works on."""
        folder = self.folder.runs / name
        made = PageRun(folder, sites, **how)
        self._held.enter_context(RunFolder(folder).hold(patience=1.0))
        return made

    def close(self) -> None:
        """Let go of the runs."""
        self._held.close()


@contextmanager
def serving(monitor: Monitor, port: int = 0) -> Iterator[str]:
    """Serve a monitor on loopback as the command does; yields its address."""
    server = make_server(monitor)
    listener = monitor.doors.listen("127.0.0.1", port)
    thread = threading.Thread(target=serve, args=(monitor, listener, server), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@pytest.fixture(scope="session")
def page_serving() -> Callable[..., Any]:
    """Serves a monitor while it is entered."""
    return serving


@pytest.fixture
def page_centre(tmp_path: Path) -> Iterator[PageCentre]:
    """A centre of four sites, one of them named in markup, without a run."""
    made = PageCentre(tmp_path / "centre", ["north", "south", "east", MARKUP])
    yield made
    made.close()


@pytest.fixture
def page_live(page_centre: PageCentre) -> PageRun:
    """A run in its third round: two sites have answered, one was rejected before."""
    run = page_centre.run("pilot", ["north", "south", "east", MARKUP])
    for site, ago in (("north", 2.0), ("south", 6.0), ("east", 31.0), (MARKUP, 400.0)):
        page_centre.hear(site, ago)
    run.enrol()
    run.whole_round(1)
    run.whole_round(2, rejected=[MARKUP], missing=["east"])
    run.time = time.time() - 40.0
    run.ask(3)
    run.answer(3, "north")
    run.answer(3, "south")
    return run


@pytest.fixture
def page_monitor(page_centre: PageCentre) -> Iterator[Monitor]:
    """A monitor of the centre's runs."""
    monitor = Monitor(Runs.of_centre(page_centre.folder))
    yield monitor
    monitor.runs.close()


@pytest.fixture(scope="module")
def page_browser() -> Iterator[Browser]:
    """A real browser without a screen; skipped where there is none.

    Of one module: while it is there an event loop runs, and no test can run another.
    """
    path = Path("/usr/bin/chromium")
    with sync_playwright() as playwright:
        how = {"executable_path": str(path)} if path.is_file() else {}
        try:
            browser = playwright.chromium.launch(args=["--no-sandbox"], **how)
        except Exception as error:  # noqa: BLE001 - whatever keeps a browser from starting here
            pytest.skip(f"no browser: {str(error)[:100]}")
        yield browser
        browser.close()


@pytest.fixture
def address(page_live: PageRun, page_monitor: Monitor, page_serving: Any) -> Iterator[str]:
    """Where a centre with a run under way is shown."""
    with page_serving(page_monitor) as served:
        yield served
