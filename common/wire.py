"""Instructions and answers as Flower records; every adapter travels as one flat array."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from numpy.typing import NDArray

from common.errors import SchemaError
from common.protocol import MESSAGE_TYPES, SINGLE_ARRAYS, Answer, Instruction, kebab

_STAGE_OF = {message_type: stage for stage, message_type in MESSAGE_TYPES.items()}
_INSTRUCTION = {
    "instruction": ConfigRecord,
    "residual": ArrayRecord,
    **{kebab(name): ArrayRecord for name in SINGLE_ARRAYS},
}
_FIELDS = {
    "round": int,
    "plan-digest": str,
    "code-digest": str,
    "base-digest": str,
    "named": str,
    "numel": int,
    "arm": str,
    "split": str,
    "learning-rate": float,
    "missing": str,
    "run": str,
    "lineage": str,
    "site": str,
    "sequence": int,
    "committed": int,
    "signature": str,
}
_WITHHELD = ("", "text", "image")
_ANSWER = {"site": ConfigRecord, "update": ArrayRecord, "metrics": MetricRecord}
_CODE = re.compile(r"(E_[A-Z0-9_]{1,40})?")


def instruction_to_records(instruction: Instruction) -> RecordDict:
    """Build the content of the message a site receives."""
    records = RecordDict()
    fields = {kebab(name): value for name, value in instruction.fields().items()}
    records["instruction"] = ConfigRecord({key: fields[key] for key in _FIELDS})
    for name in SINGLE_ARRAYS:
        if (values := getattr(instruction, name)) is not None:
            records[kebab(name)] = ArrayRecord({"values": Array(values)})
    if instruction.residual:
        records["residual"] = ArrayRecord({k: Array(v) for k, v in instruction.residual.items()})
    return records


def instruction_from_records(message_type: str, records: RecordDict) -> Instruction:
    """Read what ``instruction_to_records`` wrote.

    Raises:
        SchemaError: if the message is not one of ours, or an array cannot be read.
    """
    config = records.config_records.get("instruction")
    if config is None or message_type not in _STAGE_OF:
        raise SchemaError("a message is not an instruction of this protocol", found=message_type)
    _check_kinds(records, _INSTRUCTION)
    if {key: type(value) for key, value in config.items()} != _FIELDS:
        raise SchemaError("an instruction's fields are not those of this protocol")
    if config["missing"] not in _WITHHELD:
        raise SchemaError("an instruction withholds what no study has")
    residual = records.array_records.get("residual")
    return Instruction(
        stage=_STAGE_OF[message_type],
        plan_digest=str(config["plan-digest"]),
        code_digest=str(config["code-digest"]),
        base_digest=str(config["base-digest"]),
        round=int(config["round"]),  # type: ignore[arg-type]
        adapter=_one_array(records, "adapter"),
        named=str(config["named"]),
        numel=int(config["numel"]),  # type: ignore[arg-type]
        change=_one_array(records, "change"),
        residual={} if residual is None else {k: _array(v) for k, v in residual.items()},
        arm=str(config["arm"]),
        split="validation" if config["split"] == "validation" else "test",
        scaling=_one_array(records, "scaling"),
        class_weights=_one_array(records, "class-weights"),
        learning_rate=float(config["learning-rate"]),  # type: ignore[arg-type]
        missing=config["missing"],  # type: ignore[arg-type]
        run=str(config["run"]),
        lineage=str(config["lineage"]),
        site=str(config["site"]),
        sequence=int(config["sequence"]),  # type: ignore[arg-type]
        committed=int(config["committed"]),  # type: ignore[arg-type]
        signature=str(config["signature"]),
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
        SchemaError: if a record is missing, unexpected or of another kind, the code is not a
            code, an update is not one flat array, or the array cannot be read.
    """
    site = records.config_records.get("site")
    if site is None or not isinstance(site.get("name"), str):
        raise SchemaError("a reply does not say which site it is from")
    _check_kinds(records, _ANSWER)
    code = site.get("code")
    if set(site) != {"name", "code"} or not isinstance(code, str) or not _CODE.fullmatch(code):
        raise SchemaError("a reply says more of its site than a name and a code")
    return Answer(
        site=str(site["name"]),
        code=code,
        update=_one_array(records, "update"),
        metrics=dict(records.metric_records.get("metrics") or {}),
    )


def message_bytes(message: Message) -> int:
    """Bytes a message takes on the wire: every object Flower would push for it."""
    with no_object_id_recompute():
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def _check_kinds(records: RecordDict, kinds: Mapping[str, type]) -> None:
    unknown = [n for n, record in records.items() if not isinstance(record, kinds.get(n, ()))]
    if unknown:
        raise SchemaError("a message holds records the protocol does not know", found=f"{len(unknown)}")


def _one_array(records: RecordDict, name: str) -> NDArray[Any] | None:
    arrays = records.array_records.get(name)
    if arrays is None:
        return None
    if set(arrays) != {"values"}:
        raise SchemaError(
            f"the record {name!r} is not one flat array", found=f"{len(arrays)} arrays, expected 1"
        )
    return _array(arrays["values"])


def _array(array: Array) -> NDArray[Any]:
    """Read an array; numpy's reader fails in many ways on bytes that somebody else wrote."""
    try:
        values = array.numpy()
    except Exception:  # noqa: BLE001
        raise SchemaError("an array cannot be read") from None
    if not isinstance(values, np.ndarray):
        raise SchemaError("an array cannot be read", found=type(values).__name__)
    return values
