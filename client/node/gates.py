"""The site's gate as the seam uses it: policy, approval, signatures, egress and audit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from client.gate.approval import current_approval
from client.gate.audit import Audit
from client.gate.egress import describe, release
from client.gate.incoming import Centre, Incoming
from client.gate.policy import load_policy
from client.place import SiteFolder
from client.site import SiteConfig
from common.config import RunConfig
from common.errors import FedcxrError
from common.protocol import Answer, Instruction


class Gate(Protocol):
    """What decides over instructions and answers."""

    def enter(
        self, instruction: Instruction, run: int, fab_sha256: str, config: Mapping[str, Any], resumed: bool
    ) -> None:
        """Let an instruction in, once, or raise; ``resumed``: it was let in before this process began."""

    def refuse(self, run: int, error: FedcxrError) -> None:
        """Record that something was refused which is no instruction."""

    def leave(self, answer: Answer, instruction: Instruction, config: Mapping[str, Any]) -> Answer:
        """Return what of an answer may leave, or raise."""

    def count(self, run: int, size: int) -> None:
        """Count the bytes of an answer before it leaves, or raise if they are too many."""

    def record(self, kind: str, **facts: Any) -> None:
        """Write a line of the audit, or raise."""

    def describe(self, answer: Answer) -> dict[str, Any]:
        """Say what an answer holds."""


class SiteGate:
    """Everything a site checks, with one audit."""

    def __init__(self, folder: SiteFolder, site: SiteConfig, welcome: Centre) -> None:
        self._folder = folder
        self._site = site
        self._audit = Audit(folder)
        self._incoming = Incoming(folder, site, welcome, self._audit)

    def enter(
        self,
        instruction: Instruction,
        run: int,
        fab_sha256: str,
        config: Mapping[str, Any],
        resumed: bool = False,
    ) -> None:
        """Let an instruction in, once."""
        self._incoming.check(instruction, run, fab_sha256, config, resumed=resumed)

    def refuse(self, run: int, error: FedcxrError) -> None:
        """Record that something was refused which is no instruction."""
        self._incoming.refuse(run, error)

    def leave(self, answer: Answer, instruction: Instruction, config: Mapping[str, Any]) -> Answer:
        """Return what of an answer may leave, while the approval stands."""
        current_approval(self._folder)
        policy = load_policy(self._folder.policy)
        return release(answer, instruction, RunConfig.from_flat(config), policy, self._site)

    def count(self, run: int, size: int) -> None:
        """Count the bytes of an answer before it leaves."""
        self._incoming.count_sent(run, size)

    def record(self, kind: str, **facts: Any) -> None:
        """Write a line of the audit."""
        self._audit.append(kind, **facts)

    def describe(self, answer: Answer) -> dict[str, Any]:
        """Say what an answer holds."""
        return dict(describe(answer))
