"""A whole site's processes against the centre's own SuperLink over TLS."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from client.gate.approval import approve
from client.gate.audit import read_audit, verify_audit
from client.join.joining import accept_welcome, prepare_site
from client.node.start import check_ready, running_pid, stop_site
from client.node.status import site_status, status_lines
from client.place import SiteFolder
from common.code import code_digest
from common.config import RunConfig
from common.errors import ApprovalError, CredentialError
from common.model.build import build_model
from common.protocol import Answer, Instruction
from common.signing import load_signing_key
from server.centre.bundle import build_bundle
from server.centre.folder import CentreFolder
from server.centre.provision import admit_site, init_centre, invite_site
from server.centre.registry import Registry
from simulations.make_site import make_site
from tests.ports import free_port

CONFIG = RunConfig.build(
    {
        "data": {"findings": ("effusion",), "image_size": 32},
        "model": {"backbone": "timm:test_vit"},
        "train": {"batch_size": 8, "steps": 40},
        "rounds": {"count": 2, "sites": 2, "quorum": 2},
    }
)
START = "import sys; from pathlib import Path; from client.place import SiteFolder; " + (
    "from client.node.start import run_site; "
    "sys.exit(run_site(SiteFolder.of(Path(sys.argv[1])), lambda line: print(line, flush=True)))"
)


def wait_for(condition: Callable[[], Any], log: Path, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found


@dataclass
class Deployed:
    centre: CentreFolder
    folder: SiteFolder
    link: Any
    log: Path
    process: subprocess.Popen[bytes] | None = None
    base: str = ""
    adapter: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sequence: int = 0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(self.folder.root)],
                stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def ask(self, stage: str, **changes: Any) -> str:
        self.sequence += 1
        told = Instruction(
            stage=stage,  # type: ignore[arg-type]
            plan_digest=CONFIG.plan_digest(self.base, code_digest()),
            code_digest=code_digest(),
            base_digest=self.base,
            run=str(self.link.run),
            site="north",
            sequence=self.sequence,
        )
        return str(self.link.ask(self.link.signed(dataclasses.replace(told, **changes))))

    def answer(self, asked: str, seconds: float = 90) -> Answer:
        (answer,) = wait_for(lambda: self.link.answers(asked), self.log, seconds)
        return answer

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def pid(self, name: str) -> int:
        facts = json.loads((self.folder.logs / "processes.json").read_text())
        return int(facts[name]["pid"])


def provision(root: Path) -> tuple[CentreFolder, SiteFolder]:
    """A centre and a site that has joined it, approved nothing yet."""
    listen, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    centre = init_centre(root / "centre", "hub", listen, listen, admin, ["127.0.0.1"])
    make_site(root / "north", "north", studies=60, seed=3, size=32)
    invitation = invite_site(centre, "north", root / "north.invitation").path
    request = prepare_site(invitation, root / "north").request
    welcome = admit_site(centre, request, root / "north.welcome").path
    folder = SiteFolder.of(root / "north")
    accept_welcome(welcome, folder)
    return centre, folder


def test_a_site_that_may_not_start_says_why(tmp_path: Path) -> None:
    make_site(tmp_path / "new", "new", studies=5, seed=3, size=32)
    with pytest.raises(CredentialError, match="has not joined a centre"):
        check_ready(SiteFolder.of(tmp_path / "new"))
    _, folder = provision(tmp_path)
    with pytest.raises(ApprovalError, match="nobody at this site has approved"):
        check_ready(folder)
    text = folder.settings.read_text()
    folder.settings.write_text(text.replace('"north"', '"south"'))
    with pytest.raises(CredentialError, match="name different sites"):
        check_ready(folder)
    folder.settings.write_text(text)
    approve(folder, folder.bundle.read_bytes(), ["b" * 64], "IT")
    assert check_ready(folder)[0].name == "north"
    status = site_status(folder)
    assert status["running"] is None and status["centre"]["name"] == "hub"
    assert "running:   no; fedcxr-site start" in status_lines(status)
    assert stop_site(folder) is False


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, new_link: Callable[..., Any]) -> Iterator[Deployed]:
    root = tmp_path_factory.mktemp("deployment")
    centre, folder = provision(root)
    model = build_model(CONFIG)
    approve(folder, folder.bundle.read_bytes(), [model.base_digest], "IT")
    log = root / "centre.log"
    with log.open("ab") as stream:
        superlink = subprocess.Popen(
            [sys.executable, "-m", "server.centre.superlink", str(centre.root)], stdout=stream, stderr=stream
        )
    try:
        registry = Registry(centre.registry)
        node = wait_for(lambda: registry.site("north").node_id, log)
        registry.close()
        factory = LinkStateFactory(
            str(centre.database), NoOpFederationManager(), ObjectStoreFactory(str(centre.database))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of alembic, which Flower calls
            state: LinkState = factory.state()
        link = new_link(state, node, build_bundle(), CONFIG, load_signing_key(centre.key("centre.key")))
        made = Deployed(centre, folder, link, root / "site.log")
        made.base, made.adapter = model.base_digest, model.schema.pack(model.initial_state().tensors)
        made.start()
        yield made
        if made.process is not None and made.process.poll() is None:
            made.process.terminate()
            made.process.wait(40)
    finally:
        superlink.terminate()
        superlink.wait(30)


@pytest.mark.e2e
def test_a_site_answers_recovers_and_stops(deployed: Deployed) -> None:
    d = deployed
    wait_for(lambda: d.said("connected to hub"), d.log)
    enrolled = d.answer(d.ask("enrol"))
    assert enrolled.code == "" and enrolled.metrics["owned"] == [1]

    # A second one is refused while the first goes on.
    second = subprocess.run([sys.executable, "-c", START, str(d.folder.root)], capture_output=True, text=True)
    assert "runs already" in second.stderr and second.returncode != 0

    # The node dies while the worker trains: it comes back by itself and the instruction is answered once.
    asked = d.ask("train", round=1, adapter=d.adapter)
    wait_for(lambda: d.said("asked for train, round 1"), d.log)
    os.kill(d.pid("supernode"), signal.SIGKILL)
    answer = d.answer(asked)
    assert answer.code == "" and answer.update is not None and answer.update.shape == d.adapter.shape
    assert d.said("which was not finished") or d.said("(killed by SIGKILL)")

    # The centre asks the same again, as a resumed run does: the same bytes.
    again = d.answer(d.ask("train", round=1, adapter=d.adapter))
    assert again.update is not None and again.update.tobytes() == answer.update.tobytes()

    refused = d.answer(d.ask("evaluate", arm="federated", base_digest="c" * 64))
    assert refused == Answer("north", code="E_DIGEST")

    # The status is written once the answer is on its way, not before.
    wait_for(lambda: site_status(d.folder)["last-answer"].get("code") == "E_DIGEST", d.log)
    status = site_status(d.folder)
    assert status["connected"] and status["running"] == running_pid(d.folder) == d.process.pid
    assert status["last-answer"]["code"] == "E_DIGEST" and status["waiting"] == []
    assert [update["round"] for update in status["kept-updates"]] == [1]
    assert status["processes"]["supernode"]["restarts"] == 1
    assert any(line.startswith("supernode: process") for line in status_lines(status))

    children = psutil.Process(d.process.pid).children(recursive=True)
    assert stop_site(d.folder)
    assert d.process.wait(20) == 0
    _, left = psutil.wait_procs(children, timeout=10)  # what the SuperNode started ends after it
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]
    assert verify_audit(d.folder).problems == []
    traffic = [line for line in read_audit(d.folder) if line["kind"] == "traffic"]
    assert traffic[-1]["routes"]["DeactivateNode"]["requests"] == 1
