"""Our seam between Flower's connection and the worker: everything that enters or leaves a site passes here.

In: an instruction is journalled whole, confirmed, checked by the gate, and handed to the worker. Out:
what the worker answers is checked by the egress gate and written anew from what was checked,
journalled, audited, and only then sent. Flower's own SuperNode would start a process of the run's
ClientApp for each message, seconds of imports; here the worker that the hospital installed is asked,
and no code that came over the network runs at all.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)
from flwr.supercore.run import Run, RunNotRunningException

from client.gate.egress import CODES, answer_bytes
from client.node.fleet import Released, Traffic
from client.node.gates import Gate
from client.node.outbox import Entry, Outbox
from client.node.pace import Pace
from client.node.parcel import for_each, named, read_instruction, run_settings, write_reply
from client.node.standing import Standing, in_words
from common.errors import AuditError, FedcxrError, SchemaError, WorkerError
from common.protocol import Answer, Instruction

STARTS = 8
"""How often an instruction is begun where this process dies over it."""
TRIES = 20
"""How often the centre is offered an answer, or asked for the rest of an instruction."""
MIN_FREE = 200_000_000
"""Bytes that must be free before another instruction is taken; the centre keeps it until then."""
_log = logging.getLogger(__name__)

Work = Callable[[Instruction, Mapping[str, Any], float], Answer]
"""Instruction, the run's settings, seconds the answer may take -> the worker's answer."""


@dataclass(frozen=True)
class Connection:
    """The callbacks of Flower's ``http_request_response``, in its order."""

    node_id: int
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    get_run: Callable[[int], Run]
    get_fab: Callable[[str, int], Fab]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


@dataclass(frozen=True)
class _Known:
    """What the centre says of a run, asked once and read once."""

    run: Run
    fab: Fab

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.fab.content).hexdigest()

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return run_settings(self.run, self.fab)


