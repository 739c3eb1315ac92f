"""What a person sees while a run goes on, read from its ledger: a live view, quiet, or JSON lines."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.ledger import Event, Ledger

if TYPE_CHECKING:
    from simulations.watching import Watching

Mode = Literal["live", "quiet", "json"]

_LASTING = {
    "refused", "rejected", "enrolled", "stage", "round", "resumed", "chosen", "tested", "released",
    "plan",
}  # fmt: skip
_ASIDE = {"refused", "resumed"}
"""What is shown of a run that is only a reference."""
_WARNINGS = {"refused", "rejected"}
_INTERVAL = 0.2
_STAGES = {"local": "local baselines", "calibrate": "calibrating", "personalise": "personalising"}


class View:
    """Follows ledgers and shows what is new in them."""

    def __init__(self, mode: Mode, watching: Watching | None = None) -> None:
        """Take how to show it, and the monitor that is to show it too."""
        self.mode, self._watching = mode, watching
        self.console = Console(stderr=mode == "json", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Show one line that is not in a ledger."""
        if self.mode == "live":
            self.console.print(text, markup=False)
        elif self.mode == "json":
            self._json({"kind": "note", "text": text})

    def begin(self, folder: Path) -> None:
        """Say where the page of the run in ``folder`` is, if there is to be one."""
        if self._watching is None:
            return
        page = self._watching.page_of(folder)
        if not page:
            text = f"The monitor does not start, the run goes on without it: {self._watching.why_not()}"
        else:
            text = f"Monitor: {page}"
        if self.mode == "json":
            self._json({"kind": "monitor", "text": text, "address": page})
        else:
            self.console.print(text, markup=False)

    @contextmanager
    def follow(self, folder: Path, label: str, total_rounds: int) -> Iterator[None]:
        """Show what happens in ``folder``'s ledger until the block ends."""
        path = folder / "ledger.sqlite"
        seen = self._last_event(path)
        stop = threading.Event()
        board = _Board(label, total_rounds)
        live = Live(board, console=self.console, refresh_per_second=5, transient=True)
        thread = threading.Thread(target=self._tail, args=(path, seen, board, stop), daemon=True)
        shown = self.mode == "live" and self.console.is_terminal
        try:
            if shown:
                live.start()
            thread.start()
            yield
        finally:
            stop.set()
            thread.join(timeout=10)
            if shown:
                live.stop()

    def _last_event(self, path: Path) -> int:
        if not path.is_file():
            return 0
        ledger = Ledger(path)
        try:
            return max((event.id for event in ledger.events()), default=0)
        finally:
            ledger.close()

    def _tail(self, path: Path, seen: int, board: _Board, stop: threading.Event) -> None:
        ledger: Ledger | None = None
        while True:
            ending = stop.is_set()
            if ledger is None and path.is_file():
                ledger = Ledger(path)
            if ledger is not None:
                for event in ledger.events(after=seen):
                    seen = event.id
                    board.take(event)
                    self._show(event, board.label)
            if ending:
                break
            stop.wait(_INTERVAL)
        if ledger is not None:
            ledger.close()

    def _show(self, event: Event, label: str) -> None:
        if self.mode == "json":
            self._json({"run": label, **event.__dict__})
        elif self.mode == "live" and event.kind in (_LASTING if label == "federated" else _ASIDE):
            text = Text(event.text if label == "federated" else f"[{label}] {event.text}")
            if event.kind in _WARNINGS or "abandoned" in event.text:
                text.stylize("yellow")
            self.console.print(text)

    def _json(self, content: object) -> None:
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()


class _Board:
    """The moving part: round, who has answered, bytes, score, time left."""

    def __init__(self, label: str, rounds: int) -> None:
        self.label, self._rounds = label, rounds
        self._round = 0
        self._heard: list[str] = []
        self._cohort: list[str] = []
        self._up = self._down = 0
        self._score = ""
        self._stage = "starting"
        self._began: float | None = None

    def take(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "asked":
            self._round, self._heard = event.round or 0, []
            self._cohort = event.facts["cohort"]
            self._began = self._began or event.time
            self._stage = f"round {self._round} of {self._rounds}"
        elif event.kind in ("returned", "rejected"):
            self._heard.append(event.site or "")
        elif event.kind == "round":
            self._up += event.facts["up"]
            self._down += event.facts["down"]
            scores = event.facts["validation_before"].values()
            self._score = f"{sum(scores) / len(scores):.3f}" if scores else ""
        elif event.kind == "enrolled":
            self._cohort.append(event.site or "")
        elif event.kind == "asking":
            self._stage, self._heard = _STAGES.get(event.facts["stage"], "measuring"), []
            self._cohort = event.facts["cohort"]
        elif event.kind == "answered":
            self._heard.append(event.site or "")

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        waiting = [site for site in self._cohort if site not in self._heard]
        table.add_row(Text(f"{self.label}: {self._stage}", style="bold"), self._time_left())
        if self._cohort:
            heard = Text(" ".join(self._heard) or "-", style="green")
            table.add_row("heard from", heard)
            table.add_row("waiting for", Text(" ".join(waiting) or "-", style="dim"))
            traffic = f"{self._up / 1e6:.2f} MB up, {self._down / 1e6:.2f} MB down"
            table.add_row("traffic", traffic)
            table.add_row("validation AUROC", self._score or "-")
        return table

    def _time_left(self) -> str:
        if self._began is None or self._round < 2:
            return ""
        each = (time.time() - self._began) / (self._round - 1)
        return f"about {each * (self._rounds - self._round + 1):.0f} s left"
