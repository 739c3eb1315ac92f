"""Bodies, connections and slowness that would exhaust a server leave this one as it was."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest

from server.centre.credentials import DeniedError
from server.centre.doors import DoorLimits, Doors
from server.centre.limits import Bodies, BodyLimits

pytestmark = pytest.mark.e2e

MOST_GROWTH = 80_000_000
GIBIBYTE = 1 << 30


def _head(path: str, length: int | None, fields: dict[str, str]) -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/protobuf", size]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in fields.items())]).encode() + b"\r\n\r\n"


def _flood(centre, face: str, path: str, length: int | None, fields: dict[str, str]) -> tuple[bytes, int]:
    """Send a body without looking at the answer, as far as the server lets; returns status and bytes."""
    host, port = face.split(":")
    piece, sent, said = b"\0" * 65536, 0, b""
    framed = piece if length is not None else b"10000\r\n" + piece + b"\r\n"
    plain = socket.create_connection((host, int(port)), timeout=15)
    with centre.tls().wrap_socket(plain, server_hostname=host) as connection:
        connection.sendall(_head(path, length, fields))
        connection.settimeout(5)
        try:
            while sent < (length or GIBIBYTE):
                connection.sendall(framed)
                sent += len(piece)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            said = connection.recv(4096)
    return said, sent


@pytest.mark.parametrize("length", [GIBIBYTE, None], ids=["declared", "chunked"])
def test_a_gibibyte_without_a_credential_is_not_read(centre, length):
    before, most = centre.memory(), 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, centre.memory())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for face, path in (
            (centre.public, "/v1/fleet/push-object"),
            (centre.public, "/v1/control/start-run"),
            (centre.public, "/health"),
            (centre.admin, "/v1/control/start-run"),
            (centre.admin, "/v1/runtime/push-object"),
            (centre.admin, "/v1/runtime/acquire-task"),
        ):
            _, sent = _flood(centre, face, path, length, {})
            assert sent < GIBIBYTE // 20, path
    finally:
        stop.set()
        watcher.join()
    assert most - before < MOST_GROWTH


@pytest.mark.parametrize("length", [GIBIBYTE, None], ids=["declared", "chunked"])
def test_a_gibibyte_of_a_site_stops_at_the_cap(centre, length):
    north = centre.admit(f"flood-{length or 0}")
    before = centre.memory()
    said, sent = _flood(centre, centre.public, "/v1/fleet/push-object", length, north.headers())
    assert sent < 64_000_000
    assert centre.memory() - before < MOST_GROWTH
    assert said == b"" or b" 413 " in said
    assert north.pull() is None


def test_half_open_connections_leave_a_site_unharmed(centre):
    """400 at once from the site's own address: TCP only, TLS only, half a head."""
    north = centre.admit("half-open")
    open_before = north.client()
    open_before.PullMessages(PullMessagesRequest(node=north.node))
    held: list[socket.socket] = []
    for number in range(400):
        try:
            connection = centre.connect(tls=number % 3 != 0)
            if number % 3 == 2:
                connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\ncontent-le")
            held.append(connection)
        except OSError:
            continue
    assert len(held) > 350
    slowest = 0.0
    for _ in range(10):
        began = time.monotonic()
        north.pull()
        open_before.PullMessages(PullMessagesRequest(node=north.node))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 2
    closed = sum(_is_closed(connection) for connection in held)
    assert closed >= 250
    open_before.close()
    for connection in held:
        connection.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except (BlockingIOError, OSError) as error:
        return "read" not in str(error) and not isinstance(error, BlockingIOError)


@pytest.mark.slow
def test_a_half_open_connection_is_cut_in_time(centre):
    held = [centre.connect(tls=False), centre.connect(), centre.connect()]
    held[2].sendall(b"GET /health HTTP/1.1\r\nhost")
    time.sleep(13)
    assert all(_is_closed(connection) for connection in held)
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_a_slow_body_is_cut_off(centre):
    north = centre.admit("slow-body")
    with centre.connect() as connection:
        connection.sendall(_head("/v1/fleet/pull-messages", 10, north.headers()) + b"12")
        began = time.monotonic()
        said = connection.recv(4096)
    assert b" 503 " in said
    assert 15 < time.monotonic() - began < 25


