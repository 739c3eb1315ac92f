"""Where the monitor may be bound, and the command as a process: start, signals, passwords."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from common.errors import ConfigError, CredentialError, DeploymentError, RunError
from server.centre.folder import CENTRE, CentreFolder
from server.centre.provision import init_centre
from server.cli import app
from server.monitor import serve as serving
from server.monitor.launch import Wanted, prepare
from server.monitor.serve import Tls
from server.monitor.settings import DEFAULT_LISTEN

RIGHT = "correct horse battery"
MODULES_LEFT_ALONE = ("torch", "pandas", "matplotlib", "flwr", "timm", "peft", "plotly", "pyarrow")


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder that is neither a centre nor holds runs."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv(CENTRE, raising=False)


@pytest.fixture
def centre(tmp_path: Path) -> CentreFolder:
    """A centre with keys and a certificate for localhost."""
    return init_centre(tmp_path / "centre", "middle", "localhost:29443")


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Prepare a monitor and close it again."""
    made = []

    def prepared(**wanted: Any) -> Any:
        ready = prepare(Wanted(**wanted))
        made.append(ready)
        return ready

    yield prepared
    for ready in made:
        ready.listener.close()


def password(centre: CentreFolder, name: str = "alice", typed: str = RIGHT, *more: str) -> Any:
    """Run ``fedcxr-server password``."""
    line = ["password", name, "--centre", str(centre.root), *more]
    return CliRunner().invoke(app, line, input=f"{typed}\n")


def told(centre: CentreFolder, settings: str) -> None:
    """Write settings into [monitor] of a centre.toml."""
    file = centre.root / "centre.toml"
    file.write_text(f"{file.read_text()}\n[monitor]\n{settings}\n")


def test_by_default_loopback_without_a_login(opened: Callable[..., Any], runs: Path) -> None:
    ready = opened(runs=runs)
    host, port = ready.listener.getsockname()
    assert host == "127.0.0.1" and 9480 <= port <= 9480 + serving.PORTS_TRIED
    assert ready.tls is None and not ready.monitor.access.required
    assert ready.address == f"http://127.0.0.1:{port}/"


