"""A thousand wrong logins over real HTTP, and what the throttle remembers."""

from __future__ import annotations

import base64
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.monitor.throttle import LONGEST_DELAY, MOST_ENTRIES, Throttle

Serve = Callable[..., Any]
RIGHT = "correct horse battery"
FEW_DOZEN = 48


@pytest.mark.timeout(120)
def test_a_thousand_wrong_logins_are_throttled_and_the_right_one_gets_in(
    served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    page = served(login=True, tls=True)
    waits: list[float] = []

    def guess(number: int, client: httpx.Client) -> int:
        name = "alice" if number % 2 else f"who-typed-a-secret-{number}"
        answer = page.log_in(client, name, f"wrong-password-{number}")
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code

    def look(client: httpx.Client) -> None:
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        waits.append(time.monotonic() - began)

    clients = [page.client() for _ in range(4)]
    health, other = page.client("127.0.0.3"), page.client("127.0.0.2")
    with ThreadPoolExecutor(4) as pool:
        guesses = [pool.submit(guess, number, clients[number % 4]) for number in range(1000)]
        for _ in range(40):
            look(health)
            time.sleep(0.01)
        # Meanwhile alice logs in from an address where nobody has guessed.
        during = page.log_in(other)
        statuses = Counter(done.result() for done in guesses)
    assert during.status_code == 303 and other.get("/").status_code == 200
    assert statuses.keys() == {401, 429} and statuses.total() == 1000
    assert page.access.computed <= FEW_DOZEN, "so many reached Argon2"
    assert statuses[401] == page.access.computed - 1
    assert statistics.median(waits) < 0.2

    # What is left of the last wait depends on the machine; one more wrong login begins a whole one.
    page.clock.ahead += LONGEST_DELAY + 1
    assert page.log_in(clients[0], "alice", "wrong once more").status_code == 401
    again = page.log_in(clients[0])
    assert again.status_code == 429 and "Nothing was checked" in again.text
    page.clock.ahead += LONGEST_DELAY + 1
    assert page.log_in(clients[0]).status_code == 303
    log = caplog.text
    assert "wrong login from 127.0.0.1 for alice" in log and "nobody we know" in log
    assert "who-typed" not in log and "wrong-password" not in log and RIGHT not in log


@pytest.mark.timeout(120)
def test_guessing_from_many_addresses_is_a_trickle_and_shuts_no_known_place_out(served: Serve) -> None:
    page = served(login=True)
    home = page.client("127.0.0.2")
    assert page.log_in(home).status_code == 303
    known = page.access.computed
    for address in range(150):
        client = page.client(f"127.0.1.{address + 1}")
        for _ in range(2):
            assert page.log_in(client, "alice", "wrong").status_code in (401, 429)
    assert page.access.computed - known <= FEW_DOZEN
    # The whole budget for unknown addresses is spent, and alice's own place has another.
    assert page.log_in(page.client("127.0.9.9")).status_code == 429
    assert page.log_in(home).status_code == 303


def test_basic_credentials_are_throttled_too(served: Serve) -> None:
    page = served(login=True)
    client = page.client()
    statuses = [client.get("/metrics", auth=("alice", f"wrong {i}")).status_code for i in range(40)]
    assert set(statuses) == {401, 429} and page.access.computed < 10
    header = base64.b64encode(b"\xff\xfe").decode()
    assert client.get("/metrics", headers={"authorization": f"Basic {header}"}).status_code == 401
    before = page.access.computed
    assert client.get("/healthz", auth=("alice", "wrong")).status_code == 200
    assert page.access.computed == before, "an open page must not be a way to try passwords"


def test_delays_double_and_forget() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    seen = []
    for _ in range(14):
        now[0] += throttle.wait("alice", "10.0.0.1")
        seen.append(throttle.wait("alice", "10.0.0.1"))
        throttle.begin("alice", "10.0.0.1")
        seen[-1] = throttle.wait("alice", "10.0.0.1")
    assert seen[:8] == [0, 0, 0, 1, 2, 4, 8, 16] and seen[-1] == LONGEST_DELAY
    assert throttle.wait("alice", "10.0.0.2") == 0
    assert throttle.wait("bob", "10.0.0.1") > 0, "an address that guesses waits for everybody's password"
    now[0] += 2 * 3600
    assert throttle.wait("alice", "10.0.0.1") == 0


def test_a_right_login_clears_its_own_way_and_not_that_of_guesses() -> None:
    throttle = Throttle(lambda: 0.0)
    for _ in range(9):
        throttle.begin("bob", "10.0.0.1")
    throttle.begin("alice", "10.0.0.1")
    throttle.right("alice", "10.0.0.1")
    assert throttle.knows("alice", "10.0.0.1") and throttle.wait("alice", "10.0.0.1") == 0
    assert throttle.wait("bob", "10.0.0.1") > 0


@pytest.mark.parametrize("address", ["10.{}.{}.1", "2001:db8:{}:{}::1"])
def test_memory_is_bounded_whatever_comes(address: str) -> None:
    throttle = Throttle(lambda: 0.0)
    for number in range(20_000):
        place = address.format(number // 250, number % 250)
        throttle.begin("", place)
        throttle.right("alice", place)
    assert throttle.entries() <= 5 * MOST_ENTRIES


def test_a_network_of_ipv6_addresses_is_one_place() -> None:
    throttle = Throttle(lambda: 0.0)
    for number in range(20):
        throttle.begin("alice", f"2001:db8::{number:x}")
    assert throttle.wait("alice", "2001:db8::ffff") == LONGEST_DELAY
