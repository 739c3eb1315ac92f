"""Instructions and answers through Flower's own serialisation, byte by byte as the network carries them."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SchemaError
from common.protocol import (
    MESSAGE_TYPES,
    VALIDATION_COUNTS,
    VALIDATION_SHARES,
    Answer,
    Instruction,
    validation_key,
)
from common.wire import (
    WHOLE,
    answer_from_records,
    answer_to_records,
    instruction_from_records,
    instruction_to_records,
    message_bytes,
)

FRAMING = 2048
"""Bytes that a message of one array may cost beyond its numbers (each 20 MiB chunk adds a header)."""


def message(content=None, error=None, message_type="train.round"):
    metadata = Metadata(
        run_id=1,
        message_id="0" * 64,
        src_node_id=2**63,
        dst_node_id=2**62,
        reply_to_message_id="1" * 64,
        group_id="12",
        created_at=1.0,
        ttl=3600.0,
        message_type=message_type,
        src_task_id=1,
        dst_task_id=2,
    )
    return Message(content=content, error=error, metadata=metadata)


def through_the_network(records, message_type="train.round"):
    """Take a message apart into the objects Flower pushes, and put it together from their bytes."""
    sent = message(records, message_type=message_type)
    parts = {object_id: part.deflate() for object_id, part in get_all_nested_objects(sent).items()}
    total = sum(map(len, parts.values()))
    assert message_bytes(sent) == total
    received = inflate_object_from_contents(sent.object_id, parts)
    return received.content


digest = st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)
vector = st.lists(st.floats(width=32), max_size=30).map(lambda v: np.array(v, dtype=np.float32))
matrix = st.integers(1, 3).map(lambda n: np.arange(2.0 * n, dtype=np.float32).reshape(2, n))
layer = st.sampled_from(["residual:blocks.0.attn.qkv.left", "residual:blocks.11.mlp.fc1.right"])
instructions = st.builds(
    Instruction,
    stage=st.sampled_from(list(MESSAGE_TYPES)),
    plan_digest=digest,
    code_digest=digest,
    base_digest=digest,
    round=st.integers(0, 10_000),
    adapter=st.one_of(st.none(), vector),
    scaling=st.one_of(st.none(), vector.map(lambda v: v.astype(np.float64))),
    residual=st.dictionaries(layer, matrix),
    arm=st.sampled_from(["", "local", "federated"]),
    split=st.sampled_from(["validation", "test"]),
    run=st.from_regex(r"[0-9]{0,20}", fullmatch=True),
    site=st.sampled_from(["", "north"]),
    sequence=st.integers(0, 2**62),
    committed=st.integers(0, 10_000),
    signature=st.text(max_size=88),
)
metrics = st.dictionaries(
    st.sampled_from(["loss", "num-examples", "labelled", "effusion.interval"]),
    st.one_of(
        st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.lists(st.integers(0, 99), min_size=1)
    ),
)
answers = st.builds(
    Answer,
    site=st.text(min_size=1, max_size=20),
    code=st.sampled_from(["", "E_LABELS", "E_INTERNAL"]),
    update=st.one_of(
        st.none(), vector, vector.map(lambda v: np.nan_to_num(v).clip(-9, 9).astype(np.float16))
    ),
    metrics=metrics,
)


def same(a, b):
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(deadline=None, max_examples=40)
@given(instructions)
def test_an_instruction_arrives_as_it_was_sent(sent):
    message_type = MESSAGE_TYPES[sent.stage]
    got = instruction_from_records(
        message_type, through_the_network(instruction_to_records(sent), message_type)
    )
    arrays = ("adapter", "scaling", "residual")
    plain = [f.name for f in dataclasses.fields(Instruction) if f.name not in arrays]
    assert [getattr(got, n) for n in plain] == [getattr(sent, n) for n in plain]
    assert got.signed_bytes() == sent.signed_bytes()
    assert same(got.adapter, sent.adapter)
    assert same(got.scaling, sent.scaling)
    assert got.residual.keys() == sent.residual.keys()
    assert all(same(got.residual[n], sent.residual[n]) for n in sent.residual)


@settings(deadline=None, max_examples=40)
@given(answers)
def test_an_answer_arrives_as_it_was_sent(sent):
    got = answer_from_records(through_the_network(answer_to_records(sent)))
    assert (got.site, got.code, got.metrics) == (sent.site, sent.code, sent.metrics)
    assert same(got.update, sent.update)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("numel", [1, 1000, 2_370_062])
def test_framing_is_small_and_does_not_grow(numel, dtype):
    values = np.random.default_rng(0).random(numel).astype(dtype)
    metrics = {"num-examples": 100, "labelled": [100] * 14, "loss": 0.5, "steps": 4, "seconds": 1.5}
    answer = message(answer_to_records(Answer("north", update=values, metrics=metrics)))
    assert 0 < message_bytes(answer) - values.nbytes < FRAMING


def test_an_instruction_s_framing_is_small_too():
    values = np.random.default_rng(0).random(100_000).astype(np.float32)
    sent = Instruction("train", "a" * 64, "b" * 64, "c" * 64, 3, values)
    assert 0 < message_bytes(message(instruction_to_records(sent))) - values.nbytes < FRAMING


def test_a_round_s_figures_of_four_findings_stay_below_three_kilobytes_with_the_framing():
    values = np.ones(1000, dtype=np.float32)
    metrics = {"num-examples": 1000, "labelled": [1000] * 4, "loss": 0.512345, "steps": 40, "seconds": 100.5}
    for finding in ("cardiomegaly", "effusion", "edema", "consolidation"):
        metrics |= {validation_key(finding, name): 0.712 for name in VALIDATION_SHARES}
        metrics |= {validation_key(finding, name): 1000 for name in VALIDATION_COUNTS}
    answer = message(
        answer_to_records(Answer("north", update=values, metrics={**metrics, "validation-auroc": 0.7}))
    )
    assert message_bytes(answer) - values.nbytes < 3000


def test_whoever_changes_the_scaling_breaks_the_signature():
    plain = Instruction("evaluate", "a", "b", "c", arm="calibrated")
    scaled = dataclasses.replace(plain, scaling=np.array([1.0, 0.0]))
    other = dataclasses.replace(plain, scaling=np.array([1.0, 0.5]))
    assert len({i.signed_bytes() for i in (plain, scaled, other)}) == 3


def test_a_change_and_the_adapter_it_leads_to_arrive_and_are_signed():
    plain = Instruction("train", "a", "b", "c", 2, lineage="run")
    sent = dataclasses.replace(plain, named="d" * 64, numel=7, change=np.arange(9, dtype=np.uint8))
    got = instruction_from_records("train.round", through_the_network(instruction_to_records(sent)))
    assert got.signed_bytes() == sent.signed_bytes()
    assert got.change.tolist() == [*range(9)] and (got.named, got.numel, got.lineage) == ("d" * 64, 7, "run")
    others = (
        {"change": sent.change[::-1]},
        {"change": None},
        {"named": "e" * 64},
        {"numel": 8},
        {"lineage": "x"},
    )
    signed = {dataclasses.replace(sent, **other).signed_bytes() for other in others}
    assert len(signed | {sent.signed_bytes()}) == 6


def objects(records):
    """Return what Flower makes a request for each of, by kind."""
    return Counter(type(part).__name__ for part in get_all_nested_objects(message(records)).values())


def test_small_arrays_cost_no_object_of_their_own():
    values = np.arange(9, dtype=np.float32)
    residual = {f"blocks.{k}.attn.qkv.left": values.reshape(3, 3) + k for k in range(24)}
    sent = Instruction("train", "a", "b", "c", 2, values, change=values, residual=residual)
    assert objects(instruction_to_records(sent)) == {"Message": 1, "RecordDict": 1, "ConfigRecord": 1}
    told = objects(answer_to_records(Answer("north", update=values, metrics={"loss": 0.5})))
    assert told == {"Message": 1, "RecordDict": 1, "ConfigRecord": 1}


def test_large_arrays_are_flower_s_and_cut_in_chunks():
    values = np.random.default_rng(0).random(4 << 20).astype(np.float32)
    sent = Instruction("evaluate", "a", "b", "c", 2, values, scaling=np.array([1.0, 0.0]))
    records = instruction_to_records(sent)
    assert objects(records)["ArrayChunk"] == 5
    got = instruction_from_records("evaluate.arm", through_the_network(records, "evaluate.arm"))
    assert same(got.adapter, values) and same(got.scaling, sent.scaling)
    answer = answer_to_records(Answer("north", update=values))
    assert objects(answer)["ArrayChunk"] == 4
    assert same(answer_from_records(through_the_network(answer)).update, values)


@pytest.mark.parametrize("over", [0, 1])
def test_arrays_are_inside_up_to_a_size_with_their_headers(over):
    def of(size):
        values = np.zeros(size - len(Array(np.zeros(0, np.uint8)).data) + over, np.uint8)
        assert len(Array(values).data) == size + over
        return values

    sent = Answer("north", update=of(WHOLE["answer"]))
    records = answer_to_records(sent)
    assert bool(records.array_records) == bool(over)
    assert same(answer_from_records(through_the_network(records)).update, sent.update)
    asked = Instruction("train", "a", "b", "c", 2, change=of(WHOLE["instruction"]))
    records = instruction_to_records(asked)
    assert bool(records.array_records) == bool(over)
    got = instruction_from_records("train.round", through_the_network(records))
    assert got.signed_bytes() == asked.signed_bytes()


def test_large_arrays_of_many_instructions_are_the_same_objects():
    """Flower's SuperLink then keeps one copy, and the ServerApp sends one."""
    values = np.random.default_rng(0).random(1 << 20).astype(np.float32)
    north, south = (
        get_all_nested_objects(
            message(instruction_to_records(Instruction("train", "a", "b", "c", 2, values, site=s)))
        )
        for s in ("north", "south")
    )
    shared = north.keys() & south.keys()
    assert {type(north[name]).__name__ for name in shared} == {"ArrayRecord", "Array", "ArrayChunk"}


