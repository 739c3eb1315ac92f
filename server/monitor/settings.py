"""MonitorSettings: what ``[monitor]`` says in centre.toml, or in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from common.errors import ConfigError, closest
from common.overrides import read_toml
from common.sections import Names, Section

DEFAULT_LISTEN = "127.0.0.1:9480"
"""Where the page is, unless somebody says otherwise."""


def split_listen(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host stands in brackets, port 0 is any free one.

    >>> split_listen("[::1]:9480"), split_listen("127.0.0.1:0")
    (('::1', 9480), ('127.0.0.1', 0))

    Raises:
        ConfigError: if it is not one.
    """
    host, colon, port = address.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    whole = colon and host and (bracketed or ":" not in host) and port.isascii() and port.isdigit()
    if not whole or int(port) > 65535:
        raise ConfigError("an address is HOST:PORT", found=address[:80], fix=f"for example {DEFAULT_LISTEN}")
    return host[1:-1] if bracketed else host, int(port)


def _address(text: str) -> str:
    if text:
        try:
            split_listen(text)
        except ConfigError as error:
            raise ValueError(f"{error.problem}; {error.fix}") from None
    return text


Address = Annotated[str, AfterValidator(_address)]


class MonitorSettings(Section):
    """The table ``[monitor]``."""

    enabled: bool = True
    """Whether ``fedcxr-server start`` runs the monitor beside the centre."""
    listen: Address = ""
    """HOST:PORT of the page; empty: 127.0.0.1:9480, or the next free port. Away from loopback only with
    TLS and a user who has a password."""
    names: Names = ()
    """Further host names by which browsers may call the page, for example that of a tunnel's end."""
    certificate: str = ""
    """PEM file of the page's certificate; empty: the centre's own."""
    key: str = ""
    """PEM file of its private key."""
    login: bool = False
    """Ask for a login on loopback too; where a user has a password it is asked in any case."""
    late: Annotated[float, Field(gt=0, le=86_400)] = 20.0
    """Seconds of silence after which a site counts as late (orange)."""
    silent: Annotated[float, Field(gt=0, le=604_800)] = 60.0
    """Seconds of silence after which a site counts as silent (red)."""
    health: Address = ""
    """HOST:PORT of the standard gRPC health service; empty: none."""


def monitor_settings(table: Mapping[str, Any], source: str = "centre.toml") -> MonitorSettings:
    """Check a ``[monitor]`` table.

    Raises:
        ConfigError: if a key is unknown or its value is of the wrong type or out of range.
    """
    try:
        settings = MonitorSettings(**table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = closest(key, MonitorSettings.model_fields) if first["type"] == "extra_forbidden" else ""
        raise ConfigError(
            f"{source}: monitor.{key}: {first['msg']}", found=repr(first["input"])[:80], fix=known
        ) from None
    if settings.silent < settings.late:
        raise ConfigError(
            f"{source}: monitor.silent is shorter than monitor.late",
            found=f"{settings.silent:g} and {settings.late:g} seconds",
            fix="a site is late first and silent later",
        )
    return settings


def read_settings(file: Path | None) -> tuple[MonitorSettings, dict[str, Any]]:
    """Return the settings of a file and its ``[alerts]`` table; the defaults and none without a file.

    The file is a centre.toml, whose other keys are not looked at, or one that holds nothing else.

    Raises:
        ConfigError: if it cannot be read, or a key is wrong.
    """
    tree = read_toml(file) if file is not None else {}
    tables = {name: tree.get(name, {}) for name in ("monitor", "alerts")}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{name} is not a table", found=repr(table)[:80], fix=f"write [{name}]")
    return monitor_settings(tables["monitor"], file.name if file else ""), tables["alerts"]
