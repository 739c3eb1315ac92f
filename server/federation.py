"""A run's federation: which sites enrolled, what is asked of all of them, and where it is written."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.adapter import AdapterSchema, AdapterState
from common.code import code_digest
from common.config import RunConfig
from common.errors import CheckpointError, QuorumError, SchemaError, SiteError
from common.protocol import LABEL_COUNTS, ROUND_STAGES, Answer, Instruction, Split, Stage, Value
from server.downlink import Addressed, Downlink, check_downlink
from server.exchange import Exchange, Reply, Talk, ask
from server.facts.reasons import reason_of, words_of
from server.ledger import Ledger
from server.line import Line

JOINING = 30.0
"""Seconds a round waits for a site that has just come back to enrol; later it joins the next one."""
_SAY_AFTER = 5.0
"""Seconds after which it is said whom the enrolment waits for."""
_COUNTS = ("train-studies", "validation-studies", "test-studies", "patients")
_PRETRAIN = "pretrain-studies"
_SET_ASIDE = re.compile(r"quarantined\.[A-Za-z0-9_-]{1,40}")
_LINEAGE = "lineage"
_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class EnrolledSite:
    """What a site said of itself when the run began."""

    name: str
    node: int
    train_studies: int
    validation_studies: int
    owned: tuple[bool, ...]
    pretrain_studies: int = 0
    """0 also where the plan does not pretrain."""


@dataclass
class Federation:
    """The sites of a run and the way to reach them."""

    line: Line
    config: RunConfig
    plan_digest: str
    base_digest: str
    schema: AdapterSchema
    ledger: Ledger
    sites: dict[str, EnrolledSite] = field(default_factory=dict)
    class_weights: NDArray[np.float64] | None = None
    """``[F]``, from all sites' counts; None where the plan asks for none."""
    committed: int = 0
    """The newest round on disk."""
    lineage: str = ""
    """Names this run to its sites, whatever number Flower gives it when it is resumed."""
    _refused: set[int] = field(default_factory=set)
    """Nodes that cannot take part in this run: they are not asked to enrol again."""
    _joining: Talk | None = None
    _silent: set[str] = field(default_factory=set)
    """Sites that missed the last deadline they were asked under."""
    _downlink: Downlink = field(init=False)

    def __post_init__(self) -> None:
        self.lineage = self.lineage or self.ledger.get(_LINEAGE) or secrets.token_hex(16)
        self.ledger.put(_LINEAGE, self.lineage)
        check_downlink(self.config)
        self._downlink = Downlink(self.config.wire)

    def stepped(self, before: AdapterState, after: AdapterState, change: NDArray[Any] | None) -> None:
        """Take note of a round's change: sites that hold what was before it are sent no more than that."""
        if change is not None:
            first, second = (self.schema.pack(state.tensors) for state in (before, after))
            self._downlink.stepped(first, second, change)

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
            class_weights=self.class_weights if stage in ("train", "local") else None,
            lineage=self.lineage,
            committed=self.committed,
        )

    def ask(
        self, names: list[str], instruction: Instruction, on_reply: Callable[[str, Reply], None]
    ) -> tuple[dict[str, Reply], list[str], Exchange]:
        """Ask some sites by name; returns replies by site, the missing sites, and the bytes.

        An answer that names another site than the one asked counts as E_SITE. Whom it waits for is
        told in the ledger; of a round the round does so.
        """
        by_node = {self.sites[name].node: name for name in names}
        told = instruction.stage not in ROUND_STAGES
        if told and names:
            self._say_who_is_asked(names, instruction)

        instruction, again = self._downlink.naming(instruction), []

        def receive(reply: Reply) -> None:
            name = by_node[reply.node]
            reply = _by_the_one_asked(reply, name)
            if reply.code == CheckpointError.code and self._downlink.lost(name):
                again.append(name)
                return
            if reply.answer is not None and not reply.code:
                self._downlink.answered(name, instruction)
            on_reply(name, reply)
            if told:
                facts: dict[str, Any] = {"stage": instruction.stage, "up": reply.up, "code": reply.code}
                self.ledger.event("answered", f"{name} answered", site=name, **facts)

        def send(nodes: list[int], seconds: float) -> Exchange:
            return ask(
                Addressed(self.line, lambda asked, node: self._downlink.to(by_node[node], asked)),
                nodes,
                instruction,
                seconds,
                receive,
                lambda node, code: self._lost(by_node[node], code, instruction.round),
            )

        deadline, began = self.config.rounds.deadline, time.monotonic()
        exchange = send([*by_node], deadline)
        if again:
            nodes = [self.sites[name].node for name in again]
            exchange = _both(exchange, send(nodes, max(deadline - (time.monotonic() - began), 1.0)))
        replies = {by_node[node]: reply for node, reply in exchange.replies.items()}
        missing = sorted(by_node[n] for n in exchange.missing)
        self._silent = (self._silent - replies.keys()) | {*missing}
        return replies, missing, exchange

    # ------------------------------------------------------------------ enrolment

    def enrol(self) -> None:
        """Learn which sites there are and what they have; a site that cannot take part is named.

        Waits for as many as ``rounds.sites``, at most for ``rounds.deadline``; each is asked as soon
        as it is there.

        Raises:
            QuorumError: if fewer than ``rounds.quorum`` sites can take part.
        """
        wanted = max(self.config.rounds.sites, self.config.rounds.quorum)
        talk = self._enrolment(self.config.rounds.deadline)
        began, said = time.monotonic(), False
        while not talk.over:
            for node in self.line.present():
                if node not in talk.asked:
                    talk.ask(node)
            heard = talk.listen()
            if not talk.waiting and len(talk.asked) >= wanted:
                break
            if not said and time.monotonic() - began > _SAY_AFTER and len(talk.asked) < wanted:
                self._say_whom_we_wait_for(talk, wanted)
                said = True
            if not heard:
                talk.pause()
        exchange = talk.finish()
        for node in sorted({*exchange.missing, *self.line.admitted()} - exchange.replies.keys()):
            text = f"{self._called(node)} did not answer; it can join at a later round"
            name = self.line.admitted().get(node)
            facts: dict[str, Any] = {"code": "E_DEADLINE", "reason": reason_of("E_DEADLINE")}
            self.ledger.event("refused", text, site=name, **facts)
        if len(self.sites) < self.config.rounds.quorum:
            nodes = len(self.line.admitted()) or len(talk.asked)
            raise QuorumError(
                "too few sites can take part",
                found=f"{len(self.sites)} of {nodes} sites, quorum {self.config.rounds.quorum}",
                fix="see each site's own log for its reason, or lower rounds.quorum",
            )

    def enrol_late(self) -> None:
        """Ask sites that were silent until now, or have come back as new nodes, to join the run."""
        if self.line.steady:
            return
        enrolled = {site.node for site in self.sites.values()}
        talk = self._joining
        fresh = [n for n in self.line.present() if n not in enrolled and n not in self._refused]
        if talk is None or talk.over or not talk.waiting:
            talk = self._joining = self._enrolment(self.config.rounds.deadline) if fresh else None
        if talk is None:
            return
        new = [node for node in fresh if node not in talk.asked]
        for node in new:
            talk.ask(node)
        end = time.monotonic() + (JOINING if new else 0.0)
        while talk.listen() or (talk.waiting & {*fresh} and time.monotonic() < end):
            talk.pause()

    def _enrolment(self, deadline: float) -> Talk:
        return Talk(
            self.line,
            self.instruction("enrol"),
            deadline,
            self._consider,
            lambda node, code: self._lost(self._called(node), code, None),
        )

    def _consider(self, reply: Reply) -> None:
        """Take a site into the run, or say why not."""
        expected = self.line.admitted().get(reply.node)
        name = expected or (reply.answer.site if reply.answer else f"node {reply.node}")
        code, reason = _by_the_one_asked(reply, name).code if expected else reply.code, ""
        if reply.answer is not None and not code:
            try:
                self._admit(reply.node, name, reply.answer)
                return
            except (SchemaError, SiteError) as error:
                code, reason = error.code, words_of(error)
                if isinstance(error, SiteError):
                    self.ledger.event("refused", error.problem, site=name, code=code, reason=reason)
                    self._refused.add(reply.node)
                    return
        self._refused.add(reply.node)
        text = f"{name} cannot take part: {code}, {reason or reason_of(code)}"
        text += "" if reason else " (more is in its own log)"
        if code == SiteError.code:
            text = f"{name} cannot take part: it answers under another name than it was admitted by"
        self.ledger.event("refused", text, site=name, code=code, reason=reason or reason_of(code))

    def _admit(self, node: int, name: str, answer: Answer) -> None:
        counted = (*_COUNTS, _PRETRAIN) if self.config.pretrain.rounds else _COUNTS
        weighs = self.config.train.class_weights == "federated"
        facts = _facts(answer, len(self.config.data.findings), counted, LABEL_COUNTS if weighs else ())
        known = self.sites.get(name)
        if known is not None and (self.line.steady or known.node in self.line.admitted()):
            raise SiteError(f"a second node calls itself {name}")
        owned = tuple(bool(v) for v in facts.pop("owned"))
        studies = facts["train-studies"], facts["validation-studies"]
        site = EnrolledSite(name, node, *studies, owned, facts.get(_PRETRAIN, 0))
        self.sites = dict(sorted({**self.sites, name: site}.items()))
        findings = [f for f, own in zip(self.config.data.findings, owned, strict=True) if own]
        self.ledger.put_site(name, {**facts, "findings": findings})
        set_aside = {
            key.removeprefix("quarantined."): value
            for key, value in facts.items()
            if key.startswith("quarantined.")
        }
        aside = "".join(f", {count} set aside ({why})" for why, count in set_aside.items())
        aside += f", {facts[_PRETRAIN]} images to pretrain on" if _PRETRAIN in facts else ""
        text = (
            f"{name}: {facts['train-studies']} training, {facts['validation-studies']} "
            f"validation, {facts['test-studies']} test studies of {facts['patients']} patients"
            f"{aside}; annotates {len(findings)} of {len(owned)} findings"
        )
        self.ledger.event("enrolled", text, site=name, **facts)

    def _say_whom_we_wait_for(self, talk: Talk, wanted: int) -> None:
        absent = [name for node, name in self.line.admitted().items() if node not in talk.asked]
        whom = f" ({', '.join(sorted(absent))} not connected)" if absent else ""
        text = f"waiting for {wanted - len(talk.asked)} more of {wanted} sites{whom}"
        self.ledger.event("waiting", text, sites=sorted(absent))

    def _say_who_is_asked(self, names: list[str], instruction: Instruction) -> None:
        what: str = instruction.stage
        if what == "local":
            what = "train alone"
        elif what == "evaluate":
            what = f"measure {instruction.arm} on {instruction.split} studies"
        elif what == "calibrate":
            what = "calibrate together"
        elif what == "personalise":
            what = "make the adapter their own"
        self.ledger.event(
            "asking",
            f"asking {len(names)} {'site' if len(names) == 1 else 'sites'}: {what}",
            stage=instruction.stage,
            arm=instruction.arm,
            split=instruction.split,
            cohort=names,
            deadline=self.config.rounds.deadline,
        )

    def _lost(self, name: str, code: str, round_number: int | None) -> None:
        where = f"Round {round_number}: " if round_number else ""
        text = f"{where}{name} was lost ({code}); it is asked again as soon as it is connected"
        self.ledger.event("lost", text, round=round_number or None, site=name, code=code)

    def _called(self, node: int) -> str:
        return self.line.admitted().get(node, f"node {node}")

    # ------------------------------------------------------------------ rounds

    def cohort(self, generator: np.random.Generator) -> list[str]:
        """Draw the sites asked this round, in name order.

        Raises:
            QuorumError: if no enrolled site is admitted any more.
        """
        names, size = self.names(self.config.rounds.quorum), self.config.rounds.cohort
        if not names:
            raise QuorumError("every site of this run was revoked", fix="admit sites, and begin a new run")
        if not size or size >= len(names):
            return names
        drawn: NDArray[np.int64] = generator.choice(len(names), size=size, replace=False)
        return [names[i] for i in sorted(drawn.tolist())]

    def names(self, at_least: int = 0) -> list[str]:
        """Return the enrolled sites that are still admitted, in name order.

        One that missed its last deadline and is not connected is left out, lest every round waits
        for it to the end; unless fewer than ``at_least`` would remain.
        """
        if self.line.steady:
            return list(self.sites)
        admitted = self.line.admitted()
        names = [name for name, site in self.sites.items() if site.node in admitted]
        if not self._silent & {*names}:
            return names
        present = self.line.present()
        there = [n for n in names if n not in self._silent or self.sites[n].node in present]
        return there if len(there) >= max(at_least, 1) else names


