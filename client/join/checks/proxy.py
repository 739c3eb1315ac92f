"""Which proxy a request takes, as httpx reads the environment: Flower's clients go through httpx."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Proxy:
    """A proxy the environment names."""

    variable: str
    scheme: str
    host: str
    port: int
    authorization: str = ""
    """Basic credentials; never shown."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def find_proxy(
    environment: Mapping[str, str], host: str, scheme: Literal["http", "https"] = "https"
) -> Proxy | None:
    """Return the proxy that httpx, which Flower uses, takes for a host.

    A network in NO_PROXY, such as 10.0.0.0/8, is not understood by httpx and so not by us.
    """
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        value = environment.get(name, "").strip()
        if value:
            break
    else:
        return None
    excepted = environment.get("no_proxy", "") or environment.get("NO_PROXY", "")
    if any(_excepts(entry.strip().lower(), host.lower()) for entry in excepted.split(",")):
        return None
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        login = ""
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            login = "Basic " + base64.b64encode(pair.encode()).decode()
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return Proxy(name, parts.scheme, parts.hostname or "", port, login)
    except ValueError:
        return Proxy(name, "", "", 0)


def _excepts(entry: str, host: str) -> bool:
    entry = entry.partition("://")[2] or entry
    if entry == "*" or (entry and entry.strip("[]") == host):
        return True
    if not entry or ":" in host or host.replace(".", "").isdigit():
        return False
    name = entry.lstrip(".")
    return host.endswith(f".{name}") or (not entry.startswith(".") and host == name)