def test_an_error_has_a_size_too():
    assert 0 < message_bytes(message(error=Error(code=5, reason="gone"))) < FRAMING


# ---------------------------------------------------------------------- what is not ours


def good():
    return answer_to_records(Answer("north", update=np.ones(3, dtype=np.float32), metrics={"loss": 1.0}))


def told(**fields):
    return ConfigRecord({"site": "n", "code": "", **fields})


def array(values=(1.0,)):
    return Array(np.array(values, dtype=np.float32))


def spoil(name, record):
    records = good()
    records[name] = record
    return records


def beside(arrays):
    """Return an answer whose arrays are a record of their own."""
    return RecordDict({"answer": told(), "arrays": arrays})


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(RecordDict(), id="empty"),
        pytest.param(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), id="no site"),
        pytest.param(spoil("answer", told(site=3)), id="a site that is no name"),
        pytest.param(spoil("answer", ConfigRecord({"code": ""})), id="a nameless site"),
        pytest.param(spoil("answer", ConfigRecord({"site": "n"})), id="no code"),
        pytest.param(spoil("answer", MetricRecord({"site": 1})), id="an answer of another kind"),
        pytest.param(spoil("answer", told(mrn="7")), id="more about the site"),
        pytest.param(spoil("answer", told(note=b"Doe")), id="bytes that are no array"),
        pytest.param(spoil("answer", told(code="No file P01.dcm")), id="words for a code"),
        pytest.param(spoil("answer", told(code=3)), id="a number for a code"),
        pytest.param(spoil("answer", told(**{"array.more": array().data})), id="another array"),
        pytest.param(spoil("answer", told(**{"array.update": "words"})), id="words for an array"),
        pytest.param(spoil("answer", told(**{"array.update": [array().data]})), id="a list for an array"),
        pytest.param(spoil("patients", ConfigRecord({"ids": "1 2"})), id="an extra record"),
        pytest.param(spoil("weights", ArrayRecord({"update": array()})), id="an extra array record"),
        pytest.param(spoil("arrays", ArrayRecord({"update": array()})), id="an update inside and one beside"),
        pytest.param(
            beside(ArrayRecord({"update": array(), "more": array()})), id="an extra array beside the update"
        ),
        pytest.param(beside(ArrayRecord({"other": array()})), id="another array beside"),
        pytest.param(beside(MetricRecord({"update": 1.0})), id="arrays of another kind"),
        pytest.param(spoil("metrics", MetricRecord({"loss": 1.0})), id="metrics of their own"),
        pytest.param(spoil("answer", told(name="Doe^Jane")), id="a metric that is a name"),
        pytest.param(spoil("answer", told(names=["Doe^Jane"])), id="a metric that is names"),
        pytest.param(spoil("answer", told(kept=True)), id="a metric that is true"),
    ],
)
def test_a_reply_that_is_not_ours_is_refused(records):
    with pytest.raises(SchemaError):
        answer_from_records(through_the_network(records))


