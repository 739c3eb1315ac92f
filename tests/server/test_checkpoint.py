"""A round is on disk whole or not at all, and what is on disk is what was committed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from common.adapter import AdapterState, Factors
from common.errors import CheckpointError
from server import checkpoint as module
from server.checkpoint import Checkpoint, commit, committed, read, sound_rounds

PLAN = "a" * 64


def make(number, seed=None):
    generator = torch.Generator().manual_seed(number if seed is None else seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    state = AdapterState({"w": draw(3, 2), "head": draw(4)}, {"fc": Factors(draw(5, 1), draw(1, 3))})
    memory = {"m:w": draw(3, 2).double(), "v:w": draw(3, 2).double()}
    return Checkpoint(number, state, memory, {"round": number, "returned": ["a"], "loss": {"a": 0.5}})


def same(a, b):
    return (
        (a.round, a.record) == (b.round, b.record)
        and a.state.digest() == b.state.digest()
        and a.memory.keys() == b.memory.keys()
        and all(torch.equal(a.memory[n], b.memory[n]) for n in a.memory)
        and all(a.memory[n].dtype == b.memory[n].dtype for n in a.memory)
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "checkpoints"
    for number in (1, 2, 3):
        commit(folder, make(number), PLAN)
    return folder


@pytest.fixture
def folder(template, tmp_path):
    """Three committed rounds."""
    return shutil.copytree(template, tmp_path / "checkpoints")


def test_what_was_committed_is_read(folder):
    assert committed(folder) == [1, 2, 3]
    for number in (1, 2, 3):
        assert same(read(folder, number, PLAN), make(number))
    assert not list(folder.rglob(".*"))


def test_an_empty_memory_and_an_empty_folder(tmp_path):
    assert committed(tmp_path / "none") == []
    assert list(sound_rounds(tmp_path / "none", PLAN)) == []
    bare = Checkpoint(1, AdapterState({"w": torch.ones(1)}, {}), {}, {"round": 1})
    commit(tmp_path, bare, PLAN)
    assert same(read(tmp_path, 1, PLAN), bare)


def test_committing_again_replaces_the_round(folder):
    commit(folder, make(3, seed=99), PLAN)
    assert same(read(folder, 3, PLAN), make(3, seed=99))


class Killed(BaseException):
    pass


WRITES = {"replace": 4, "fsync": 7}
"""What one commit takes: a rename per file and one of the folder; a flush per file and per folder."""


@pytest.mark.parametrize(("step", "call"), [(s, c) for s, n in WRITES.items() for c in range(n + 1)])
def test_a_kill_at_any_write_leaves_the_round_out_or_whole(folder, monkeypatch, step, call):
    calls = 0
    original = getattr(module.os, step)

    def count(*args):
        nonlocal calls
        if calls == call:
            raise Killed
        calls += 1
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, step, count)
        try:
            commit(folder, make(4), PLAN)
        except Killed:
            assert committed(folder) in ([1, 2, 3], [1, 2, 3, 4])
        else:
            assert call == WRITES[step]
    rounds = list(sound_rounds(folder, PLAN))
    assert len(rounds) in (3, 4)
    assert all(same(checkpoint, make(i)) for i, checkpoint in enumerate(rounds, start=1))
    commit(folder, make(4), PLAN)
    assert same(read(folder, 4, PLAN), make(4))
    assert committed(folder) == [1, 2, 3, 4]


def test_what_a_kill_left_behind_is_ignored_and_overwritten(folder):
    stray = folder / ".round-0004"
    stray.mkdir()
    (stray / ".adapter.safetensors.x1y2").write_bytes(b"half")
    (stray / "manifest.json").write_text("{}")
    assert committed(folder) == [1, 2, 3]
    assert len(list(sound_rounds(folder, PLAN))) == 3
    commit(folder, make(4), PLAN)
    assert same(read(folder, 4, PLAN), make(4))
    assert sorted(p.name for p in (folder / "round-0004").iterdir()) == [
        "adapter.safetensors", "manifest.json", "memory.safetensors",
    ]  # fmt: skip


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def rewrite(place, **changes):
    file = place / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def unlist(place, key):
    file = place / "manifest.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))


DAMAGE = {
    "one bit of the adapter": lambda p: flip(p / "adapter.safetensors"),
    "one bit of the memory": lambda p: flip(p / "memory.safetensors"),
    "a file cut short": lambda p: (p / "adapter.safetensors").write_bytes(b""),
    "a file gone": lambda p: (p / "memory.safetensors").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "half a manifest": lambda p: (p / "manifest.json").write_text('{"round": 2'),
    "another manifest": lambda p: (p / "manifest.json").write_text("[]"),
    "an empty manifest": lambda p: (p / "manifest.json").write_text("{}"),
    "no plan": lambda p: unlist(p, "plan"),
    "no record": lambda p: unlist(p, "record"),
    "no file listed": lambda p: rewrite(p, sha256={}),
    "another round's number": lambda p: rewrite(p, round=7),
    "the round gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_round_is_noticed_and_it_and_what_follows_dropped(folder, damage):
    damage(folder / "round-0002")
    with pytest.raises(CheckpointError, match="round-0002"):
        read(folder, 2, PLAN)
    rounds = list(sound_rounds(folder, PLAN))
    assert [checkpoint.round for checkpoint in rounds] == [1]
    assert committed(folder) == [1]
    assert same(read(folder, 1, PLAN), make(1))


def test_a_round_in_another_s_place_is_noticed(folder):
    shutil.rmtree(folder / "round-0002")
    (folder / "round-0003").rename(folder / "round-0002")
    assert [checkpoint.round for checkpoint in sound_rounds(folder, PLAN)] == [1]


def test_another_plan_s_rounds_are_refused_and_kept(folder):
    with pytest.raises(CheckpointError, match="another plan") as caught:
        list(sound_rounds(folder, "b" * 64))
    assert caught.value.found == f"{'a' * 12}, expected {'b' * 12}"
    assert committed(folder) == [1, 2, 3]


def test_what_is_no_round_is_left_alone(folder):
    (folder / "round-notes").write_text("mine")
    assert committed(folder) == [1, 2, 3]
    assert len(list(sound_rounds(folder, PLAN))) == 3
