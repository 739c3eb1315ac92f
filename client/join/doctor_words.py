"""What doctor found, as a table to read and to send on, and as JSON."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.join.checks.case import Level, Outcome
from client.join.doctor import Examination

_SIGN: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "failure": ("FAILURE", "bold red"),
    "skipped": ("skipped", "dim"),
}


def show(found: Examination, console: Console | None = None) -> None:
    """Print every check by group, then what is to be mended, failures last."""
    out = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, outcomes in found.groups.items():
        if outcomes:
            table.add_row(Text(group, style="bold"), "", "")
        for outcome in outcomes:
            word, style = _SIGN[outcome.level]
            table.add_row(f"  {outcome.check}", Text(word, style=style), Text(outcome.found))
    out.print(table)
    for level in ("warning", "failure"):
        for outcome in found.of(level):
            _mend(out, outcome)
    counts = {level: len(found.of(level)) for level in _SIGN}
    verdict = "nothing failed" if found.healthy else f"{counts['failure']} failed"
    out.print(
        f"\n{verdict}: {counts['ok']} ok, {counts['warning']} warnings, {counts['skipped']} skipped, "
        f"in {found.seconds:.1f} s"
    )


def facts(found: Examination) -> dict[str, object]:
    """Return what was found for a program to read."""
    return {
        "kind": "doctor",
        "healthy": found.healthy,
        "seconds": round(found.seconds, 2),
        "outcomes": [
            {"group": group, **outcome.__dict__}
            for group, outcomes in found.groups.items()
            for outcome in outcomes
        ],
    }


def _mend(out: Console, outcome: Outcome) -> None:
    word, style = _SIGN[outcome.level]
    out.print()
    out.print(Text(f"{word}  {outcome.check}: {outcome.found}", style=style))
    out.print(Text(f"  mend it: {outcome.fix}"))