def test_the_usual_port_moves_on_and_a_named_one_does_not(
    opened: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DEFAULT_LISTEN == "127.0.0.1:9480"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(serving, "DEFAULT_LISTEN", f"127.0.0.1:{port}")
        assert opened(runs=runs).listener.getsockname()[1] > port
        with pytest.raises(DeploymentError, match="cannot listen") as raised:
            opened(runs=runs, listen=f"127.0.0.1:{port}")
        assert raised.value.found and raised.value.fix


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_elsewhere_only_with_tls_and_a_login(
    opened: Callable[..., Any], runs: Path, centre: CentreFolder, certificates: tuple[Path, Tls], listen: str
) -> None:
    pair = certificates[1]
    with pytest.raises(DeploymentError, match="needs TLS and a login") as raised:
        opened(runs=runs, listen=listen)
    assert "certificate" in raised.value.fix and "fedcxr-server password" in raised.value.fix
    with pytest.raises(DeploymentError) as raised:
        opened(runs=runs, listen=listen, certificate=pair.certificate, key=pair.key)
    assert "certificate:" not in raised.value.fix and "password" in raised.value.fix
    with pytest.raises(DeploymentError) as raised:
        opened(centre=centre.root, listen=listen)
    assert "certificate:" not in raised.value.fix, "the centre has one"
    assert password(centre).exit_code == 0
    ready = opened(centre=centre.root, listen=listen)
    assert ready.tls == Tls(centre.key("server.crt"), centre.key("server.key"))
    assert ready.monitor.access.required and ready.monitor.secure and ready.address.startswith("https://")
    assert "localhost" in ready.monitor.names and ready.monitor.centre == "middle"
    centre.key("server.crt").unlink()
    with pytest.raises(DeploymentError) as raised:
        opened(centre=centre.root, listen=listen)
    assert "certificate:" in raised.value.fix


def test_no_setting_switches_the_login_off(opened: Callable[..., Any], centre: CentreFolder) -> None:
    told(centre, 'listen = "0.0.0.0:0"\nlogin = false')
    with pytest.raises(DeploymentError, match="needs TLS and a login"):
        opened(centre=centre.root)
    password(centre)
    assert opened(centre=centre.root).monitor.access.required
    assert opened(centre=centre.root, listen="127.0.0.1:0").monitor.access.required, "alice has a password"


def test_a_login_can_be_asked_for_on_loopback_too(opened: Callable[..., Any], centre: CentreFolder) -> None:
    told(centre, 'listen = "127.0.0.1:0"\nlogin = true')
    with pytest.raises(DeploymentError, match="nobody has a password"):
        opened(centre=centre.root)
    password(centre)
    ready = opened(centre=centre.root)
    assert ready.monitor.access.required and ready.tls is None


def test_a_certificate_that_cannot_be_used_is_said(
    opened: Callable[..., Any], runs: Path, certificates: tuple[Path, Tls], tmp_path: Path
) -> None:
    authority, pair = certificates
    with pytest.raises(ConfigError, match="belong together"):
        opened(runs=runs, certificate=pair.certificate)
    with pytest.raises(CredentialError, match="cannot be used"):
        opened(runs=runs, listen="127.0.0.1:0", certificate=authority, key=pair.key)
    with pytest.raises(CredentialError, match="cannot be used"):
        opened(runs=runs, listen="127.0.0.1:0", certificate=tmp_path / "none", key=pair.key)
    ready = opened(runs=runs, listen="127.0.0.1:0", certificate=pair.certificate, key=pair.key)
    assert ready.tls == pair, "asked for on loopback, TLS is used"


def test_which_runs_are_shown(
    opened: Callable[..., Any], runs: Path, centre: CentreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(run=str(runs / "first")).page == "runs/first"
    assert opened(runs=runs, run="second").page == "runs/second"
    assert opened(run=str(runs)).page == ""
    with pytest.raises(RunError):
        opened(runs=runs, run="third")
    with pytest.raises(ConfigError, match=r"centre\.toml"):
        opened()
    with pytest.raises(ConfigError, match="no folder"):
        opened(runs=runs / "none")
    monkeypatch.chdir(runs.parent)
    assert {run.key for run in opened().monitor.runs.list()} == {"first", "second"}, "./runs, if it is there"
    monkeypatch.setenv(CENTRE, str(centre.root))
    assert opened().monitor.folder == centre


def test_passwords_on_the_command_line(centre: CentreFolder, tmp_path: Path) -> None:
    file = centre.key("monitor-users.toml")
    short = password(centre, typed="elevenchars")
    assert short.exit_code == 2 and not file.exists()
    made = password(centre)
    assert made.exit_code == 0 and "alice can log in" in made.output and RIGHT not in made.output
    assert file.stat().st_mode & 0o777 == 0o600 and RIGHT not in file.read_text()
    assert "new password" in password(centre, typed="another password").output
    assert password(centre, "bob", RIGHT, "--remove").exit_code == 2
    assert password(centre, "alice", RIGHT, "--remove").exit_code == 0
    assert "alice" not in file.read_text()
    settings = tmp_path / "page.toml"
    settings.write_text("[monitor]\n")
    line = ["password", "carol", "--config", str(settings)]
    assert CliRunner().invoke(app, line, input=f"{RIGHT}\n").exit_code == 0
    assert (tmp_path / "monitor-users.toml").exists()


class Process:
    """``fedcxr-server monitor`` as people start it."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-P", "-m", "server.cli", "monitor", *map(str, arguments)]
        root = str(Path(serving.__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": root}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self._known = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            self._known.set()
        self._known.set()

    @property
    def address(self) -> str:
        """Where it says it is."""
        assert self._known.wait(60)
        return next(line.removeprefix("Monitor: ") for line in self.lines if line.startswith("Monitor: "))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Ask it to stop; returns its exit code and the seconds it took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        took = time.monotonic() - began
        self._reader.join(timeout=5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code, took


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_stands_back_and_stops_at_once_with_streams_open(
    runs: Path, number: signal.Signals
) -> None:
    page = Process("first", "--runs", runs, "--listen", "127.0.0.1:0")
    try:
        assert page.address.endswith("/runs/first")
        root = page.address.removesuffix("runs/first")
        with httpx.Client(base_url=root, timeout=20) as client, client.stream("GET", "/live") as stream:
            next(stream.iter_lines())
            for path in ("/", "/runs/first", "/runs/first/update", "/metrics", "/healthz"):
                assert client.get(path).status_code == 200, path
            facts = psutil.Process(page.process.pid)
            assert facts.nice() >= 10
            loaded = {Path(mapped.path).name.split(".")[0] for mapped in facts.memory_maps()}
            assert not {"libtorch", "libtorch_cpu", "libarrow"} & loaded
            assert facts.memory_info().rss < 200e6
            code, took = page.end(number)
    finally:
        page.end(signal.SIGKILL)
    assert code == 0 and took < 2.0
    assert len(page.lines) == 1, page.lines


def test_the_process_refuses_with_what_to_do(runs: Path) -> None:
    page = Process("--runs", runs, "--listen", "0.0.0.0:0")
    assert page.process.wait(timeout=60) == DeploymentError.exit_code
    page.end()
    said = "\n".join(page.lines)
    assert "E_DEPLOYMENT" in said and "found:" in said and "fix:" in said and "Traceback" not in said


def test_the_page_needs_none_of_the_heavy_libraries(runs: Path) -> None:
    script = f"""
import sys
from server.monitor.launch import Wanted, prepare
from server.monitor.serve import make_server
ready = prepare(Wanted(runs={str(runs)!r}, listen="127.0.0.1:0"))
make_server(ready.monitor)
print([name for name in {MODULES_LEFT_ALONE!r} if name in sys.modules])
""".replace(f"runs={str(runs)!r}", f"runs=__import__('pathlib').Path({str(runs)!r})")
    root = str(Path(serving.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
