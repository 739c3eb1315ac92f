"""A deployed site's folder, a centre that signs instructions for it, and a real worker's honest answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.gate.approval import Approval, approve
from client.gate.audit import Audit
from client.gate.incoming import Incoming
from client.gate.policy import policy_text
from client.place import SiteFolder
from client.site import SiteConfig, load_site
from client.worker import ModelPool, SiteWorker
from common.code import code_digest
from common.config import RunConfig, Scalar
from common.protocol import Instruction
from common.signing import create_signing_key, public_text, sign
from simulations.make_site import make_site
from tests.client.gate.told import ASKED, PLAN, Told

BASE = "b" * 64
RUN = 4711
FAB = b"what the centre sends"
SITE = 'name = "north"\n[data]\ntable = "studies.csv"\n[labels]\neffusion = "Effusion"\nedema = "Edema"\n'


@dataclass(frozen=True)
class Centre:
    """A centre's key, as a site's welcome tells of it."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def centre_key(self) -> str:
        return public_text(self.key)

    def instruct(self, config: RunConfig, **changes: Any) -> Instruction:
        """Sign an instruction that a site should follow, but for the changes."""
        told = Instruction(
            stage="train",
            plan_digest=config.plan_digest(BASE, code_digest()),
            code_digest=code_digest(),
            base_digest=BASE,
            round=1,
            adapter=np.arange(6, dtype=np.float32),
            run=str(RUN),
            site="north",
            sequence=1,
        )
        told = dataclasses.replace(told, **changes)
        return dataclasses.replace(told, signature=sign(self.key, told.signed_bytes()))


@dataclass
class Gate:
    """A site's folder and what stands in it."""

    folder: SiteFolder
    site: SiteConfig
    centre: Centre
    audit: Audit
    incoming: Incoming

    def check(self, instruction: Instruction, config: RunConfig, **changes: Any) -> RunConfig:
        given: Mapping[str, Scalar] = changes.pop("run_config", config.to_flat())
        fab = changes.pop("fab", hashlib.sha256(FAB).hexdigest())
        return self.incoming.check(instruction, changes.pop("run", RUN), fab, given, **changes)

    def restarted(self) -> Gate:
        """The same site with new processes."""
        audit = Audit(self.folder)
        return Gate(
            self.folder, self.site, self.centre, audit, Incoming(self.folder, self.site, self.centre, audit)
        )


@pytest.fixture
def site_folder(tmp_path: Path) -> SiteFolder:
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "policy.toml").write_text(policy_text())
    folder = SiteFolder.of(tmp_path)
    create_signing_key(folder.signing_key)
    return folder


@pytest.fixture
def plan() -> RunConfig:
    """A plan that the default policy allows."""
    return RunConfig.build({"rounds": {"quorum": 3}, "data": {"findings": ("effusion", "edema")}})


@pytest.fixture
def approved(site_folder: SiteFolder) -> Approval:
    return approve(site_folder, FAB, [BASE], "Dr. Who")


@pytest.fixture
def gate(site_folder: SiteFolder, approved: Approval) -> Gate:
    audit, centre, site = Audit(site_folder), Centre(), load_site(site_folder.settings)
    return Gate(site_folder, site, centre, audit, Incoming(site_folder, site, centre, audit))


@pytest.fixture
def fab() -> bytes:
    return FAB


@pytest.fixture
def base() -> str:
    return BASE


@pytest.fixture
def run_id() -> int:
    return RUN


@pytest.fixture
def rewrite() -> Callable[[SiteFolder, str, str], None]:
    """Change policy.toml: one spelling for another that must be there."""

    def change(folder: SiteFolder, old: str, new: str) -> None:
        text = folder.policy.read_text()
        assert old in text
        folder.policy.write_text(text.replace(old, new))

    return change


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    """A phantom site that annotates two findings often, one too rarely to be told, and one not at all."""
    findings = ("effusion", "cardiomegaly", "pneumothorax")
    folder = tmp_path_factory.mktemp("north")
    toml = make_site(folder, "north", 260, 3, size=32, prevalence=0.5, findings=findings)
    rows = (folder / "studies.csv").read_text().splitlines()
    at = rows[0].split(",").index("pneumothorax")
    for i in range(1, len(rows)):
        cells = rows[i].split(",")
        rows[i] = ",".join([*cells[:at], "1" if i % 30 == 0 else "0", *cells[at + 1 :]])
    (folder / "studies.csv").write_text("\n".join(rows) + "\n")
    (folder / "images" / "damaged.png").write_bytes(b"not a picture")
    with (folder / "studies.csv").open("a") as table:
        table.write(rows[1].replace(rows[1].split(",")[0], "images/damaged.png") + "\n")
    return load_site(toml)


@pytest.fixture(scope="session")
def ask(site: SiteConfig) -> Callable[..., Told]:
    """Ask a real worker, as the node does."""
    pool = ModelPool()
    worker = SiteWorker(site, pool)

    def answer(name: str, **sections: Mapping[str, Any]) -> Told:
        config = RunConfig.build({k: {**PLAN.get(k, {}), **sections.get(k, {})} for k in {*PLAN, *sections}})
        model = pool.get(config, torch.device("cpu"))
        digests = (config.plan_digest(model.base_digest, code_digest()), code_digest(), model.base_digest)
        asked: dict[str, Any] = dict(ASKED[name])
        whole = asked["stage"] == "local" and config.evaluate.matrix
        if whole or asked["stage"] in ("train", "calibrate") or asked.get("arm") == "federated":
            asked["adapter"] = model.schema.pack(model.initial_state().tensors)
        instruction = Instruction(
            plan_digest=digests[0], code_digest=digests[1], base_digest=digests[2], **asked
        )
        return Told(worker.handle(instruction, config.to_flat()), instruction, config, site)

    return answer


@pytest.fixture(scope="session")
def honest(ask: Callable[..., Told]) -> dict[str, Told]:
    return {name: ask(name) for name in ASKED}
