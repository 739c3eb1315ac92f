"""Sites that misbehave on purpose: what a run does about it can be tried before it happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from flwr.app import Array, Message
from pydantic import Field

from common.sections import Section
from common.wire import answer_from_records, answer_to_records

Kind = Literal["nan", "shape", "extra", "weight", "large", "silent"]


class Fault(Section):
    """One thing one site does wrong."""

    site: str
    """Name of the site."""
    kind: Kind
    """``nan``, ``shape``, ``extra`` (a second tensor), ``weight`` (1e15 examples), ``large``
    (an update a million times too long), ``silent`` (no answer)."""
    rounds: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Rounds in which it happens; empty: always."""


def tamper_with(faults: Sequence[Fault]) -> Callable[[Message], Message | None]:
    """Return what spoils the training replies of the sites named."""

    def spoil(reply: Message) -> Message | None:
        if not reply.has_content() or reply.metadata.message_type != "train.round":
            return reply
        site = answer_from_records(reply.content).site
        number = int(reply.metadata.group_id)
        for fault in faults:
            if fault.site == site and (not fault.rounds or number in fault.rounds):
                if fault.kind == "silent":
                    return None
                _spoil(reply, fault.kind)
        return reply

    return spoil


def _spoil(reply: Message, kind: Kind) -> None:
    answer = answer_from_records(reply.content)
    if answer.update is None:
        return
    values, metrics = answer.update.copy(), dict(answer.metrics)
    if kind == "weight":
        metrics["num-examples"] = 10**15
    elif kind == "nan":
        values[len(values) // 2] = np.nan
    elif kind == "shape":
        values = values[:-1]
    elif kind == "large":
        values = (values + 1e-3) * np.float32(1e6)
    reply.content = answer_to_records(dataclasses.replace(answer, update=values, metrics=metrics))
    if kind == "extra":
        reply.content.config_records["answer"]["array.backbone"] = Array(values).data
