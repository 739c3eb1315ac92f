"""A run's federation: which sites enrolled, what is asked of all of them, and where it is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.adapter import AdapterSchema, AdapterState
from common.code import code_digest
from common.config import RunConfig
from common.errors import QuorumError
from common.protocol import Answer, Instruction, Split, Stage
from server.exchange import Exchange, Reply, ask
from server.ledger import Ledger


@dataclass(frozen=True)
class EnrolledSite:
    """What a site said of itself when the run began."""

    name: str
    node: int
    train_studies: int
    validation_studies: int
    owned: tuple[bool, ...]


@dataclass
class Federation:
    """The sites of a run and the way to reach them."""

    grid: Grid
    config: RunConfig
    plan_digest: str
    base_digest: str
    schema: AdapterSchema
    ledger: Ledger
    sites: dict[str, EnrolledSite] = field(default_factory=dict)

    def instruction(
        self,
        stage: Stage,
        round_number: int = 0,
        state: AdapterState | None = None,
        arm: str = "",
        split: Split = "test",
    ) -> Instruction:
        """Build an instruction that carries this run's digests."""
        return Instruction(
            stage=stage,
            plan_digest=self.plan_digest,
            code_digest=code_digest(),
            base_digest=self.base_digest,
            round=round_number,
            adapter=None if state is None else self.schema.pack(state.tensors),
            residual={} if state is None else state.residual_arrays(),
            arm=arm,
            split=split,
        )

    def ask(
        self, names: list[str], instruction: Instruction, on_reply: Callable[[str, Reply], None]
    ) -> tuple[dict[str, Reply], list[str], Exchange]:
        """Ask some sites by name; returns replies by site, the missing sites, and the bytes."""
        by_node = {self.sites[name].node: name for name in names}
        exchange = ask(
            self.grid,
            by_node,
            instruction,
            self.config.rounds.deadline,
            lambda reply: on_reply(by_node[reply.node], reply),
        )
        replies = {by_node[node]: reply for node, reply in exchange.replies.items()}
        return replies, sorted(by_node[n] for n in exchange.missing), exchange

    def enrol(self) -> None:
        """Learn which sites there are and what they have; a site that cannot take part is named.

        Raises:
            QuorumError: if fewer than ``rounds.quorum`` sites can take part.
        """
        nodes = self._wait_for_nodes()
        exchange = ask(self.grid, nodes, self.instruction("enrol"), self.config.rounds.deadline)
        for node in sorted(exchange.replies):
            reply = exchange.replies[node]
            if reply.answer is None or reply.code:
                name = reply.answer.site if reply.answer else f"node {node}"
                text = f"{name} cannot take part: {reply.code} (the reason is in its own log)"
                self.ledger.event("refused", text, site=name, code=reply.code)
            elif reply.answer.site in self.sites:
                name = reply.answer.site
                self.ledger.event("refused", f"a second node calls itself {name}", site=name)
            else:
                self._admit(node, reply.answer)
        for node in exchange.missing:
            self.ledger.event("refused", f"node {node} did not answer", code="E_DEADLINE")
        if len(self.sites) < self.config.rounds.quorum:
            raise QuorumError(
                "too few sites can take part",
                found=f"{len(self.sites)} of {len(nodes)} nodes, quorum {self.config.rounds.quorum}",
                fix="see each site's own log for its reason, or lower rounds.quorum",
            )
        self.sites = dict(sorted(self.sites.items()))

    def _admit(self, node: int, answer: Answer) -> None:
        facts: dict[str, Any] = dict(answer.metrics)
        owned = tuple(bool(v) for v in facts.pop("owned", []))
        site = EnrolledSite(
            answer.site, node, int(facts["train-studies"]), int(facts["validation-studies"]), owned
        )
        self.sites[site.name] = site
        findings = [f for f, own in zip(self.config.data.findings, owned, strict=True) if own]
        self.ledger.put_site(site.name, {**facts, "findings": findings})
        set_aside = {
            key.removeprefix("quarantined."): value
            for key, value in facts.items()
            if key.startswith("quarantined.")
        }
        aside = "".join(f", {count} set aside ({why})" for why, count in set_aside.items())
        text = (
            f"{site.name}: {facts['train-studies']} training, {facts['validation-studies']} "
            f"validation, {facts['test-studies']} test studies of {facts['patients']} patients"
            f"{aside}; annotates {len(findings)} of {len(owned)} findings"
        )
        self.ledger.event("enrolled", text, site=site.name, **facts)

    def _wait_for_nodes(self) -> list[int]:
        wanted = max(self.config.rounds.sites, self.config.rounds.quorum)
        end = time.monotonic() + self.config.rounds.deadline
        nodes = list(self.grid.get_node_ids())
        while len(nodes) < wanted and time.monotonic() < end:
            time.sleep(0.1)
            nodes = list(self.grid.get_node_ids())
        return nodes

    def cohort(self, generator: np.random.Generator) -> list[str]:
        """Draw the sites asked this round, in name order."""
        names, size = list(self.sites), self.config.rounds.cohort
        if not size or size >= len(names):
            return names
        drawn: NDArray[np.int64] = generator.choice(len(names), size=size, replace=False)
        return [names[i] for i in sorted(drawn.tolist())]
