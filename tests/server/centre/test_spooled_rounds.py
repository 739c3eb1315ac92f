"""A round whose updates lie on disk is the round that has them in memory, and keeps nothing of either."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from common.adapter import AdapterState
from common.protocol import Instruction
from server.exchange import ask
from server.measures import from_record
from server.rounds import train_rounds
from server.spool import Spool

SITES = ("east", "north", "south")


@pytest.fixture
def state():
    return AdapterState({"w": torch.zeros(2)}, {})


def test_rounds_from_disk_are_rounds_from_memory(centre, make_config, state, tmp_path, monkeypatch):
    digests, kept = [], []
    for place, held in (("memory", 1 << 20), ("disk", 0)):
        monkeypatch.setattr("server.rounds.Spool", partial(Spool, held=held))
        federation = centre.federation(make_config, rounds__sites=3, rounds__count=2)
        federation.enrol()
        done = train_rounds(federation, state, tmp_path / place)
        digests.append([one.state.digest() for one in done])
        kept.append([(one.record["update_norm"], one.record["payload"], one.record["mean"]) for one in done])
        assert sorted(path.name for path in (tmp_path / place).iterdir()) == ["round-0001", "round-0002"]
    assert digests[0] == digests[1] and kept[0] == kept[1]
    norms, payload, mean = kept[0][0]
    assert norms == pytest.approx(dict.fromkeys(SITES, np.sqrt(0.02)))
    assert payload == dict.fromkeys(SITES, 8) and mean == "weighted"


def test_a_median_counts_each_site_once(centre, nodes, make_config, honest, state, tmp_path):
    """South says it has all the studies it may, and sends ten times as much."""

    def loud(instruction):
        answer = honest("south")(instruction)
        if answer.update is not None:
            answer.update[:] = 10.0
        return answer

    centre.hall.deeds[nodes["south"]] = loud
    moved = {}
    for mean in ("weighted", "median"):
        federation = centre.federation(
            make_config, rounds__sites=3, rounds__quorum=3, rounds__count=1, strategy__mean=mean
        )
        federation.enrol()
        (done,) = train_rounds(federation, state, tmp_path / mean)
        moved[mean] = done.state.tensors["w"].tolist()
        shares = {m.site: m.value for m in from_record(done.record) if m.name == "weight"}
        assert shares == pytest.approx(dict.fromkeys(SITES, 1 / 3))
    assert moved["median"] == pytest.approx([0.1, 0.1])
    assert moved["weighted"] == pytest.approx([3.4, 3.4])


def test_nothing_keeps_the_updates_once_they_were_taken(centre, nodes):
    """A round of a thousand sites must not hold a thousand updates."""
    seen = []

    def take(reply):
        assert reply.answer.update.shape == (2,)
        seen.append((reply.node, reply.answer.metrics["loss"], weakref.ref(reply.answer.update)))

    exchange = ask(centre.line(), nodes.values(), Instruction("train", "p", "c", "b", round=1), 5, take)
    assert len(seen) == 3
    for node, loss, _ in seen:
        assert exchange.replies[node].answer.update is None
        assert exchange.replies[node].answer.metrics["loss"] == loss
    gc.collect()
    assert [update() for _, _, update in seen] == [None] * 3
