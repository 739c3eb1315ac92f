"""A centre and its hospitals as the processes of a deployment, on this machine, for benchmarks of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

import psutil

from client.gate.approval import approve
from client.join.joining import accept_welcome, prepare_site
from client.place import SiteFolder
from common.config import RunConfig
from server.centre.folder import CENTRE, CentreFolder
from server.centre.provision import admit_site, init_centre, invite_site
from server.centre.run_folder import RunFolder
from server.plan_model import model_of
from simulations.make_site import make_site

MOST_RANK = 256
"""What the sites' policies allow: a benchmark sends adapters of any size."""
_START = 120.0
"""Seconds a centre or a site may take to be there."""
_STOP = 40.0


class Deployed:
    """``fedcxr-server start`` and a ``fedcxr-site start`` for each site, until the ``with`` ends.

    TLS, keys, gateway, gates, approvals and audits are those of a deployment; only the invitations
    did not travel.
    """

    def __init__(self, root: Path, sites: Mapping[str, int], bases: Sequence[RunConfig], size: int) -> None:
        """Make everything under ``root``: ``sites`` are names and their numbers of studies.

        ``bases`` are plans whose frozen base every site approves; ``size`` is the images' side in pixels.
        """
        self.root = root
        public, admin = (f"127.0.0.1:{port}" for port in _free_ports(2))
        self.centre = init_centre(root / "centre", "centre", public, public, admin, ["127.0.0.1"])
        approved = list(dict.fromkeys(model_of(config).base_digest for config in bases))
        self.sites: dict[str, SiteFolder] = {}
        for seed, (name, studies) in enumerate(sites.items(), start=1):
            self.sites[name] = _joined(self.centre, root, name, studies, seed, size, approved)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Deployed:
        """Start the centre, then the sites, and wait until each is connected.

        Raises:
            RuntimeError: if one does not come up.
        """
        try:
            self._start("centre", "server.cli", "start", "--no-monitor", "--centre", str(self.centre.root))
            port = int(self.centre.config().listen.rpartition(":")[2])
            self._wait("the centre", lambda: _listens(port))
            for name, folder in self.sites.items():
                self._start(name, "client.cli", "start", str(folder.root))
            for name in self.sites:
                self._wait(name, partial(_says, self._out(name), b"connected to"))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop every process."""
        self.stop()

    def run(self, plan: Path, name: str, patience: float = 600.0) -> RunFolder:
        """Carry out a plan and return its run's folder.

        Raises:
            RuntimeError: if the run does not finish.
        """
        command = self._command("server.cli", "run", str(plan), "--name", name, "--yes")
        done = subprocess.run(
            command,
            env={**os.environ, CENTRE: str(self.centre.root)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
            timeout=patience,
        )
        run = RunFolder(self.centre.run(name))
        if done.returncode or run.outcome() != "finished":
            raise RuntimeError(f"the run did not finish:\n{done.stdout}{done.stderr}")
        return run

    def processor(self, name: str) -> float:
        """Return the seconds of a processor that one of the centre's processes has used."""
        facts = json.loads((self.centre.logs / "processes.json").read_bytes())
        times = psutil.Process(int(facts[name]["pid"])).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        """Stop sites and centre, kindly first."""
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes.values()):
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self._stack.close()

    def _start(self, name: str, module: str, *arguments: str) -> None:
        out = self._stack.enter_context(self._out(name).open("ab"))
        self._processes[name] = subprocess.Popen(
            self._command(module, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=self.root,
        )

    def _wait(self, what: str, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START
        while not there():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() >= deadline:
                words = "".join(self._out(name).read_text() for name in self._processes)
                raise RuntimeError(f"{', '.join(dead) or what} did not come up:\n{words}")
            time.sleep(0.1)

    def _command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", module, *arguments]

    def _out(self, name: str) -> Path:
        return self.root / f"{name}.out"


def _joined(
    centre: CentreFolder, root: Path, name: str, studies: int, seed: int, size: int, bases: Sequence[str]
) -> SiteFolder:
    """Make a site of phantoms that has joined the centre and approved its bundle."""
    toml = make_site(root / name, name, studies=studies, seed=seed, size=size)
    toml.write_text(toml.read_text() + "\n[device]\nthreads = 1\n")
    invitation = invite_site(centre, name, root / f"{name}.invitation").path
    request = prepare_site(invitation, root / name).request
    welcome = admit_site(centre, request, root / f"{name}.welcome").path
    folder = SiteFolder.of(root / name)
    accept_welcome(welcome, folder)
    policy = folder.policy.read_text()
    folder.policy.write_text(policy.replace("\nmax_rank = 64\n", f"\nmax_rank = {MOST_RANK}\n"))
    approve(folder, folder.bundle.read_bytes(), bases, "benchmark")
    return folder


def _says(file: Path, words: bytes) -> bool:
    return words in file.read_bytes()


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
