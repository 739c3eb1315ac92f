"""How far a connection to the centre gets, step by step, and what stopped it.

Goes the way Flower's client goes: straight, or through the proxy that the environment names.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from client.join.checks.proxy import Proxy

T = TypeVar("T")
Stop = Literal["name", "refused", "silent", "no-route", "proxy", "not-tls", "broken", "late"]
_HEADER = re.compile(rb"^HTTP/1\.[01] (\d{3})[^\r\n]*")


class Stopped(Exception):  # noqa: N818  (how far it got is a finding, not a fault)
    """The connection got no further; ``why`` is one of `Stop`."""

    def __init__(self, why: Stop, detail: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.detail = detail


@dataclass(frozen=True)
class Route:
    """The way to one host and port."""

    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def first(self) -> tuple[str, int]:
        """Where the first TCP connection goes."""
        return (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)


@dataclass(frozen=True)
class Reply:
    """What an HTTP server answered."""

    status: int
    headers: Mapping[str, str]
    sent: float
    """Local clock when the request was sent, and when the answer came."""
    received: float
    body: bytes = b""


@dataclass
class Budget:
    """Seconds that all steps together may take."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    def step(self, most: float) -> float:
        """Return the seconds the next step may take.

        Raises:
            Stopped: ``late`` if nothing is left.
        """
        left = self.seconds - (time.monotonic() - self._began)
        if left <= 0.05:
            raise Stopped("late")
        return min(most, left)


def split_address(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT``, as the welcome has it; an IPv6 host stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def resolve(host: str, seconds: float) -> list[str]:
    """Return a name's addresses.

    Raises:
        Stopped: ``name`` if there is none, or nobody answers in time.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = _in_time(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM), seconds)
    except TimeoutError:
        raise Stopped("name", "no answer") from None
    except (OSError, UnicodeError) as error:
        raise Stopped("name", getattr(error, "strerror", None) or type(error).__name__) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(route: Route, seconds: float) -> socket.socket:
    """Return a TCP connection to the centre, through the proxy where there is one.

    Raises:
        Stopped: ``refused``, ``silent``, ``no-route``, or ``proxy`` where that one says no.
    """
    connection = _dial(*route.first, seconds)
    if route.proxy is None:
        return connection
    try:
        _through(connection, route, route.proxy)
    except BaseException:
        connection.close()
        raise
    return connection


def shown_certificate(route: Route, seconds: float) -> bytes:
    """Return the certificate the other end shows, as PEM, whoever it is; nothing is sent to it.

    Raises:
        Stopped: as `connect`, or ``not-tls``.
    """
    context = unchecked_context()
    with _handshake(route, context, seconds) as connection:
        shown = connection.getpeercert(binary_form=True)
    if not shown:
        raise Stopped("not-tls")
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def unchecked_context() -> ssl.SSLContext:
    """Return a context that believes everybody: to look at a certificate and a clock, nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def checked_context(authority: bytes) -> ssl.SSLContext:
    """Return a context that believes the centre's CA alone, as Flower's client does.

    Raises:
        ssl.SSLError: if that is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


def ask(
    route: Route,
    context: ssl.SSLContext,
    method: str,
    path: str,
    now: Callable[[], float],
    seconds: float,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Reply:
    """Send one HTTP request and read the answer.

    Raises:
        Stopped: as `connect`; ``not-tls`` or ``broken`` if the other end is no HTTPS server.
        ssl.SSLCertVerificationError: if the certificate is not believed.
    """
    with _handshake(route, context, seconds) as connection:
        host = f"[{route.host}]" if ":" in route.host else route.host
        lines = {"host": f"{host}:{route.port}", "connection": "close", **(headers or {})}
        if method != "GET":
            lines["content-length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        sent = now()
        try:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body)
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            received = now()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, told, sent, received, answer.read(10_000))
        except TimeoutError:
            raise Stopped("silent", "no answer to an HTTP request") from None
        except (http.client.HTTPException, OSError) as error:
            raise Stopped("broken", type(error).__name__) from None


def _handshake(route: Route, context: ssl.SSLContext, seconds: float) -> ssl.SSLSocket:
    connection = connect(route, seconds)
    try:
        return context.wrap_socket(connection, server_hostname=route.host)
    except ssl.SSLCertVerificationError:
        connection.close()
        raise
    except TimeoutError:
        connection.close()
        raise Stopped("silent", "no TLS handshake") from None
    except (ssl.SSLError, ConnectionError) as error:
        connection.close()
        raise Stopped("not-tls", getattr(error, "reason", None) or type(error).__name__) from None


def _dial(host: str, port: int, seconds: float) -> socket.socket:
    addresses = resolve(host, seconds)
    end = time.monotonic() + seconds
    last = Stopped("silent")
    for number, address in enumerate(addresses):
        share = (end - time.monotonic()) / (len(addresses) - number)
        try:
            return socket.create_connection((address, port), timeout=max(share, 0.2))
        except ConnectionRefusedError:
            last = Stopped("refused")
        except TimeoutError:
            last = Stopped("silent")
        except OSError as error:
            last = Stopped("no-route", errno.errorcode.get(error.errno or 0, ""))
    raise last


def _through(connection: socket.socket, route: Route, proxy: Proxy) -> None:
    if proxy.scheme != "http":
        raise Stopped("proxy", f"{proxy.scheme or 'unknown'}:// is no kind of proxy that is known here")
    target = f"[{route.host}]:{route.port}" if ":" in route.host else f"{route.host}:{route.port}"
    login = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    data = b""
    try:
        connection.sendall(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{login}\r\n".encode("ascii"))
        while b"\r\n\r\n" not in data and len(data) < 20_000:
            part = connection.recv(4096)
            if not part:
                break
            data += part
    except (OSError, UnicodeError):
        pass
    told = _HEADER.match(data)
    if told is None:
        raise Stopped("proxy", "it does not answer as a proxy does")
    if told[1] != b"200":
        raise Stopped("proxy", f"it answers {told[1].decode()}")


def _in_time(work: Callable[[], T], seconds: float) -> T:
    """Run something that takes no timeout on a thread that may be left behind.

    Raises:
        TimeoutError: if it takes longer.
    """
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001  (raised again by whoever waits)
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