def _both(first: Exchange, second: Exchange) -> Exchange:
    """Return an exchange in which some nodes were asked twice; of those the second answer counts."""
    asked = second.replies.keys() | {*second.missing}
    replies = {node: reply for node, reply in first.replies.items() if node not in asked} | second.replies
    sent = {node: first.sent.get(node, 0) + second.sent.get(node, 0) for node in {*first.sent, *second.sent}}
    missing = (*first.missing, *second.missing)
    return Exchange(replies, missing, first.down + second.down, sent)


def _by_the_one_asked(reply: Reply, name: str) -> Reply:
    if reply.answer is None or reply.answer.site == name:
        return reply
    return dataclasses.replace(reply, answer=None, code=SiteError.code)


def _facts(
    answer: Answer,
    findings: int,
    counted: tuple[str, ...] = _COUNTS,
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return what a site enrolled with.

    Raises:
        SchemaError: if a number is missing or not one that can be, or there is more than numbers
            of studies.
    """
    facts = dict(answer.metrics)
    owned = facts.get("owned")
    counts = {key: facts.get(key) for key in counted}
    listed = ("owned", *labels)
    counts |= {key: value for key, value in facts.items() if key not in counts and key not in listed}
    sound = isinstance(owned, list) and len(owned) == findings and {*owned} <= {0, 1}
    named = all(key in counted or _SET_ASIDE.fullmatch(key) for key in counts)
    if not (sound and named and _SITE_NAME.fullmatch(answer.site) and all(map(_count, counts.values()))):
        raise SchemaError("an enrolment is not the numbers of studies that it should be")
    if labels and not _labels_of([facts.get(key) for key in labels], findings, counts["train-studies"]):
        raise SchemaError("an enrolment does not say how many training studies have each finding")
    return facts


def _labels_of(counts: list[Any], findings: int, studies: Any) -> bool:
    """Whether these are the training studies with each finding, and those without it."""
    if not all(isinstance(one, list) and len(one) == findings and all(map(_count, one)) for one in counts):
        return False
    return all(sum(both) <= studies for both in zip(*counts, strict=True))


def _count(value: Value | None) -> bool:
    return type(value) is int and value >= 0