PICKLED = Array(
    "object",
    (1,),
    "numpy.ndarray",
    b"\x93NUMPY\x01\x00F\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }             \nx",
)
HUGE = Array(
    "float32",
    (2**60,),
    "numpy.ndarray",
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    + b" " * 45
    + b"\n",
)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(Array("float32", (3,), "numpy.ndarray", b"not an array"), id="garbage"),
        pytest.param(Array("float32", (3,), "numpy.ndarray", b""), id="nothing"),
        pytest.param(Array("float32", (3,), "numpy.ndarray", array([1.0] * 99).data[:-4]), id="cut short"),
        pytest.param(Array("float32", (3,), "torch.tensor", array().data), id="another serialisation"),
        pytest.param(PICKLED, id="a pickle"),
        pytest.param(HUGE, id="larger than memory"),
        pytest.param(Array("float32", (3,), "numpy.ndarray", b"PK\x03\x04" + b"\0" * 40), id="a zip"),
    ],
)
def test_an_array_that_cannot_be_read_is_a_schema_error_and_not_a_crash(broken):
    with pytest.raises(SchemaError):
        answer_from_records(through_the_network(beside(ArrayRecord({"update": broken}))))
    records = instruction_to_records(Instruction("train", "a", "b", "c"))
    records["arrays"] = ArrayRecord({"adapter": broken})
    with pytest.raises(SchemaError):
        instruction_from_records("train.round", through_the_network(records))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"not an array", id="garbage"),
        pytest.param(b"", id="nothing"),
        pytest.param(array([1.0] * 99).data[:-4], id="cut short"),
        pytest.param(PICKLED.data, id="a pickle"),
        pytest.param(HUGE.data, id="larger than memory"),
        pytest.param(b"PK\x03\x04" + b"\0" * 40, id="a zip"),
    ],
)
def test_bytes_that_are_no_array_are_a_schema_error_and_not_a_crash(data):
    with pytest.raises(SchemaError):
        answer_from_records(through_the_network(spoil("answer", told(**{"array.update": data}))))
    with pytest.raises(SchemaError):
        instruction_from_records("train.round", through_the_network(asked(adapter=data)))


def asked(**arrays):
    """Return an instruction with other arrays than its own, as bytes."""
    records = instruction_to_records(Instruction("train", "a", "b", "c", 1))
    for name, data in arrays.items():
        records.config_records["instruction"][f"array.{name}"] = data
    return records


def instructed(fields):
    return RecordDict({"instruction": ConfigRecord(fields)})


SOUND = {"round": 1, "plan-digest": "a", "code-digest": "b", "base-digest": "c", "arm": "", "split": "test"}


@pytest.mark.parametrize(
    ("message_type", "records"),
    [
        pytest.param("train.round", RecordDict(), id="empty"),
        pytest.param("train.other", asked(), id="another stage"),
        pytest.param("train.round", instructed({"round": 1}), id="no digests"),
        pytest.param("train.round", instructed(SOUND | {"round": "x"}), id="a round that is no number"),
        pytest.param("train.round", asked(other=array().data), id="another array"),
        pytest.param("train.round", asked(adapter="words"), id="words for an array"),
    ],
)
def test_an_instruction_that_is_not_ours_is_refused(message_type, records):
    with pytest.raises(SchemaError):
        instruction_from_records(message_type, records)
