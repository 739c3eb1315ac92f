"""Our seam around Flower's connection: everything that enters or leaves a site passes here.

In: an instruction is journalled whole, confirmed, and checked by the gate before Flower makes a task
of it. Out: what the ClientApp hands back is read, checked by the egress gate and written anew from
what was checked, journalled, audited, and only then sent; not one byte of the ClientApp's own
message, its metadata or an exception's text leaves.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_objects
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import Run, RunNotRunningException

from client.gate.egress import CODES, answer_bytes
from client.node.fleet import Released, Traffic
from client.node.gates import Gate
from client.node.outbox import Entry, Outbox
from client.node.parcel import named, read_answer, read_instruction, run_settings, write_reply
from client.node.standing import Standing, in_words
from common.errors import AuditError, EgressError, FedcxrError, SchemaError, WorkerError
from common.protocol import Answer, Instruction

ATTEMPTS = 2
"""How often an instruction is handed to a ClientApp that crashes."""
STARTS = 8
"""How often it is handed in over all, where this process dies meanwhile too."""
LIVELY = 30.0
"""Seconds after an answer in which the next instruction is likely; it is then asked for often."""
POLL = 0.75
"""Seconds between two such requests; Flower's own are 3 s apart."""
MIN_FREE = 200_000_000
"""Bytes that must be free before another instruction is taken; the centre keeps it until then."""
_log = logging.getLogger(__name__)


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


