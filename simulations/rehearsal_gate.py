"""The phantom sites' nodes: each instruction and each answer passes the site's own gate, and is told of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message

from client.gate.audit import read_audit
from client.node.gates import SiteGate
from client.worker import ModelPool, SiteWorker
from common.config import Scalar
from common.errors import FedcxrError
from common.protocol import Answer, Instruction
from common.wire import answer_to_records, instruction_from_records, message_bytes
from simulations.rehearsal_sites import PhantomSite, Stage

RUN = 1
"""The number of the run."""


class GatedSites:
    """Stands where Flower's node and ClientApp stand at every phantom site."""

    def __init__(self, stage: Stage, flat: Mapping[str, Scalar], say: Callable[[str], None]) -> None:
        self._stage, self._flat, self._say = stage, dict(flat), say
        pool = ModelPool()
        self._sites = {site.node: site for site in stage.sites}
        self._workers = {site.node: SiteWorker(site.site, pool) for site in stage.sites}
        self._gates = {site.node: SiteGate(site.folder, site.site, site.welcome) for site in stage.sites}
        self.refusals = 0
        """Instructions and answers that a gate refused, or a worker could not do."""
        self.answers = 0
        """Answers of the site in the foreground."""
        self.bytes_left: dict[int, int] = {}
        self.trained = (0.0, 0)
        """Seconds and studies of the last round of the site in the foreground."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message, as a site does."""
        site = self._sites[context.node_id]
        instruction = instruction_from_records(message.metadata.message_type, message.content)
        shown = site is self._stage.sites[0]
        if shown:
            self._say(f"   asked   {_asked(instruction)}")
        answer = self._answer(site, instruction)
        reply = Message(answer_to_records(answer), reply_to=message)
        gate, size = self._gates[site.node], message_bytes(reply)
        about = {"run": str(RUN), "stage": instruction.stage, "round": instruction.round}
        gate.record("answer", **about, code=answer.code, bytes=size, records=gate.describe(answer))
        if shown:
            self.answers += 1
            self._say(f"   leaves  {_holds(gate.describe(answer))}; {size:,} bytes in Flower's form")
            if instruction.stage == "train" and not answer.code:
                took, studies = (answer.metrics.get(key, 0) for key in ("seconds", "num-examples"))
                self.trained = (float(took), int(studies))  # type: ignore[arg-type]
        return reply

    def left(self, reply: Message) -> Message:
        """Count an answer as it goes over the wire."""
        node = int(reply.metadata.src_node_id)
        self.bytes_left[node] = self.bytes_left.get(node, 0) + message_bytes(reply)
        return reply

    def audited(self, node: int) -> int:
        """Return the bytes of answers that a site's audit accounts for."""
        lines = read_audit(self._sites[node].folder)
        return sum(int(line["bytes"]) for line in lines if line["kind"] == "answer")

    def _answer(self, site: PhantomSite, instruction: Instruction) -> Answer:
        gate, name = self._gates[site.node], site.site.name
        try:
            gate.enter(instruction, RUN, self._stage.fab_sha256, self._flat)
            answer = self._workers[site.node].handle(instruction, self._flat)
            if answer.code:
                self._refused(name, answer.code, f"see {site.site.data.state / 'site.log'}")
                return answer
            return gate.leave(answer, instruction, self._flat)
        except FedcxrError as error:
            self._refused(name, error.code, ". ".join(filter(None, (error.problem, error.found, error.fix))))
            return Answer(name, code=error.code)

    def _refused(self, site: str, code: str, words: str) -> None:
        self.refusals += 1
        self._say(f"   REFUSED at {site} with {code}: {words}")


def _asked(instruction: Instruction) -> str:
    kept = "stays" if instruction.adapter is None else "is asked for"
    what = {
        "enrol": "how many studies there are",
        "train": f"train round {instruction.round}",
        "local": f"train alone, to compare with; the model {kept}",
        "calibrate": "sums over the validation studies, to calibrate by",
        "evaluate": f"measure the {instruction.arm} model on the {instruction.split} studies",
    }[instruction.stage]
    adapter = instruction.adapter
    carried = "" if adapter is None else f", with an adapter of {adapter.size:,} numbers"
    return f"{what}{carried}"


def _holds(records: Mapping[str, Any]) -> str:
    """Say what an answer holds from its description in the audit."""
    told = []
    if code := records.get("site", {}).get("code"):
        told.append(f"the code {code}")
    if update := records.get("update"):
        told.append(
            f"an update of {update['shape'][0]:,} {update['dtype']} numbers ({update['bytes']:,} bytes)"
        )
    if metrics := records.get("metrics"):
        first = ", ".join(f"{key} {_short(value)}" for key, value in list(metrics.items())[:3])
        more = f" and {len(metrics) - 3} more" if len(metrics) > 3 else ""
        told.append(f"{len(metrics)} figures ({first}{more})")
    return " and ".join(told) or "nothing"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:19] + "…"
