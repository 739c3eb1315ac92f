"""``fedcxr-site audit show`` and ``audit verify``, mounted in `client.cli`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from common.console import fail_clearly

Place = Annotated[Path, typer.Argument(help="The site's site.toml, or the folder that holds it.")]
SHOWN = ("n", "time", "kind", "run", "stage", "round", "bytes")
"""Columns of ``audit show``; what else a line says stands in the last one."""
LEFT_OUT = {
    *SHOWN,
    "previous",
    "hash",
    "objects",
    "message",
    "sha256",
    "sequence",
    "plan",
    "site",
    "since",
    "until",
}
"""Facts that only ``--json`` shows."""

audit = typer.Typer(no_args_is_help=True, help="Read and check the record of what was asked and what left.")


@audit.command()
def show(
    place: Place = Path("site.toml"),
    since: Annotated[
        str, typer.Option(help="Only lines from this day or time on (UTC), such as 2026-05-01.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="The lines as they are, one JSON object each.")
    ] = False,
) -> None:
    """Show what was asked of this site, what it refused and what left it, line by line.

    An answer's line was written before the answer was sent. `fedcxr-site audit verify` proves that no
    line was changed since.
    """
    with fail_clearly(as_json):
        from client.gate.audit import read_audit
        from client.place import SiteFolder

        start = _moment(since)
        lines = (line for line in read_audit(SiteFolder.of(place)) if str(line["time"]) >= start)
        if as_json:
            for line in lines:
                typer.echo(json.dumps(line))
            return
        _print_lines(list(lines))


@audit.command()
def verify(
    place: Place = Path("site.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Recompute the whole chain of the audit and hold it against its signed head.

    Exit code 7 when a line was changed, taken out, put in or moved, naming it.
    """
    with fail_clearly(as_json):
        from client.gate.audit import verify_audit
        from client.place import SiteFolder

        check = verify_audit(SiteFolder.of(place))
        if as_json:
            facts = {"lines": check.lines, "problems": check.problems, "notes": check.notes}
            typer.echo(json.dumps({"kind": "audit", **facts}))
        else:
            _print_check(check.lines, check.problems, check.notes)
        if check.problems:
            raise SystemExit(7)


def _print_check(lines: int, problems: Sequence[str], notes: Sequence[str]) -> None:
    for note in notes:
        typer.echo(f"note: {note}")
    if not problems:
        typer.echo(f"The audit is whole: {lines} lines, each as it was written.")
        return
    typer.echo(f"E_AUDIT  the audit is not as it was written ({lines} lines)", err=True)
    for problem in problems[:20]:
        typer.echo(f"         found: {problem}", err=True)
    if len(problems) > 20:
        typer.echo(f"         and {len(problems) - 20} more", err=True)
    typer.echo("         fix:   keep the file as it is and find out who wrote to it", err=True)


def _print_lines(lines: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    used = [name for name in SHOWN if any(name in line for line in lines)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in used:
        table.add_column(name, no_wrap=True, justify="right" if name in ("n", "round", "bytes") else "left")
    table.add_column("what", overflow="fold")
    for line in lines:
        table.add_row(*(Text(_cell(name, line)) for name in used), Text(_told(line)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    typer.echo(f"{len(lines)} lines; every fact of each: fedcxr-site audit show --json")


def _cell(name: str, line: Mapping[str, Any]) -> str:
    value = line.get(name, "")
    if line["kind"] == "traffic" and name == "bytes":
        value = sum(route["bytes"] for route in line["routes"].values())
    if isinstance(value, int) and name == "bytes":
        return f"{value:,}"
    if name == "run":
        return str(value)[-6:]
    return str(value)[:19].replace("T", " ") if name == "time" else str(value)


def _told(line: Mapping[str, Any]) -> str:
    """Say what a line records beyond its columns.

    >>> _told({"kind": "refused", "code": "E_POLICY", "problem": "too many rounds", "found": "500"})
    'E_POLICY: too many rounds (500)'
    >>> _told({"kind": "traffic", "routes": {"PullMessages": {"requests": 3, "bytes": 39}}})
    '3 requests: 3 PullMessages'
    >>> _told({"kind": "answer", "code": "", "records": {"metrics": {"patients": 49}}})
    'patients 49'
    """
    if line["kind"] == "traffic":
        calls = {name: route["requests"] for name, route in line["routes"].items()}
        return f"{sum(calls.values())} requests: " + ", ".join(f"{n} {name}" for name, n in calls.items())
    if line["kind"] == "refused":
        return f"{line['code']}: {line.get('problem', '')}" + (
            f" ({line['found']})" if line.get("found") else ""
        )
    if line["kind"] == "answer":
        return "; ".join([part for part in (line.get("code"), *_left(line["records"])) if part]) or "nothing"
    rest = {k: v for k, v in line.items() if k not in LEFT_OUT and k != "kind" and v not in ("", False)}
    return ", ".join(f"{k} {_short(v)}" for k, v in rest.items())


def _left(records: Mapping[str, Any]) -> Iterator[str]:
    """Say what of an answer left: an update by its size, figures in clear."""
    update = records.get("update")
    if update:
        yield f"an update of {update['shape'][0]:,} {update['dtype']} numbers"
    figures = records.get("metrics", {})
    if figures:
        yield ", ".join(f"{name} {_short(value)}" for name, value in figures.items())


def _short(value: object) -> str:
    """Write a fact for a table: digests cut, what holds records named by their keys.

    >>> _short("a" * 64), _short({"update": {}, "site": {}}), _short(3)
    ('aaaaaaaaaaaa…', 'update, site', '3')
    """
    if isinstance(value, Mapping):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text


def _moment(since: str) -> str:
    """Return a UTC time as the audit writes it; empty stands before all of them.

    >>> _moment("2026-05-01"), _moment("2026-05-01T08:30+02:00")
    ('2026-05-01T00:00:00.000Z', '2026-05-01T06:30:00.000Z')
    """
    from datetime import UTC, datetime

    from common.errors import ConfigError

    if not since:
        return ""
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise ConfigError(
            "--since takes a day or a time", found=since, fix="for example --since 2026-05-01"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
