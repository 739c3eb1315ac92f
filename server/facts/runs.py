"""The runs a monitor shows, found by listing folders; no path ever comes from an address."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from common.errors import RunError, closest
from server.centre.folder import CentreFolder
from server.centre.run_folder import RunFolder
from server.facts.history import History
from server.facts.progress import Progress
from server.facts.records import RunSummary
from server.facts.standing import standing_of
from server.facts.tested import Tested
from server.facts.view import LedgerView

_LOOK = 1.0
"""Seconds between looks at the disk."""
_DEEP = 2
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass
class Run:
    """One run: its key in addresses, its folder, its ledger."""

    key: str
    folder: Path
    registry: Path | None = None
    """The centre's registry, which knows when sites were heard of; None for a simulation."""
    _view: LedgerView | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def view(self) -> LedgerView:
        """Return the run's ledger, opened once and kept; it may be empty yet.

        Raises:
            RunError: if it cannot be read.
        """
        with self._lock:
            if self._view is None:
                self._view = LedgerView(self.folder / "ledger.sqlite")
            return self._view

    def close(self) -> None:
        """Close the ledger."""
        with self._lock:
            if self._view is not None:
                self._view.close()
            self._view = None

    @property
    def steady(self) -> bool:
        """Whether it is a simulation, whose sites have no heartbeat."""
        return self.registry is None

    def heard(self) -> dict[str, float]:
        """Return site -> when it was last heard of: its heartbeat, or else its last answer."""
        if self.registry is None:
            view = self.view()
            with view.still():
                return dict(view.keep(Progress).heard)
        return {site: heard for site, (_, heard) in _registered(self.registry).items() if heard is not None}

    def admitted(self) -> set[str]:
        """Return the sites that the centre has admitted; empty for a simulation."""
        if self.registry is None:
            return set()
        return {site for site, (state, _) in _registered(self.registry).items() if state == "admitted"}

    def at_work(self) -> bool | None:
        """Return whether somebody works on the run; None where only its events can tell."""
        return None if self.registry is None else RunFolder(self.folder).at_work


class Runs:
    """The runs of a centre, or of a folder; listed anew at most once a second."""

    def __init__(self, root: Path, deep: int, registry: Path | None = None) -> None:
        self._root, self._deep, self._registry = root, deep, registry
        self._runs: dict[Path, Run] = {}
        self._looked = -_LOOK
        self._lock = threading.Lock()

    @classmethod
    def of_centre(cls, centre: CentreFolder) -> Runs:
        """Return the runs of a centre."""
        return cls(centre.runs, 1, centre.registry)

    @classmethod
    def of_folder(cls, folder: Path) -> Runs:
        """Return the run in a folder, or the runs in a folder of folders; never one inside a run."""
        return cls(folder, _DEEP)

    def list(self) -> list[Run]:
        """Return every run, the newest first."""
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK:
                self._look()
                self._looked = time.monotonic()
            return [*self._runs.values()]

    def find(self, key: str) -> Run:
        """Return a run by its key.

        Raises:
            RunError: if there is none.
        """
        known = {run.key: run for run in self.list()}
        if key not in known:
            raise RunError(f"there is no run {key!r:.60}", fix=closest(key[:60], known))
        return known[key]

    def close(self) -> None:
        """Close every ledger."""
        with self._lock:
            for run in self._runs.values():
                run.close()

    def _look(self) -> None:
        began = {folder: _began(folder) for folder in _run_folders(self._root.resolve(), self._deep)}
        folders = sorted(began, key=lambda folder: (began[folder], folder), reverse=True)
        for gone in self._runs.keys() - began.keys():
            self._runs.pop(gone).close()
        taken = {run.key for run in self._runs.values()}
        runs: dict[Path, Run] = {}
        for folder in sorted(folders):  # so that a name that two folders want goes to the same one always
            run = self._runs.get(folder)
            if run is None:
                key = _key(folder, self._root.resolve(), taken)
                taken.add(key)
                run = Run(key, folder, self._registry or _registry_of(folder))
            runs[folder] = run
        self._runs = {folder: runs[folder] for folder in folders}


def summary(run: Run, now: float) -> RunSummary:
    """Sum a run up in one row."""
    view = run.view()
    working = run.at_work()
    with view.still():
        progress, history, config = view.keep(Progress), view.keep(History), view.config()
        told, enrolled = view.get("report") or {}, view.sites()
        split, scores = "test", [*view.keep(Tested).macro["federated"].values()]
        if not scores:
            split, scores = "validation", [*view.newest("auroc").values()]
        method = backbone = ""
        if config is not None:
            method, backbone = config.pet.method, config.model.backbone
            if method == "lora":
                method += f" r{config.pet.rank} ({config.lora.aggregation})"
        return RunSummary(
            key=run.key,
            title=str(told.get("title") or run.folder.name),
            standing=standing_of(progress, history, config, working, run.admitted(), now),
            started=progress.first,
            changed=progress.newest.time if progress.newest else None,
            sites=len(enrolled),
            method=method,
            backbone=backbone,
            mean_auroc=sum(scores) / len(scores) if scores else None,
            split=split if scores else "",  # type: ignore[arg-type]
            up=history.up,
            down=history.down,
            warnings=progress.warnings + history.missed,
        )


def _run_folders(root: Path, deep: int) -> Iterator[Path]:
    """Yield run folders, at most ``deep`` below a folder and never inside one another."""
    if _is_run(root):
        yield root
        return
    if deep == 0:
        return
    try:
        children = sorted(root.iterdir())
    except OSError:
        return
    for child in children:
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from _run_folders(child, deep - 1)


def _is_run(folder: Path) -> bool:
    return (folder / "plan.toml").is_file() or (folder / "ledger.sqlite").is_file()


def _began(folder: Path) -> float:
    """Return when a run was made, as far as its files tell."""
    for name in ("flower.json", "plan.toml", "ledger.sqlite"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _key(folder: Path, root: Path, taken: set[str]) -> str:
    parts = folder.relative_to(root).parts or (folder.name,)
    name = _NOT_IN_A_KEY.sub("-", ".".join(parts)).strip(".-") or "run"
    key, count = name, 1
    while key in taken:
        count += 1
        key = f"{name}-{count}"
    return key


def _registry_of(folder: Path) -> Path | None:
    """Return the registry of the centre whose run a folder is."""
    centre = folder.parent.parent
    known = (folder / "flower.json").is_file() and (centre / "centre.toml").is_file()
    return CentreFolder(centre).registry if known else None


def _registered(registry: Path) -> dict[str, tuple[str, float | None]]:
    """Site -> its state and when it was heard of; empty where the registry cannot be read now."""
    uri = f"file:{quote(str(registry.resolve()))}?mode=ro"
    try:
        db = sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None)
        try:
            rows = db.execute("SELECT name, state, heard_at FROM sites").fetchall()
        finally:
            db.close()
    except sqlite3.DatabaseError:
        return {}
    return {name: (state, heard) for name, state, heard in rows}
