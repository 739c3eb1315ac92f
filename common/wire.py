"""Instructions and answers as Flower records, in few objects; every adapter travels as one flat array."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from numpy.typing import NDArray

from common.errors import SchemaError
from common.protocol import MESSAGE_TYPES, SINGLE_ARRAYS, Answer, Instruction, kebab

WHOLE = {"instruction": 1 << 20, "answer": 4 << 20}
"""Kind of message -> bytes of arrays that travel in one object together with the fields, because every object
is a request to the SuperLink. Larger ones are Flower's arrays: their chunks of 5 MiB arrive and are kept one
by one, and of those that all sites are sent the SuperLink keeps one copy."""
_INSIDE = "array."
"""Begins the key of an array among the fields."""
_BESIDE = "arrays"
"""The record of arrays that are too large for that."""
_STAGE_OF = {message_type: stage for stage, message_type in MESSAGE_TYPES.items()}
_RESIDUAL = "residual:"
_ONE_EACH = {kebab(name): name for name in SINGLE_ARRAYS}
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
_CODE = re.compile(r"(E_[A-Z0-9_]{1,40})?")


def instruction_to_records(instruction: Instruction) -> RecordDict:
    """Build the content of the message a site receives."""
    fields = {kebab(name): value for name, value in instruction.fields().items()}
    arrays = {kebab(n) if n in SINGLE_ARRAYS else n: v for n, v in instruction.arrays().items()}
    return _write("instruction", {key: fields[key] for key in _FIELDS}, arrays)


def instruction_from_records(message_type: str, records: RecordDict) -> Instruction:
    """Read what ``instruction_to_records`` wrote.

    Raises:
        SchemaError: if the message is not one of ours, or an array cannot be read.
    """
    if "instruction" not in records.config_records or message_type not in _STAGE_OF:
        raise SchemaError("a message is not an instruction of this protocol", found=message_type)
    config, arrays = _read("instruction", records)
    if {key: type(value) for key, value in config.items()} != _FIELDS:
        raise SchemaError("an instruction's fields are not those of this protocol")
    if config["missing"] not in _WITHHELD:
        raise SchemaError("an instruction withholds what no study has")
    residual = {n.removeprefix(_RESIDUAL): v for n, v in arrays.items() if n.startswith(_RESIDUAL)}
    single = {_ONE_EACH[name]: values for name, values in arrays.items() if name in _ONE_EACH}
    if len(residual) + len(single) < len(arrays):
        raise SchemaError("an instruction's arrays are not those of this protocol")
    return Instruction(
        stage=_STAGE_OF[message_type],
        plan_digest=config["plan-digest"],
        code_digest=config["code-digest"],
        base_digest=config["base-digest"],
        round=config["round"],
        named=config["named"],
        numel=config["numel"],
        residual=residual,
        arm=config["arm"],
        split="validation" if config["split"] == "validation" else "test",
        learning_rate=config["learning-rate"],
        missing=config["missing"],
        run=config["run"],
        lineage=config["lineage"],
        site=config["site"],
        sequence=config["sequence"],
        committed=config["committed"],
        signature=config["signature"],
        **single,
    )


def answer_to_records(answer: Answer) -> RecordDict:
    """Build the content of a site's reply."""
    arrays = {} if answer.update is None else {"update": answer.update}
    metrics = MetricRecord({**answer.metrics})  # takes numbers and lists of them, and nothing else
    return _write("answer", {**metrics, "site": answer.site, "code": answer.code}, arrays)


def answer_from_records(records: RecordDict) -> Answer:
    """Read a site's reply.

    Raises:
        SchemaError: if a record or array is missing, unexpected or of another kind, the code is not a
            code, a metric is not a number or numbers, or the array cannot be read.
    """
    if "answer" not in records.config_records:
        raise SchemaError("a reply does not say which site it is from")
    fields, arrays = _read("answer", records)
    site, code = fields.pop("site", None), fields.pop("code", None)
    if not isinstance(site, str) or not isinstance(code, str) or not _CODE.fullmatch(code):
        raise SchemaError("a reply does not say a site's name and a code")
    update = arrays.pop("update", None)
    if arrays:
        raise SchemaError("a reply holds more arrays than an update", found=f"{len(arrays)} more")
    try:
        metrics = dict(MetricRecord(fields))
    except TypeError:
        raise SchemaError("a reply holds metrics that are not numbers") from None
    return Answer(site=site, code=code, update=update, metrics=metrics)


def message_bytes(message: Message) -> int:
    """Bytes a message takes on the wire: every object Flower would push for it."""
    with no_object_id_recompute():
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def _write(kind: str, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RecordDict:
    """Put fields and arrays into as few objects as their size allows."""
    packed = {name: Array(values) for name, values in arrays.items()}
    if sum(len(array.data) for array in packed.values()) > WHOLE[kind]:
        return RecordDict({kind: ConfigRecord({**fields}), _BESIDE: ArrayRecord(packed)})
    inside = {_INSIDE + name: array.data for name, array in packed.items()}
    return RecordDict({kind: ConfigRecord({**fields, **inside})})


def _read(kind: str, records: RecordDict) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the fields and the arrays that ``_write`` was given."""
    kinds: Mapping[str, type] = {kind: ConfigRecord, _BESIDE: ArrayRecord}
    unknown = [n for n, record in records.items() if not isinstance(record, kinds.get(n, ()))]
    if unknown:
        raise SchemaError("a message holds records the protocol does not know", found=f"{len(unknown)}")
    fields: dict[str, Any] = dict(records.config_records[kind])
    if _BESIDE in records:
        return fields, {name: _array(array) for name, array in records.array_records[_BESIDE].items()}
    inside = {key: fields.pop(key) for key in [*fields] if key.startswith(_INSIDE)}
    return fields, {key.removeprefix(_INSIDE): _inside(data) for key, data in inside.items()}


def _inside(data: object) -> NDArray[Any]:
    if not isinstance(data, bytes):
        raise SchemaError("an array cannot be read", found=type(data).__name__)
    return _array(Array("", (), SType.NUMPY, data))


def _array(array: Array) -> NDArray[Any]:
    """Read an array; numpy's reader fails in many ways on bytes that somebody else wrote."""
    try:
        values = array.numpy()
    except Exception:  # noqa: BLE001
        raise SchemaError("an array cannot be read") from None
    if not isinstance(values, np.ndarray):
        raise SchemaError("an array cannot be read", found=type(values).__name__)
    return values