class Seam:
    """Stands between Flower's loop and its connection."""

    def __init__(
        self,
        site: str,
        inner: Connection,
        store: ObjectStore,
        outbox: Outbox,
        gate: Gate,
        standing: Standing,
        released: Released,
        traffic: Traffic,
    ) -> None:
        self.site = site
        self.inner = inner
        self._store = store
        self._outbox = outbox
        self._gate = gate
        self._standing = standing
        self._released = released
        self._traffic = traffic
        self._runs: dict[int, tuple[Run, Fab]] = {}
        self._handed: dict[str, int] = {}
        self._full = False
        self._lively = 0.0

    def callbacks(self) -> tuple[Any, ...]:
        """Return what Flower's loop takes for its connection."""
        return (
            self.inner.node_id, self.receive, self.send, self.get_run, self.get_fab,
            self.pull_object, self.push_object, self.confirm,
        )  # fmt: skip

    # ------------------------------------------------------------------ in

    def receive(self) -> tuple[Message, ObjectTree] | None:
        """Finish what is in the journal first; then ask the centre for more."""
        try:
            self._traffic.note()
            while True:
                for entry in self._outbox.entries():
                    handed = self._go_on(entry)
                    if handed is not None:
                        return handed
                while not self._take():
                    if time.monotonic() >= self._lively:
                        return None  # and Flower's loop waits for 3 s
                    time.sleep(POLL)
        except OSError as error:
            self._note_disk(error)
            return None

    def get_run(self, run_id: int) -> Run:
        """Return what the centre says of a run, asked once."""
        return self._run(run_id)[0]

    def get_fab(self, fab_hash: str, run_id: int) -> Fab:
        """Return the app of a run, asked for once."""
        return self._run(run_id)[1]

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        """Return an object of an instruction from the journal."""
        for entry in self._outbox.entries():
            if entry.message_id in self._handed and entry.has(object_id):
                return entry.object(object_id)
        raise ObjectPullError(object_id, "it is not in the journal")

    def confirm(self, run_id: int, message_id: str) -> None:
        """Do nothing: the centre was told when the journal had it."""

    # ------------------------------------------------------------------ out

    def send(self, message: Message, tree: ObjectTree, _runtime: float) -> tuple[set[str], str]:
        """Send what a ClientApp answered, if it may leave; nothing is left for Flower to push."""
        entry = self._outbox.find(message.metadata.reply_to_message_id)
        if entry is None:
            _log.error("an answer to nothing that was asked is dropped")
            return set(), ""
        answer = read_answer(self._store, message, tree, self.site)
        if answer is None:
            if self._handed.get(entry.message_id, 0) < ATTEMPTS and not entry.expired():
                self._standing.say("the ClientApp crashed; its instruction is handed in once more")
                return set(), ""
            answer = Answer(self.site, code=WorkerError.code)
        try:
            self._answer(entry, answer)
        except OSError as error:
            self._note_disk(error)
            self._handed[entry.message_id] -= 1  # no fault of the instruction's
        return set(), ""

    def push_object(self, _run_id: int, _session_id: str, object_id: str, _contents: bytes) -> None:
        """Refuse: objects leave with their answer, from the journal.

        Raises:
            EgressError: always.
        """
        raise EgressError("an object was about to leave by another way", found=object_id[:12])

    # ------------------------------------------------------------------ one instruction

    def _take(self) -> bool:
        """Take one instruction from the centre into the journal; False if there is none."""
        got = None if self._disk_is_full() else self.inner.receive()
        if got is None:
            return False
        message, tree = got
        try:
            self._outbox.take(message_to_proto(message), tree)
        except SchemaError as error:
            _log.error("a message was dropped: %s", error)
        return True

    def _go_on(self, entry: Entry) -> tuple[Message, ObjectTree] | None:
        """Do the next step for an instruction; returns it where a ClientApp has to work on it."""
        try:
            if entry.expired() and entry.state != "arriving":
                self._standing.say(f"too late for {_what(entry)}: the centre no longer waits for it")
                entry.drop()
                return None
            if entry.state == "arriving":
                self._pull(entry)
            if entry.state == "here":
                self._check(entry)
            if entry.state == "accepted":
                return self._hand_in(entry)
            if entry.state in ("answered", "audited"):
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
        return None

    def _pull(self, entry: Entry) -> None:
        """Bring every object of an instruction into the journal and tell the centre so."""
        run_id = entry.request.metadata.run_id
        missing = [t.object_id for t in iterate_object_tree(entry.tree) if not entry.has(t.object_id)]
        for object_id, content in pull_objects(
            list(dict.fromkeys(missing)), lambda object_id: self.inner.pull_object(run_id, object_id)
        ).items():
            entry.put(object_id, content)
        entry.note(state="here")
        self.inner.confirm(run_id, entry.message_id)

    def _check(self, entry: Entry) -> None:
        """Ask the gate; a refusal is answered at once and no task comes of it."""
        run_id = entry.request.metadata.run_id
        try:
            instruction = read_instruction(entry)
        except SchemaError as error:
            self._gate.refuse(run_id, error)
            raise
        entry.note(about=named(instruction, run_id))
        self._enter(entry, instruction, resumed=False)
        entry.note(state="accepted")
        self._standing.asked(entry.facts["about"])

    def _enter(self, entry: Entry, instruction: Instruction, resumed: bool) -> None:
        run_id = entry.request.metadata.run_id
        run, fab = self._run(run_id)
        if run.primary_task_type == TaskType.AGENT_APP:
            raise SchemaError("a run is of a kind that fedcxr does not have", found="agent")
        sha256 = hashlib.sha256(fab.content).hexdigest()
        self._gate.enter(instruction, run_id, sha256, run_settings(run, fab), resumed)
        self._handed[entry.message_id] = 0

    def _hand_in(self, entry: Entry) -> tuple[Message, ObjectTree] | None:
        """Give an accepted instruction to Flower's loop, unless it has crashed too often."""
        if entry.message_id not in self._handed:
            self._enter(entry, read_instruction(entry), resumed=True)
            self._standing.say(f"going on with {_what(entry)}, which was not finished")
        starts = int(entry.facts["attempts"])
        if self._handed[entry.message_id] >= ATTEMPTS or starts >= STARTS:
            raise WorkerError("an instruction made the ClientApp or this process crash too often")
        self._handed[entry.message_id] += 1
        entry.note(attempts=starts + 1)
        return message_from_proto(entry.request), entry.tree

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
            allowed = self._gate.leave(answer, read_instruction(entry), self._config_of(entry))
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
            for object_id in wanted:
                self.inner.push_object(run_id, session, object_id, entry.reply_object(object_id))
        finally:
            self._released.withdraw()
            self._traffic.note(now=True)
        self._standing.answered(facts["about"], facts["code"], facts["size"])
        self._lively = time.monotonic() + LIVELY
        entry.drop()

    def _over(self, entry: Entry) -> None:
        """Drop what the centre refuses: its run is over, or it has done without this answer."""
        self._standing.say(f"the centre no longer wants {_what(entry)}: it is dropped")
        entry.drop()

    def _put_off(self, entry: Entry, error: Exception) -> None:
        """Leave an instruction or answer in the journal for the next time, but not for ever."""
        tries = int(entry.facts.get("tries", 0)) + 1
        _log.warning("%s is put off (try %d): %s", entry.message_id[:12], tries, error)
        if tries >= 20:
            self._standing.say(f"{_what(entry)} is given up: the centre does not take it")
            entry.drop()
            return
        entry.note(tries=tries)

    # ------------------------------------------------------------------ shared

    def _run(self, run_id: int) -> tuple[Run, Fab]:
        if run_id not in self._runs:
            run = self.inner.get_run(run_id)
            self._runs = {run_id: (run, self.inner.get_fab(run.fab_hash, run_id))}
        return self._runs[run_id]

    def _config_of(self, entry: Entry) -> Mapping[str, Any]:
        return run_settings(*self._run(entry.request.metadata.run_id))

    def _disk_is_full(self) -> bool:
        full = shutil.disk_usage(self._outbox.folder).free < MIN_FREE
        if full and not self._full:
            self._standing.say("the disk is nearly full; no instruction is taken until there is room")
        self._full = full
        return full

    def _note_disk(self, error: OSError) -> None:
        """Say that the journal cannot be written; what is in it is taken up again."""
        self._standing.say(f"the journal cannot be written: {error.strerror}; this is tried again")


def _what(entry: Entry) -> str:
    return in_words(entry.facts.get("about") or {})
