"""Instructions and answers as Flower records; every adapter travels as one flat array."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from common.errors import SchemaError
from common.protocol import MESSAGE_TYPES, Answer, Instruction

_STAGE_OF = {message_type: stage for stage, message_type in MESSAGE_TYPES.items()}


def instruction_to_records(instruction: Instruction) -> RecordDict:
    """Build the content of the message a site receives."""
    records = RecordDict()
    records["instruction"] = ConfigRecord(
        {
            "round": instruction.round,
            "plan-digest": instruction.plan_digest,
            "code-digest": instruction.code_digest,
            "base-digest": instruction.base_digest,
            "arm": instruction.arm,
            "split": instruction.split,
        }
    )
    if instruction.adapter is not None:
        records["adapter"] = ArrayRecord({"values": Array(instruction.adapter)})
    if instruction.residual:
        records["residual"] = ArrayRecord({k: Array(v) for k, v in instruction.residual.items()})
    return records


def instruction_from_records(message_type: str, records: RecordDict) -> Instruction:
    """Read what ``instruction_to_records`` wrote.

    Raises:
        SchemaError: if the message is not one of ours.
    """
    config = records.config_records.get("instruction")
    if config is None or message_type not in _STAGE_OF:
        raise SchemaError("a message is not an instruction of this protocol", found=message_type)
    adapter = records.array_records.get("adapter")
    residual = records.array_records.get("residual")
    return Instruction(
        stage=_STAGE_OF[message_type],
        plan_digest=str(config["plan-digest"]),
        code_digest=str(config["code-digest"]),
        base_digest=str(config["base-digest"]),
        round=int(config["round"]),  # type: ignore[arg-type]
        adapter=None if adapter is None else adapter["values"].numpy(),
        residual={} if residual is None else {k: v.numpy() for k, v in residual.items()},
        arm=str(config["arm"]),
        split="validation" if config["split"] == "validation" else "test",
    )


def answer_to_records(answer: Answer) -> RecordDict:
    """Build the content of a site's reply."""
    records = RecordDict()
    records["site"] = ConfigRecord({"name": answer.site, "code": answer.code})
    if answer.update is not None:
        records["update"] = ArrayRecord({"values": Array(answer.update)})
    if answer.metrics:
        records["metrics"] = MetricRecord(dict(answer.metrics))
    return records


def answer_from_records(records: RecordDict) -> Answer:
    """Read a site's reply.

    Raises:
        SchemaError: if a record is missing, unexpected, or an update is not one flat array.
    """
    site = records.config_records.get("site")
    if site is None or not isinstance(site.get("name"), str):
        raise SchemaError("a reply does not say which site it is from")
    unknown = set(records) - {"site", "update", "metrics"}
    if unknown:
        raise SchemaError("a reply holds records the protocol does not know", found=f"{len(unknown)}")
    update = records.array_records.get("update")
    if update is not None and set(update) != {"values"}:
        raise SchemaError("an update is more than one flat array", found=f"{len(update)} arrays, expected 1")
    return Answer(
        site=str(site["name"]),
        code=str(site.get("code", "")),
        update=None if update is None else update["values"].numpy(),
        metrics=dict(records.metric_records.get("metrics") or {}),
    )


def message_bytes(message: Message) -> int:
    """Bytes a message takes on the wire: every object Flower would push for it."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
