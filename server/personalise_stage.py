"""The stage in which each site makes the released adapter its own, if its own validation says so.

What a site made stays there; it answers whether it kept it, how many steps it took and what its
validation studies said before and after. The answers stand in the ledger, so a resumed run asks only the
sites that have not answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.adapter import AdapterState
from common.errors import SchemaError
from common.model.build import CxrModel
from common.model.dual import private_layers
from common.protocol import Answer
from server.exchange import Reply
from server.federation import Federation
from server.report_personal import PERSONAL
from server.report_words import counted, number

_SCORES = {"validation-before": "before", "validation-auroc": "after"}


def check_personalise(model: CxrModel) -> None:
    """Refuse a plan whose personalisation this model cannot have, before anything is trained.

    Raises:
        TargetError: if the method is ``dual`` and the backbone has no linear layer.
    """
    if model.config.personalise.method == "dual":
        private_layers(model)


def personalise_stage(federation: Federation, state: AdapterState) -> None:
    """Ask every site that has not done so to make the adapter its own."""
    ledger, digest = federation.ledger, state.digest()
    known = ledger.get(PERSONAL) or {}
    told: dict[str, Any] = known["sites"] if known.get("adapter") == digest else {}
    pending = [name for name in federation.names() if name not in told]
    if not pending:
        return
    method = federation.config.personalise.method
    ledger.event("stage", f"{counted(len(pending), 'site')} make the adapter their own ({method})")

    def receive(site: str, reply: Reply) -> None:
        code = reply.code
        if reply.answer is not None and not code:
            try:
                told[site] = told_by(reply.answer)
            except SchemaError as error:
                code = error.code
        if code or reply.answer is None:
            text = f"{site} has nothing of its own: {code}"
            ledger.event("personalised", text, site=site, code=code)
            return
        ledger.put(PERSONAL, {"adapter": digest, "method": method, "sites": told})
        ledger.event("personalised", _sentence(site, told[site]), site=site, **told[site])

    plain = federation.instruction("personalise", state=state)
    instruction = dataclasses.replace(plain, class_weights=federation.class_weights)
    federation.ask(pending, instruction, receive)


def told_by(answer: Answer) -> dict[str, Any]:
    """Return what a site said of its personalisation: kept, steps, and the scores that may be told.

    Raises:
        SchemaError: if a figure is missing, unknown, or one that cannot be, or something else came along.
    """
    metrics = dict(answer.metrics)
    kept, steps = metrics.pop("kept", None), metrics.pop("steps", None)
    scores = {name: metrics.pop(key) for key, name in _SCORES.items() if key in metrics}
    counts = type(kept) is int and kept in (0, 1) and type(steps) is int and steps >= 0
    shares = all(isinstance(value, float) and 0 <= value <= 1 for value in scores.values())
    if metrics or answer.update is not None or not (counts and shares):
        raise SchemaError("an answer does not say what came of personalisation, or says more than that")
    return {"kept": bool(kept), "steps": steps, **scores}


def _sentence(site: str, told: Mapping[str, Any]) -> str:
    what = "keeps its own" if told["kept"] else "goes back to the released adapter"
    if "before" not in told or "after" not in told:
        return f"{site} {what} after {told['steps']} steps"
    change = f"{number(told['before'])} to {number(told['after'])}"
    return f"{site} {what} after {told['steps']} steps: validation AUROC {change}"