class Seam:
    """Stands between Flower's connection and the worker."""

    def __init__(
        self,
        site: str,
        inner: Connection,
        outbox: Outbox,
        gate: Gate,
        standing: Standing,
        released: Released,
        traffic: Traffic,
        work: Work,
        pace: Pace | None = None,
    ) -> None:
        self.site = site
        self.inner = inner
        self.pace = pace or Pace()
        self._outbox = outbox
        self._gate = gate
        self._standing = standing
        self._released = released
        self._traffic = traffic
        self._work = work
        self._runs: dict[int, _Known] = {}
        self._entered: set[str] = set()
        self._begun: set[str] = set()
        self._read: tuple[str, Instruction] | None = None
        self._full = False
        self._took = 0.0

    def follow(self) -> None:
        """Ask the centre for instructions and answer them, until an error ends it."""
        while True:
            if not self.turn():
                time.sleep(self.pace.wait(self._took))

    def turn(self) -> bool:
        """Go on with what is in the journal, then ask for more; returns whether something came."""
        try:
            self._traffic.note()
            for entry in self._outbox.entries():
                self._go_on(entry)
            taken = self._take()
            if taken is not None:
                self._go_on(taken)
            return taken is not None
        except RunNotRunningException:
            return False
        except OSError as error:
            self._note_disk(error)
            return False

    # ------------------------------------------------------------------ one instruction

    def _take(self) -> Entry | None:
        """Take one instruction from the centre into the journal, if there is one."""
        if self._disk_is_full():
            return None
        began = time.monotonic()
        got = self.inner.receive()
        self._took = time.monotonic() - began
        if got is None:
            return None
        self.pace.moved()
        message, tree = got
        if self._outbox.find(message.metadata.message_id) is not None:
            return None  # given once more because it is not confirmed yet; its turn has just been
        try:
            return self._outbox.take(message_to_proto(message), tree)
        except SchemaError as error:
            _log.error("a message was dropped: %s", error)
            return None

    def _go_on(self, entry: Entry) -> None:
        """Take an instruction as far as it goes: to its answer at the centre, or put off."""
        try:
            if entry.expired() and entry.state != "arriving":
                self._standing.say(f"too late for {_what(entry)}: the centre no longer waits for it")
                self._drop(entry)
                return
            if entry.state == "arriving" and not self._pull(entry):
                return
            if entry.state == "here":
                self._check(entry)
            if entry.state == "accepted":
                self._answer(entry, self._worked_on(entry))
            elif entry.state in ("answered", "audited"):
                self._deliver(entry)
        except RunNotRunningException:
            self._over(entry)
        except AuditError:
            raise  # nothing leaves without the audit, not even a code
        except FedcxrError as error:
            _log.warning("refused: %s", error)
            self._answer(entry, Answer(self.site, code=error.code))
        except (ObjectPullError, ObjectPushError, httpx.HTTPStatusError) as error:
            self._put_off(entry, error)

    def _pull(self, entry: Entry) -> bool:
        """Bring every object of an instruction into the journal and tell the centre so.

        Returns False where some are still on their way from the ServerApp: they are asked for again.
        """
        run_id = entry.request.metadata.run_id
        missing = [t.object_id for t in iterate_object_tree(entry.tree) if not entry.has(t.object_id)]

        def pull(object_id: str) -> None:
            entry.put(object_id, self.inner.pull_object(run_id, object_id))

        try:
            for_each(list(dict.fromkeys(missing)), pull)
        except ObjectUnavailableError:
            return False
        entry.note(state="here")
        self.inner.confirm(run_id, entry.message_id)
        return True

    def _check(self, entry: Entry) -> None:
        """Ask the gate; a refusal is answered at once and the worker never sees it."""
        run_id = entry.request.metadata.run_id
        try:
            instruction = self._instruction(entry)
        except SchemaError as error:
            self._gate.refuse(run_id, error)
            raise
        about = named(instruction, run_id)
        try:
            self._enter(entry, instruction, resumed=False)
        except FedcxrError:
            entry.note(about=about)  # for the words of its refusal
            raise
        entry.note(about=about, state="accepted", attempts=1)
        self._begun.add(entry.message_id)
        self._standing.asked(about)

    def _enter(self, entry: Entry, instruction: Instruction, resumed: bool) -> None:
        run_id = entry.request.metadata.run_id
        known = self._run(run_id)
        self._gate.enter(instruction, run_id, known.sha256, known.settings, resumed)
        self._entered.add(entry.message_id)

    def _worked_on(self, entry: Entry) -> Answer:
        """Return what the worker answers to an accepted instruction, however long it takes.

        Raises:
            WorkerError: if this process has died over it too often.
        """
        instruction = self._instruction(entry)
        if entry.message_id not in self._entered:
            self._enter(entry, instruction, resumed=True)
            self._standing.say(f"going on with {_what(entry)}, which was not finished")
        if entry.message_id not in self._begun:
            starts = int(entry.facts["attempts"])
            if starts >= STARTS:
                raise WorkerError("an instruction made this process crash too often")
            entry.note(attempts=starts + 1)
            self._begun.add(entry.message_id)
        return self._work(instruction, self._config_of(entry), entry.patience())

    # ------------------------------------------------------------------ one answer

    def _answer(self, entry: Entry, answer: Answer) -> None:
        """Check an answer, write it anew, keep it, and send it."""
        try:
            self._write(entry, self._checked(entry, answer))
            self._deliver(entry)
        except RunNotRunningException:
            self._over(entry)
        except (ObjectPushError, httpx.HTTPStatusError) as error:
            self._put_off(entry, error)

    def _checked(self, entry: Entry, answer: Answer) -> Answer:
        """Return what of an answer may leave, else a code in its place."""
        bare = answer.site == self.site and answer.update is None and not answer.metrics
        if bare and answer.code in CODES:
            return answer
        try:
            allowed = self._gate.leave(answer, self._instruction(entry), self._config_of(entry))
            self._gate.count(entry.request.metadata.run_id, answer_bytes(allowed))
        except AuditError:
            raise
        except FedcxrError as error:
            _log.warning("an answer may not leave: %s", error)
            return Answer(self.site, code=error.code)
        return allowed

    def _write(self, entry: Entry, answer: Answer) -> None:
        """Keep a reply made from what was checked."""
        message, tree, objects = write_reply(entry, answer)
        size = sum(map(len, objects.values()))
        entry.note(code=answer.code, size=size, records=self._gate.describe(answer))
        entry.answer(message, tree, objects)

    def _deliver(self, entry: Entry) -> None:
        """Audit an answer and send it; sent twice, the centre takes it once."""
        facts, request = entry.facts, entry.reply
        message, tree = request.messages_list[0], request.message_object_trees[0]
        if entry.state == "answered":
            self._gate.record(
                "answer",
                **facts["about"],
                message=entry.message_id,
                code=facts["code"],
                bytes=facts["size"],
                records=facts["records"],
                objects=[part.object_id for part in iterate_object_tree(tree)],
            )
            entry.note(state="audited")
        self._released.release(message, tree)
        try:
            run_id = message.metadata.run_id
            wanted, session = self.inner.send(message_from_proto(message), tree, 0.0)
            replies = entry.replies()

            def push(object_id: str) -> None:
                self.inner.push_object(run_id, session, object_id, replies[object_id])

            for_each(sorted(wanted), push)
        finally:
            self._released.withdraw()
            self._traffic.note(now=True)
        self._standing.answered(facts["about"], facts["code"], facts["size"])
        self.pace.moved()
        self._drop(entry)

    def _over(self, entry: Entry) -> None:
        """Drop what the centre refuses: its run is over, or it has done without this answer."""
        self._standing.say(f"the centre no longer wants {_what(entry)}: it is dropped")
        self._drop(entry)

    def _put_off(self, entry: Entry, error: Exception) -> None:
        """Leave an instruction or answer in the journal for the next time, but not for ever."""
        tries = int(entry.facts.get("tries", 0)) + 1
        _log.warning("%s is put off (try %d): %s", entry.message_id[:12], tries, error)
        self.pace.hold()
        if tries >= TRIES:
            self._standing.say(f"{_what(entry)} is given up: the centre does not take it")
            self._drop(entry)
            return
        entry.note(tries=tries)

    # ------------------------------------------------------------------ shared

    def _instruction(self, entry: Entry) -> Instruction:
        """Return what is asked; the instruction at hand is read once, however large its adapter is."""
        if self._read is None or self._read[0] != entry.message_id:
            self._read = (entry.message_id, read_instruction(entry))
        return self._read[1]

    def _run(self, run_id: int) -> _Known:
        if run_id not in self._runs:
            run = self.inner.get_run(run_id)
            self._runs = {run_id: _Known(run, self.inner.get_fab(run.fab_hash, run_id))}
        return self._runs[run_id]

    def _config_of(self, entry: Entry) -> Mapping[str, Any]:
        return self._run(entry.request.metadata.run_id).settings

    def _drop(self, entry: Entry) -> None:
        entry.drop()
        self._read = None
        self._entered.discard(entry.message_id)
        self._begun.discard(entry.message_id)

    def _disk_is_full(self) -> bool:
        full = shutil.disk_usage(self._outbox.folder).free < MIN_FREE
        if full and not self._full:
            self._standing.say("the disk is nearly full; no instruction is taken until there is room")
        self._full = full
        return full

    def _note_disk(self, error: OSError) -> None:
        """Say that the journal cannot be written; what is in it is taken up again."""
        self._standing.say(f"the journal cannot be written: {error.strerror}; this is tried again")
        self.pace.hold()


def _what(entry: Entry) -> str:
    return in_words(entry.facts.get("about") or {})
