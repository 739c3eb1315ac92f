"""A whole federation of real processes on loopback: a centre, hospitals, and a wire one can watch or cut."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tests.ports import free_port

BIN = Path(sys.executable).parent
MODULES = {"fedcxr-server": "server", "fedcxr-site": "client", "fedcxr-simulate": "simulations"}
"""The package whose ``cli`` is each command."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "COLUMNS": "160", "NO_COLOR": "1"}


def answers(port: int) -> bool:
    """Whether something listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what: str, found: Callable[[], object], seconds: float = 60) -> object:
    """Return the first true value of ``found``; fail by name when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    pytest.fail(f"waited {seconds:.0f} s for {what}")


class Wire:
    """Stands between the sites and the centre's gateway with the centre's own certificate.

    It keeps the plaintext of every request and can be cut: new connections are refused and open
    ones stand still, as when a router loses its uplink.
    """

    def __init__(self, port: int, gateway: int, keys: Path, record: Path) -> None:
        self.port, self._gateway, self._keys, self._record = port, gateway, keys, record
        self.cut = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        record.mkdir(parents=True, exist_ok=True)
        self._count = 0

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def captured(self) -> bytes:
        """Everything the sites have said, in the clear."""
        return b"".join(file.read_bytes() for file in sorted(self._record.glob("*.request")))

    def _run(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(self._keys / "server.crt", self._keys / "server.key")
        serve = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=inside)
        server = loop.run_until_complete(serve)
        self._started.set()
        loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut.is_set():
            writer.transport.abort()
            return
        context = ssl.create_default_context(cafile=str(self._keys / "ca.crt"))
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self._gateway, ssl=context)
        except OSError:
            writer.transport.abort()
            return
        self._count += 1
        with (self._record / f"{self._count:06d}.request").open("ab") as copy:
            await asyncio.gather(
                self._pump(reader, back, copy.write), self._pump(onward, writer, lambda data: None)
            )

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        copy: Callable[[bytes], object],
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                while self.cut.is_set():
                    await asyncio.sleep(0.1)
                copy(data)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()


