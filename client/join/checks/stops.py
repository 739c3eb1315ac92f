"""Where the way to the centre may end, in words for the people who look after the network."""

from __future__ import annotations

from client.join.checks.case import Outcome, failure
from client.join.checks.reach import Route, Stopped

_WHICH_PORT = "ask the centre which port sites are to dial"


def explain(stopped: Stopped, route: Route, seconds: float) -> Outcome:
    """Say where and why a connection got no further, and who can mend it."""
    host, address = route.first[0], f"{route.host}:{route.port}"
    if route.proxy is not None and stopped.why in ("name", "refused", "silent", "no-route", "proxy"):
        return _at_the_proxy(stopped, route)
    match stopped.why:
        case "name":
            return failure(
                "name",
                f"the centre's name {host} has no address here ({stopped.detail}).",
                f"ask IT to resolve {host}, or the centre whether its address is right",
            )
        case "refused":
            return failure(
                "port",
                f"{address} refuses connections: the machine is there and nothing listens on that port.",
                "ask the centre whether it is running and which port sites are to dial",
            )
        case "silent":
            return failure(
                "port",
                f"{address} does not answer ({stopped.detail or 'TCP timed out'}): a firewall drops the "
                "packets, or the machine is down.",
                f"ask IT to allow outgoing TCP to {address}",
            )
        case "no-route":
            return failure(
                "port",
                f"there is no way from here to {address} ({stopped.detail}).",
                "ask IT about the network of this machine",
            )
        case "not-tls":
            return failure(
                "certificate",
                f"{address} takes connections and does not speak TLS: the port is of another service.",
                _WHICH_PORT,
            )
        case "broken":
            return failure(
                "centre", f"{address} does not speak HTTP: the port is of another service.", _WHICH_PORT
            )
        case _:
            return failure(
                "network",
                f"{address} is too slow: not all could be looked at in {seconds:.0f} s.",
                "run doctor again; if it stays so, ask IT about the line",
            )


def _at_the_proxy(stopped: Stopped, route: Route) -> Outcome:
    proxy = route.proxy
    variable, where = ("", "") if proxy is None else (proxy.variable, str(proxy))
    what = {
        "name": f"the proxy of {variable} cannot be found: its name has no address here",
        "refused": f"the proxy {where} of {variable} refuses connections: nothing listens there",
        "silent": f"the proxy {where} of {variable} does not answer",
        "no-route": f"there is no way from here to the proxy {where} of {variable}",
        "proxy": f"the proxy {where} of {variable} does not let through to {route.host}:{route.port}",
    }[stopped.why]
    return failure(
        "proxy",
        f"{what} ({stopped.detail or 'TCP'}).",
        f"correct {variable}, or add {route.host} to NO_PROXY if the centre can be reached without it; "
        f"a proxy must allow CONNECT to {route.host}:{route.port}",
    )
