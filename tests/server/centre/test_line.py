"""A centre asks over an unsteady line: signed and numbered, once counted, never without an end."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from common.errors import QuorumError, RunError, SignatureError
from common.protocol import Answer, Instruction
from common.signing import public_text, verify
from server.centre.line import LONGEST, SHORTEST
from server.exchange import ask
from server.ledger import Ledger
from server.rounds import train_rounds

TRAIN = Instruction("train", "p", "c", "b", round=1)


def asked(centre, node):
    return [instruction for to, instruction in centre.hall.asked if to == node]


# ------------------------------------------------------------------ signing


def test_every_site_gets_an_instruction_of_its_own(centre, nodes):
    ask(centre.line(), nodes.values(), replace(TRAIN, committed=4), 5)
    public = public_text(centre.key)
    numbers = set()
    for name, node in nodes.items():
        (got,) = asked(centre, node)
        assert (got.site, got.run, got.committed) == (name, "77", 4)
        verify(public, got.signed_bytes(), got.signature)
        numbers.add(got.sequence)
        for other in nodes:
            if other != name:
                with pytest.raises(SignatureError):
                    verify(public, replace(got, site=other).signed_bytes(), got.signature)
    assert len(numbers) == 3 and min(numbers) > 0


def test_numbers_never_go_back_not_even_after_a_restart(centre, nodes, tmp_path):
    for _ in range(2):
        ask(centre.line(), [nodes["north"]], TRAIN, 5)
    centre.ledger.close()
    centre.ledger = Ledger(tmp_path / "ledger.sqlite")
    ask(centre.line(), [nodes["north"]], TRAIN, 5)
    numbers = [instruction.sequence for instruction in asked(centre, nodes["north"])]
    assert numbers == sorted(set(numbers)) and len(numbers) == 3


def test_a_node_nobody_admitted_is_not_asked(centre, nodes):
    centre.hall.online.add(999)
    assert centre.line().present() == [nodes[name] for name in ("east", "north", "south")]


def test_it_looks_for_answers_often_at_first_and_seldom_in_a_long_round(centre, nodes):
    line = centre.line()
    ask(line, nodes.values(), TRAIN, 5)
    assert line.poll == SHORTEST
    line._moved -= 3600.0
    assert line.pull(["nothing"]) == []
    assert line.poll == LONGEST
    ask(line, nodes.values(), TRAIN, 5)
    assert line.poll == SHORTEST


# ------------------------------------------------------------------ losses


def test_a_site_that_was_lost_is_asked_again_and_counted_once(centre, nodes, honest):
    node = nodes["north"]
    centre.hall.online.discard(node)
    threading.Timer(0.3, centre.hall.online.add, [node]).start()
    lost = []
    exchange = ask(centre.line(), nodes.values(), TRAIN, 5, on_lost=lambda n, code: lost.append((n, code)))
    assert exchange.missing == () and set(exchange.replies) == set(nodes.values())
    assert set(lost) == {(node, "E_NODE_5")}
    assert all(not reply.code for reply in exchange.replies.values())


@pytest.mark.parametrize("code", [3, 4, 5])
def test_an_answer_lost_on_the_way_is_asked_for_under_a_new_number(centre, nodes, honest, code):
    node, first = nodes["south"], [code]
    centre.hall.deeds[node] = lambda i: first.pop() if first else honest("south")(i)
    exchange = ask(centre.line(), [node], TRAIN, 5)
    assert exchange.replies[node].answer is not None
    one, two = asked(centre, node)
    assert two.sequence > one.sequence
    assert exchange.down > 0 and replace(one, sequence=0, signature="") == replace(
        two, sequence=0, signature=""
    )


@pytest.mark.parametrize("crash", [8, Answer("south", code="E_WORKER")])
def test_a_site_that_keeps_crashing_is_left_out(centre, nodes, crash):
    node = nodes["south"]
    centre.hall.deeds[node] = lambda instruction: crash
    exchange = ask(centre.line(), [node], TRAIN, 5)
    assert exchange.replies[node].code in ("E_NODE_8", "E_WORKER")
    assert len(asked(centre, node)) == 3


def test_a_refusal_is_an_answer_and_not_asked_again(centre, nodes):
    node = nodes["south"]
    centre.hall.deeds[node] = lambda instruction: Answer("south", code="E_POLICY")
    assert ask(centre.line(), [node], TRAIN, 5).replies[node].code == "E_POLICY"
    assert len(asked(centre, node)) == 1


def test_a_silent_site_is_missing_at_the_deadline(centre, nodes):
    centre.hall.deeds[nodes["east"]] = lambda instruction: None
    began = time.monotonic()
    exchange = ask(centre.line(), nodes.values(), TRAIN, 0.5)
    assert exchange.missing == (nodes["east"],)
    assert 0.5 <= time.monotonic() - began < 2


def test_a_site_revoked_while_it_is_waited_for_is_missing_at_once(centre, nodes):
    node = nodes["north"]
    centre.hall.online.discard(node)
    threading.Timer(0.2, centre.registry.revoke, ["north"]).start()
    began = time.monotonic()
    assert ask(centre.line(), [node], TRAIN, 60).missing == (node,)
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------ the SuperLink itself


def test_a_superlink_that_is_away_for_a_while_costs_time_and_nothing_else(centre, nodes):
    calls = []

    def dead(call):
        calls.append(call)
        return call != "lost push" and 2 < len(calls) < 40

    centre.hall.dead = dead
    exchange = ask(centre.line(), nodes.values(), TRAIN, 10)
    assert exchange.missing == () and len(exchange.replies) == 3
    assert all(len(asked(centre, node)) == 1 for node in nodes.values())


def test_a_push_whose_answer_was_lost_is_the_same_message_again(centre, nodes):
    lost = [True]
    centre.hall.dead = lambda call: call == "lost push" and bool(lost) and lost.pop()
    exchange = ask(centre.line(), [nodes["north"]], TRAIN, 5)
    assert len(exchange.replies) == 1
    assert len(centre.hall.pushed) == 2 and len(set(centre.hall.pushed)) == 1
    assert len(asked(centre, nodes["north"])) == 1


def test_a_superlink_dead_at_the_deadline_ends_the_run_instead_of_burning_a_round(centre, nodes):
    centre.hall.dead = lambda call: call == "pull"
    began = time.monotonic()
    with pytest.raises(RunError, match="did not answer before the deadline"):
        ask(centre.line(), nodes.values(), TRAIN, 0.4)
    assert time.monotonic() - began < 3


def test_a_run_that_flower_has_ended_says_so(centre, nodes):
    centre.hall.ended = True
    with pytest.raises(RunError, match="ended this run") as caught:
        ask(centre.line(), nodes.values(), TRAIN, 5)
    assert "resume" in caught.value.fix


# ------------------------------------------------------------------ enrolment


def test_enrolment_waits_then_goes_on_with_the_quorum_and_names_who_is_missing(centre, nodes, make_config):
    centre.hall.online.discard(nodes["south"])
    federation = centre.federation(make_config, rounds__sites=3, rounds__quorum=2, rounds__deadline=0.6)
    federation.enrol()
    assert list(federation.sites) == ["east", "north"]
    (waiting,), (refused,) = centre.events("waiting"), centre.events("refused")
    assert waiting.facts["sites"] == ["south"] and "south" in waiting.text
    assert refused.site == "south" and refused.facts["code"] == "E_DEADLINE"


def test_too_few_sites_end_the_run(centre, nodes, make_config):
    centre.hall.online = {nodes["east"]}
    federation = centre.federation(make_config, rounds__sites=3, rounds__quorum=2, rounds__deadline=0.3)
    with pytest.raises(QuorumError) as caught:
        federation.enrol()
    assert caught.value.found == "1 of 3 sites, quorum 2"
    assert {event.site for event in centre.events("refused")} == {"north", "south"}


def test_those_who_are_there_are_asked_while_the_others_are_waited_for(centre, nodes, make_config):
    centre.hall.online = {nodes["north"]}
    threading.Timer(0.4, centre.hall.online.update, [nodes.values()]).start()
    federation = centre.federation(make_config, rounds__sites=3, rounds__quorum=3)
    federation.enrol()
    order = [node for node, _ in centre.hall.asked]
    assert order[0] == nodes["north"] and set(order) == set(nodes.values())
    assert centre.events("enrolled")[0].time < centre.events("waiting")[0].time


def test_an_answer_under_another_name_is_refused(centre, nodes, make_config, honest):
    centre.hall.deeds[nodes["east"]] = honest("north")
    federation = centre.federation(make_config, rounds__sites=3)
    federation.enrol()
    assert list(federation.sites) == ["north", "south"]
    (refused,) = centre.events("refused")
    assert refused.site == "east" and refused.facts["code"] == "E_SITE" and "another name" in refused.text


def test_a_site_that_turns_into_another_later_is_left_out(centre, nodes, make_config, honest, state):
    def turn(instruction):
        return honest("north" if instruction.stage == "enrol" else "south")(instruction)

    centre.hall.deeds[nodes["north"]] = turn
    federation = centre.federation(make_config, rounds__sites=3, rounds__count=1)
    federation.enrol()
    (checkpoint,) = train_rounds(federation, state, centre_folder(centre))
    assert checkpoint.record["rejected"] == {"north": "E_SITE"}
    assert checkpoint.record["returned"] == ["east", "south"]


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"train-studies": -1},
        {"train-studies": 2.5},
        {"owned": [1, 1]},
        {"owned": [7]},
        {"owned": 1},
        {"patient Zwicky": 1},
        {"quarantined.Zwicky, Ferdinand": 1},
        {"patients": [3]},
    ],
)
def test_an_enrolment_that_cannot_be_is_refused_and_not_written_down(
    centre, nodes, make_config, enrolment, metrics
):
    sound = dict(enrolment("east").metrics)
    bad = Answer("east", metrics={**sound, **metrics} if metrics else {})
    centre.hall.deeds[nodes["east"]] = lambda instruction: bad
    federation = centre.federation(make_config, rounds__sites=3)
    federation.enrol()
    assert list(federation.sites) == ["north", "south"]
    (refused,) = centre.events("refused")
    assert refused.facts["code"] == "E_SCHEMA"
    assert "Zwicky" not in " ".join(event.text for event in centre.ledger.events())


# ------------------------------------------------------------------ rounds


@pytest.fixture
def state():
    import torch

    from common.adapter import AdapterState

    return AdapterState({"w": torch.zeros(2)}, {})


def centre_folder(centre):
    from pathlib import Path

    (row,) = [r for r in centre.ledger._db.execute("PRAGMA database_list") if r[1] == "main"]
    return Path(row[2]).parent / "checkpoints"


def test_a_site_that_comes_back_joins_the_next_round(centre, nodes, make_config, honest, state):
    """South is offline at the start and comes up during round 1."""
    south = nodes["south"]
    centre.hall.online.discard(south)

    def wakes(instruction):
        if instruction.stage == "train":
            centre.hall.online.add(south)
        return honest("north")(instruction)

    centre.hall.deeds[nodes["north"]] = wakes
    federation = centre.federation(make_config, rounds__sites=2, rounds__quorum=2, rounds__count=3)
    federation.enrol()
    done = train_rounds(federation, state, centre_folder(centre))
    assert [c.record["cohort"] for c in done] == [["east", "north"], *[["east", "north", "south"]] * 2]
    assert [event.site for event in centre.events("enrolled")] == ["east", "north", "south"]
    committed = [i.committed for i in asked(centre, nodes["east"]) if i.stage == "train"]
    assert committed == [0, 1, 2]


def test_a_site_silent_in_one_round_is_asked_in_the_next(centre, nodes, make_config, honest, state):
    def sleepy(instruction):
        silent = instruction.stage == "train" and instruction.round == 1
        return None if silent else honest("east")(instruction)

    centre.hall.deeds[nodes["east"]] = sleepy
    federation = centre.federation(
        make_config, rounds__sites=3, rounds__quorum=2, rounds__count=2, rounds__deadline=0.6
    )
    federation.enrol()
    one, two = train_rounds(federation, state, centre_folder(centre))
    assert one.record["missing"] == ["east"] and one.record["returned"] == ["north", "south"]
    assert two.record["returned"] == ["east", "north", "south"]
    assert "east missed the deadline" in centre.events("round")[0].text


def test_a_revoked_site_is_not_asked_in_the_next_round(centre, nodes, make_config, honest, state):
    def leaves(instruction):
        if instruction.stage == "train":
            centre.registry.revoke("south")
            time.sleep(0.1)
        return honest("north")(instruction)

    centre.hall.deeds[nodes["north"]] = leaves
    federation = centre.federation(make_config, rounds__sites=3, rounds__count=2)
    federation.enrol()
    one, two = train_rounds(federation, state, centre_folder(centre))
    assert "south" in one.record["cohort"] and two.record["cohort"] == ["east", "north"]
    assert [node for node, i in centre.hall.asked if i.round == 2] == [nodes["east"], nodes["north"]]


def test_a_site_that_is_gone_for_good_costs_one_deadline_and_not_every_round(
    centre, nodes, make_config, honest, state
):
    def dies(instruction):
        if instruction.stage == "train":
            centre.hall.online.discard(nodes["east"])
            return None
        return honest("east")(instruction)

    centre.hall.deeds[nodes["east"]] = dies
    federation = centre.federation(
        make_config, rounds__sites=3, rounds__quorum=2, rounds__count=4, rounds__deadline=1.0
    )
    federation.enrol()
    began = time.monotonic()
    done = train_rounds(federation, state, centre_folder(centre))
    assert time.monotonic() - began < 4
    assert [c.record["missing"] for c in done] == [["east"], [], [], []]
    assert [c.record["cohort"] for c in done[1:]] == [["north", "south"]] * 3
    assert all(event.text.endswith("without east") for event in centre.events("asked")[1:])


def test_below_the_quorum_a_round_waits_for_the_site_that_is_gone(centre, nodes, make_config, honest, state):
    """Else the remaining rounds would be abandoned within a moment."""
    east = nodes["east"]

    def leaves(instruction):
        if instruction.stage == "train" and instruction.round == 1:
            centre.hall.online.discard(east)
            threading.Timer(1.5, centre.hall.online.add, [east]).start()
            return None
        return honest("east")(instruction)

    centre.hall.deeds[east] = leaves
    federation = centre.federation(
        make_config, rounds__sites=3, rounds__quorum=3, rounds__count=2, rounds__deadline=1.0
    )
    federation.enrol()
    one, two = train_rounds(federation, state, centre_folder(centre))
    assert one.record["status"] == "abandoned"
    assert two.record["returned"] == ["east", "north", "south"]