class Deployment:
    """A centre and its sites, made and driven by the commands of the guides."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.centre = root / "centre"
        self.sites: dict[str, Path] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.gate, self.admin = free_port(), free_port()
        self.wire = Wire(free_port(), self.gate, self.centre / "keys", root / "wire")
        self.said: list[tuple[str, str]] = []

    # ------------------------------------------------------------------ commands

    def command(self, name: str, *arguments: str | Path) -> list[str]:
        return [str(BIN / name), *map(str, arguments)]

    def call(self, name: str, *arguments: str | Path, exit_code: int | None = 0, timeout: float = 300) -> str:
        """Run a command to its end and return what it said."""
        done = subprocess.run(
            self.command(name, *arguments),
            env=os.environ | ENVIRONMENT | {"FEDCXR_CENTRE": str(self.centre)},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
        )
        said = done.stdout + done.stderr
        self.said.append((" ".join(map(str, (name, *arguments))), said))
        assert "Traceback" not in said, said
        assert exit_code is None or done.returncode == exit_code, said
        return said

    def here(self, name: str, *arguments: str | Path) -> str:
        """Run a command that must work in this process: Python and torch need not start for each."""
        app = importlib.import_module(f"{MODULES[name]}.cli").app
        around = ENVIRONMENT | {"FEDCXR_CENTRE": str(self.centre)}
        with contextlib.chdir(self.root):
            done = CliRunner().invoke(app, [str(word) for word in arguments], env=around, prog_name=name)
        self.said.append((" ".join(map(str, (name, *arguments))), done.output))
        assert done.exit_code == 0, done.output
        return done.output

    def server(self, *arguments: str | Path, exit_code: int | None = 0, timeout: float = 300) -> str:
        return self.call("fedcxr-server", *arguments, exit_code=exit_code, timeout=timeout)

    def site(self, *arguments: str | Path, exit_code: int | None = 0, timeout: float = 300) -> str:
        return self.call("fedcxr-site", *arguments, exit_code=exit_code, timeout=timeout)

    # ------------------------------------------------------------------ from nothing

    def make_centre(self) -> None:
        address = ("--address", f"127.0.0.1:{self.wire.port}", "--listen", f"127.0.0.1:{self.gate}")
        self.server("init", self.centre, "--name", "centre", *address, "--admin", f"127.0.0.1:{self.admin}")
        self.wire.start()

    def export(self, name: str, *options: str) -> Path:
        """Make a hospital's export of phantom studies."""
        folder = self.root / name
        self.here("fedcxr-simulate", "make-site", folder, "--name", name, *options)
        toml = folder / "site.toml"
        toml.write_text(toml.read_text() + "\n[device]\nthreads = 1\n")
        self.sites[name] = folder
        return folder

    def join(self, name: str, approve: bool = True) -> None:
        """Invite, request, admit, join, approve."""
        folder, post = self.sites[name], self.root
        self.step(name, "fedcxr-server", "invite", name, "--out", post / f"{name}.invitation")
        self.step(name, "fedcxr-site", "init", post / f"{name}.invitation", folder)
        welcome = ("--out", post / f"{name}.welcome")
        self.step(name, "fedcxr-server", "admit", folder / f"{name}.request", *welcome)
        self.step(name, "fedcxr-site", "join", post / f"{name}.welcome", folder)
        if approve:
            self.approve(name)

    def approve(self, name: str, *options: str | Path) -> None:
        """Approve as IT does."""
        self.step(name, "fedcxr-site", "approve", self.sites[name], "--yes", "--by", "IT", *options)

    def step(self, site: str, name: str, *arguments: str | Path) -> None:
        """Run a command of the ladder: the first site's as a process, the others', to save time, here."""
        (self.call if site == next(iter(self.sites)) else self.here)(name, *arguments)

    # ------------------------------------------------------------------ processes

    def start(self, who: str) -> None:
        """Start the centre or a site in the background."""
        arguments = (
            self.command("fedcxr-server", "start", "--centre", self.centre)
            if who == "centre"
            else self.command("fedcxr-site", "start", self.sites[who])
        )
        with (self.root / f"{who}.out").open("ab") as out:
            self.running[who] = subprocess.Popen(
                arguments,
                env=os.environ | ENVIRONMENT,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.root,
                start_new_session=True,
            )

    def stop(self, who: str, seconds: float = 30) -> int:
        """Ask for a clean stop and return the exit code."""
        process = self.running.pop(who)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
            pytest.fail(f"{who} did not stop within {seconds:.0f} s")

    def end(self) -> None:
        """Stop everything that still runs, kindly first."""
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(process.pid).children(recursive=True):
                        child.kill()
                process.kill()
                process.wait()
        self.running.clear()
        self.wire.stop()

    def processes(self, who: str, words: str) -> list[psutil.Process]:
        """The processes under a centre or site whose command line holds ``words``."""
        family = psutil.Process(self.running[who].pid).children(recursive=True)
        found = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    # ------------------------------------------------------------------ runs

    def plan(self, text: str) -> Path:
        file = self.root / "plan.toml"
        file.write_text(text)
        return file

    def run_folder(self, name: str) -> Path:
        return self.centre / "runs" / name

    def events(self, name: str, kind: str = "") -> list[dict[str, object]]:
        """A run's events so far, read as any onlooker would."""
        import sqlite3

        file = self.run_folder(name) / "ledger.sqlite"
        if not file.is_file():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as ledger:
            try:
                query = "SELECT kind, round, site, text, facts FROM events ORDER BY id"
                rows = ledger.execute(query).fetchall()
            except sqlite3.OperationalError:
                return []
        keys = ("kind", "round", "site", "text", "facts")
        found = [dict(zip(keys, row, strict=True)) for row in rows]
        return [event for event in found if not kind or event["kind"] == kind]

    def audit(self, name: str) -> list[dict[str, object]]:
        file = self.sites[name] / "node" / "audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def up(self, sites: Sequence[str]) -> None:
        """Start the centre and sites and wait until each is connected."""
        self.start("centre")
        wait_for("the gateway", lambda: answers(self.gate))
        for name in sites:
            self.start(name)
        wait_for("all sites to be heard", lambda: self.heard(sites), 120)

    def heard(self, sites: Sequence[str]) -> bool:
        """Whether the centre has heard of every site within the last minute."""
        status = self.here("fedcxr-server", "status")
        return all(re.search(rf"{name} .*heard \d+ s ago", status) for name in sites)


@pytest.fixture(scope="session")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Deployment]]:
    """Make deployments by name; all are ended with the session."""
    made: list[Deployment] = []

    def make(name: str) -> Deployment:
        made.append(Deployment(tmp_path_factory.mktemp(name)))
        return made[-1]

    yield make
    for deployment in made:
        deployment.end()


@pytest.fixture(scope="session")
def wait() -> Callable[..., object]:
    """``wait(what, found, seconds)``: poll until true."""
    return wait_for
