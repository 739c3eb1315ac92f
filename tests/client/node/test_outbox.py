"""The journal: whatever line a process dies at, what lies there is whole."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from client.node import outbox as module
from client.node.outbox import Entry, Outbox
from common.errors import SchemaError
from common.files import write_atomic


def named(*contents: bytes) -> dict[str, bytes]:
    return {hashlib.sha256(content).hexdigest(): content for content in contents}


ASKED, ANSWERED = named(b"root", b"left", b"right"), named(b"reply", b"update")


def tree_of(objects: Mapping[str, bytes]) -> ObjectTree:
    root, *children = objects
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=child) for child in children])


def message(name: str, ttl: float = 3600.0) -> MessageProto:

    return MessageProto(metadata=Metadata(message_id=name, run_id=7, created_at=time.time(), ttl=ttl))


def go_through(outbox: Outbox) -> None:
    """All steps of one message, as the seam takes them; what is done is not done again."""
    root = next(iter(ASKED))
    entry = outbox.take(message(root), tree_of(ASKED))
    if entry.state == "arriving":
        for object_id, content in ASKED.items():
            if not entry.has(object_id):
                entry.put(object_id, content)
        entry.note(state="here")
    if entry.state == "here":
        entry.note(state="accepted")
    if entry.state == "accepted":
        entry.answer(message(next(iter(ANSWERED))), tree_of(ANSWERED), ANSWERED)
    if entry.state == "answered":
        entry.note(state="audited")
    entry.drop()


def check_whole(entry: Entry) -> None:
    assert {part.object_id for part in iterate_object_tree(entry.tree)} == set(ASKED)
    assert entry.request.metadata.run_id == 7
    if entry.state != "arriving":
        assert {name: entry.object(name) for name in ASKED} == ASKED
    if entry.state in ("answered", "audited"):
        assert entry.replies() == ANSWERED
        assert entry.reply.messages_list[0].metadata.message_id == next(iter(ANSWERED))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_that_dies_at_any_write_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    writes = 0
    dies_at = -1

    def dying(path: Path, data: bytes, mode: int = 0o600) -> None:
        nonlocal writes
        writes += 1
        if writes == dies_at and not after:
            raise KeyboardInterrupt
        write_atomic(path, data, mode)
        if writes == dies_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomic", dying)
    go_through(Outbox(tmp_path / "all"))
    total = writes
    assert total >= 8
    for dies_at in range(1, total + 1):
        writes, folder = 0, tmp_path / f"{dies_at}"
        with pytest.raises(KeyboardInterrupt):
            go_through(Outbox(folder))
        again = Outbox(folder)
        for entry in again.entries():
            check_whole(entry)
        go_through(again)
        assert list((folder / "messages").iterdir()) == []


def test_entries_come_in_the_order_they_arrived(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    names = [f"{n:064x}" for n in (9, 3, 7)]
    for name in names:
        outbox.take(message(name), ObjectTree(object_id=name))
    assert [entry.message_id for entry in Outbox(tmp_path).entries()] == names
    assert outbox.find(names[1]) == Entry(tmp_path / "messages" / names[1])
    assert outbox.find("f" * 64) is None


@pytest.mark.parametrize("name", ["", "x", "../" * 20 + "a" * 4, "A" * 64])
def test_a_message_with_a_strange_name_is_not_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match="no proper name"):
        Outbox(tmp_path).take(message(name), ObjectTree(object_id=name))


def test_an_object_must_be_what_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Outbox(tmp_path).take(message("a" * 64), tree_of(ASKED))
    (left,) = named(b"left")
    with pytest.raises(SchemaError, match="not what its name says"):
        entry.put(left, b"right")
    monkeypatch.setattr(module, "MAX_INSTRUCTION", 5)
    entry.put(left, b"left")
    with pytest.raises(SchemaError, match="larger than any may be"):
        entry.put(*next(iter(named(b"right").items())))


def test_a_damaged_entry_is_set_aside_and_stops_nobody(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    damage: list[Callable[[Path], object]] = [
        lambda path: (path / "state.json").write_text("{"),
        lambda path: (path / "request.pb").unlink(),
        lambda path: (path / "request.pb").write_bytes(b"\xff\xff\xff"),
    ]
    for number, spoil in enumerate(damage):
        entry = outbox.take(message(f"{number:064x}"), ObjectTree(object_id="a"))
        spoil(entry.path)
    outbox.take(message("e" * 64), ObjectTree(object_id="a"))
    assert [entry.message_id for entry in Outbox(tmp_path).entries()] == ["e" * 64]
    assert len(list(outbox.folder.glob(".damaged-*"))) == 3


def test_an_instruction_expires(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    assert not outbox.take(message("a" * 64), ObjectTree(object_id="a")).expired()
    assert outbox.take(message("b" * 64, ttl=-1), ObjectTree(object_id="b")).expired()
