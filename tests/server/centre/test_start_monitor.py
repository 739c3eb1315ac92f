"""The monitor as the third process of a centre: it says where it is, and can stop nobody else."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from common.supervise import Child, Supervisor
from server.centre.folder import CentreFolder
from server.centre.provision import init_centre
from server.centre.start import _warnings, children


@pytest.fixture
def centre(tmp_path: Path) -> CentreFolder:
    """A centre whose monitor takes any free port."""
    made = init_centre(tmp_path / "centre", "middle", "localhost:29443")
    told(made, '[monitor]\nlisten = "127.0.0.1:0"\n')
    return made


def told(centre: CentreFolder, more: str) -> None:
    file = centre.root / "centre.toml"
    file.write_text(file.read_text().partition("\n[")[0] + f"\n{more}")


class Kept:
    """Some of a centre's children, kept by a supervisor until the block ends."""

    def __init__(self, centre: CentreFolder, chosen: list[Child]) -> None:
        self.said: list[str] = []
        self.supervisor = Supervisor(chosen, centre.logs, self.said.append, _warnings(self.said.append))
        self.thread = threading.Thread(target=self.supervisor.run)

    def __enter__(self) -> Kept:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self.thread.join(timeout=20)

    def until(self, there: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not there():
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def saying(self, pattern: str) -> re.Match[str] | None:
        """Find a line that was said."""
        return next((found for line in list(self.said) if (found := re.search(pattern, line))), None)


def test_it_comes_last_and_only_if_wanted(centre: CentreFolder) -> None:
    assert [child.name for child in children(centre)] == ["superlink", "superexec"]
    assert [child.name for child in children(centre, monitor=True)] == ["superlink", "superexec", "monitor"]


def test_it_says_its_address_and_stops_with_the_centre(centre: CentreFolder) -> None:
    with Kept(centre, children(centre, monitor=True)[-1:]) as kept:
        kept.until(lambda: kept.saying(r"Monitor: http://"))
        found = kept.saying(r"Monitor: (http://127\.0\.0\.1:\d+/)")
        assert found is not None
        page = httpx.get(found[1], timeout=60)
        assert page.status_code == 200 and "middle" in page.text
        began = time.monotonic()
        kept.supervisor.stop()
        kept.thread.join(timeout=20)
        assert time.monotonic() - began < 5
    assert not kept.saying("ended")


def test_a_port_that_is_taken_is_said_once_and_harms_nobody_else(centre: CentreFolder) -> None:
    other = Child("other", ("sleep", "1000"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told(centre, f'[monitor]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n')
        with Kept(centre, [other, children(centre, monitor=True)[-1]]) as kept:
            kept.until(lambda: kept.saying("monitor ended"))
            assert kept.saying(r"monitor: E_DEPLOYMENT  the monitor cannot listen on 127\.0\.0\.1:\d+")
            assert kept.saying(r"fix: +stop whatever uses the port") and kept.saying("again in 300 s")
            assert kept.thread.is_alive() and not kept.saying("other ended")


def test_a_wrong_setting_is_said_and_harms_nobody_else(centre: CentreFolder) -> None:
    told(centre, "[monitor]\nlate = -1.0\n")
    assert centre.config().name == "middle"
    with Kept(centre, children(centre, monitor=True)[-1:]) as kept:
        kept.until(lambda: kept.saying("monitor ended"))
        assert kept.saying(r"monitor: E_CONFIG  centre\.toml: monitor\.late")


def test_the_same_fault_is_said_once_until_it_serves() -> None:
    said: list[str] = []
    listen = _warnings(said.append)
    for _ in range(3):
        listen("monitor", "E_DEPLOYMENT  the monitor cannot listen on 127.0.0.1:1")
        listen("monitor", "              found: Address already in use")
        listen("monitor", "Traceback of something")
    assert len(said) == 2
    listen("monitor", "Monitor: http://127.0.0.1:1/")
    listen("monitor", "E_DEPLOYMENT  the monitor cannot listen on 127.0.0.1:1")
    assert len(said) == 4
    listen("superexec", "E_DEPLOYMENT  somebody else's")
    assert len(said) == 4
