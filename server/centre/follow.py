"""Watch a run at the centre until it ends, and say how it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from common.errors import DeploymentError, RunError, UnreachableError
from server.centre.run_folder import RunFolder
from server.facts.runs import Run
from server.facts.standing import standing as standing_of_run
from server.ledger import Event

if TYPE_CHECKING:
    from server.centre.control import Control, FlowerRun

QUIET = {"returned", "local", "evaluated", "asked", "asking", "answered"}
"""Events that are told only where everything is."""
_WARNED = {"refused", "rejected", "lost", "waiting", "disk", "failed"}
_LOOK = 0.5
_ASK_FLOWER = 3.0
_AWAY = 120.0
"""Seconds the centre may be unreachable before a follower gives up; the run may well go on."""


def follow(run: RunFolder, control: Control, number: int, after: int, show: Callable[[Event], None]) -> None:
    """Show every event after ``after`` until the run ends.

    Raises:
        RunError: if it ends otherwise than finished.
        UnreachableError: if the centre cannot be asked how it stands.
    """
    heard_from_flower = time.monotonic()
    asked = -_ASK_FLOWER
    while True:
        flower: FlowerRun | None = None
        if time.monotonic() - asked >= _ASK_FLOWER:
            asked = time.monotonic()
            try:
                flower = control.run(number)
                heard_from_flower = asked
            except DeploymentError as error:
                if isinstance(error, UnreachableError) and asked - heard_from_flower > _AWAY:
                    raise
        for event in run.events(after):  # after Flower was asked, so that nothing is missed at the end
            after = event.id
            show(event)
            if event.kind == "finished":
                return
            if event.kind in ("failed", "stopped"):
                raise RunError(
                    f"the run {run.name} ended before its time",
                    found=event.text.splitlines()[0],
                    fix=_again(run),
                )
        if flower is not None and flower.over:
            _say_why(run, flower)
        time.sleep(_LOOK)


def _say_why(run: RunFolder, flower: FlowerRun) -> None:
    if flower.outcome == "completed":
        return  # the ledger will say so at once
    raise RunError(
        f"the run {run.name} was broken off",
        found=flower.details or f"Flower calls it {flower.outcome}",
        fix=_again(run),
    )


def _again(run: RunFolder) -> str:
    return f"every committed round is kept; go on with: fedcxr-server resume {run.name}"


def line_of(event: Event) -> str:
    """Write an event as one line.

    >>> line_of(Event(1, 0.0, "round", 1, None, "Round 1: 3 of 3 sites", {}))[10:]
    'Round 1: 3 of 3 sites'
    """
    mark = "! " if event.kind in _WARNED else ""
    return f"{datetime.fromtimestamp(event.time):%H:%M:%S}  {mark}{event.text}"


def standing(run: RunFolder) -> str:
    """Say in a few words how far a run is and what it waits for: what the monitor's page says."""
    seen = Run(run.name, run.path, registry=run.path.parent.parent / "registry.sqlite")
    try:
        return standing_of_run(seen, time.time()).sentence
    finally:
        seen.close()
