"""Models that sites train alone: the stage that has them trained, and those that may be measured elsewhere.

A site's model reaches the centre only where the plan's ``evaluate.matrix`` asks for it and the site's
policy lets it leave. It is kept in ``locals/SITE.safetensors``, so that a resumed run has it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from common.adapter import AdapterState
from common.errors import CheckpointError, FedcxrError, SchemaError
from common.files import write_atomic
from common.protocol import Answer
from server.admission import admit_delta
from server.disk import with_room
from server.exchange import Reply
from server.federation import Federation

FOLDER = "locals"
"""Folder of a run that holds the sites' own models."""


def local_stage(federation: Federation, initial: AdapterState, folder: Path) -> None:
    """Have every site train its own baseline with the same local work, from the ``initial`` adapter.

    ``folder`` is the run's. A site that has done so already is not asked again.
    """
    ledger, matrix = federation.ledger, federation.config.evaluate.matrix
    steps: dict[str, int] = ledger.get("local_steps") or {}
    pending = [name for name in federation.names() if name not in steps]
    if not pending:
        return
    ledger.event("stage", f"each of {len(pending)} sites trains alone, to compare with")

    def receive(site: str, reply: Reply) -> None:
        code, taken = reply.code, 0
        if reply.answer is not None and not code:
            try:
                taken = _steps(reply.answer)
            except SchemaError as error:
                code = error.code
        if code or reply.answer is None:
            text = f"{site} has no local baseline: {code}"
            ledger.event("local", text, site=site, code=code)
            return
        text = f"{site} trained alone: {taken} steps"
        if matrix:
            text += f"; {_keep(federation, initial, folder, site, reply.answer)}"
        steps[site] = taken
        ledger.put("local_steps", steps)
        ledger.event("local", text, site=site)

    # The gate at a site holds the size of its model against that of the adapter it was asked with.
    federation.ask(pending, federation.instruction("local", state=initial if matrix else None), receive)


def local_models(folder: Path) -> Iterator[tuple[str, AdapterState]]:
    """Yield each site whose own model is here, in name order, with the model.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    for file in sorted((folder / FOLDER).glob("*.safetensors")):
        yield file.stem, read_adapter(file)


def read_adapter(file: Path) -> AdapterState:
    """Read an adapter beside a run's checkpoints.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        return AdapterState.from_bytes(file.read_bytes())
    except (SafetensorError, SchemaError):
        raise CheckpointError(
            f"{file.parent.name}/{file.name} is not a readable adapter", fix="remove it, or write it again"
        ) from None


def _steps(answer: Answer) -> int:
    steps = answer.metrics.get("steps")
    if type(steps) is not int or steps < 0:
        raise SchemaError("an answer does not say how many steps were taken")
    return steps


def _keep(federation: Federation, initial: AdapterState, folder: Path, site: str, answer: Answer) -> str:
    """Write a site's own model to the run's folder; returns in words what came of it."""
    if answer.update is None:
        return "its model stays there"
    try:
        delta = admit_delta(answer.update, federation.schema, federation.config)
    except FedcxrError as error:
        return f"its model is not taken: {error.code}"
    facts = {"site": site, "plan": federation.plan_digest}
    data = AdapterState(initial.plus(delta).tensors, {}).to_bytes(facts)
    file, what = folder / FOLDER / f"{site}.safetensors", f"the model of {site}"
    with_room(lambda: write_atomic(file, data), what, federation.ledger.patience)
    return "its model came with the answer"