def test_a_head_that_is_too_long_is_refused(centre):
    with centre.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        try:
            for _ in range(40):
                connection.sendall(b"a: " + b"b" * 1000 + b"\r\n")
            said = connection.recv(4096)
        except OSError:
            said = b""
    assert b" 200 " not in said


def _receive(*pieces: tuple[float, bytes, bool]):
    waiting = list(pieces)

    async def receive():
        if not waiting:
            await asyncio.sleep(60)
        wait, body, more = waiting.pop(0)
        await asyncio.sleep(wait)
        return {"type": "http.request", "body": body, "more_body": more}

    return receive


def _read(bodies: Bodies, receive, cap: int = 100) -> bytes:
    async def read() -> bytes:
        with bodies.room("north") as room:
            return await bodies.read(room, receive, cap)

    return asyncio.run(read())


def test_bodies_have_a_cap_an_idle_limit_and_a_total_time():
    bodies = Bodies(BodyLimits(idle_seconds=0.1, total_seconds=0.25, at_once=150))
    assert _read(bodies, _receive((0, b"ab", True), (0.05, b"c", False))) == b"abc"
    for receive, status in (
        (_receive((0, b"x" * 101, False)), 413),
        (_receive((0, b"x" * 60, True), (0, b"x" * 41, False)), 413),
        (_receive((0, b"x", True), (0.5, b"x", False)), 503),
        (_receive(*[(0.08, b"x", True)] * 10), 503),
    ):
        with pytest.raises(DeniedError) as caught:
            _read(bodies, receive)
        assert caught.value.status == status
    # What was refused takes no memory: there is room for the next.
    assert len(_read(bodies, _receive((0, b"x" * 100, False)))) == 100


def test_bodies_together_have_a_cap():
    bodies = Bodies(BodyLimits(at_once=150))

    async def two() -> list[object]:
        async def one() -> bytes:
            with bodies.room("north") as room:
                body = await bodies.read(room, _receive((0, b"x" * 100, False)), 100)
                await asyncio.sleep(0.05)
                return body

        return await asyncio.gather(one(), one(), return_exceptions=True)

    first, second = asyncio.run(two())
    assert len(first) == 100
    assert second.status == 503


def test_a_site_has_a_number_of_requests_at_once():
    bodies = Bodies(BodyLimits(per_site=1))
    with bodies.of("north"), bodies.of("south"):
        with pytest.raises(DeniedError) as caught, bodies.of("north"):
            pass
        assert (caught.value.status, caught.value.retry_after) == (503, 2)
    with bodies.of("north"):
        pass


def test_one_stranger_too_many_pushes_out_the_oldest_and_never_a_known_caller():
    now = [0.0]
    doors = Doors(DoorLimits(strangers=6, strangers_per_address=3, head_seconds=10), clock=lambda: now[0])
    listener = doors.listen("127.0.0.1", 0)
    listener.listen()
    listener.setblocking(True)
    callers, accepted = [], []
    for number in range(5):
        callers.append(socket.create_connection(listener.getsockname(), timeout=5))
        accepted.append(listener.accept()[0])
        if number == 0:
            doors.proven(callers[0].getsockname(), "north")
    assert doors.count() == (5, 3)
    assert doors.turned_away == 1
    assert callers[1].recv(1) == b""  # the oldest stranger
    now[0] = 11
    doors.sweep()
    assert [caller.recv(1) for caller in callers[2:]] == [b"", b"", b""]
    assert doors.shut_out("north") == 1
    for one in (*callers, *accepted, listener):
        one.close()
    assert doors.count() == (0, 0)
