"""Go back in a run: later rounds are set aside, and the next resume goes on from the one named."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import RunError
from common.files import sync_folder
from server.centre.run_folder import RunFolder
from server.checkpoint import committed
from server.ledger import Ledger


def roll_back(run: RunFolder, round_number: int) -> list[int]:
    """Set every round after ``round_number`` aside; returns them. 0 goes back to the beginning.

    Raises:
        RunError: if the run still goes on, or has no such round.
    """
    with run.hold(patience=0.0):
        checkpoints = run.path / "checkpoints"
        rounds = committed(checkpoints)
        if round_number not in (0, *rounds):
            found = f"rounds 1 to {rounds[-1]}" if rounds else "no committed round"
            raise RunError(f"the run {run.name} has no round {round_number}", found=found)
        later = [number for number in rounds if number > round_number]
        if not later:
            raise RunError(f"round {round_number} is the newest of the run {run.name} already")
        aside = _free(run, round_number)
        aside.mkdir()
        ledger = Ledger(run.ledger)
        try:
            # Said first: a crash in between leaves a run that is no longer finished, and is resumed.
            text = (
                f"rolled back to round {round_number}: rounds {later[0]} to {later[-1]} are in {aside.name}"
            )
            ledger.event("rolled-back", text, round=round_number, rounds=later)
            for number in reversed(later):  # the newest first, so that what is left has no gap
                name = f"round-{number:04d}"
                os.replace(checkpoints / name, aside / name)
            for name in ("release", "report.html", "report.json"):
                if (run.path / name).exists():
                    os.replace(run.path / name, aside / name)
            sync_folder(checkpoints)
            sync_folder(aside)
            ledger.reset_rounds([r for r in ledger.rounds() if r["round"] <= round_number])
            ledger.put("released", None)
        finally:
            ledger.close()
    return later


def _free(run: RunFolder, round_number: int) -> Path:
    name = f"rolled-back-{round_number}"
    count = 1
    while (run.path / name).exists():
        count += 1
        name = f"rolled-back-{round_number}-{count}"
    return run.path / name
