"""Which round is released: sites report what they received, so a round's figure comes one round later."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.adapter import AdapterState
from common.config import RunConfig
from server.checkpoint import Checkpoint
from server.plan import choose_round

ALIKE = {"a": 10, "b": 10}
BEST, LAST = (RunConfig.from_flat({"rounds.select": s}) for s in ("best-validation", "last"))


def history(*reported):
    """Rounds in which sites reported these scores of the adapter they received."""
    state = AdapterState({"w": torch.zeros(1)}, {})
    return [
        Checkpoint(i, state, {}, {"round": i, "validation_before": scores, "status": "committed"})
        for i, scores in enumerate(reported, start=1)
    ]


def final(**scores):
    return {site: {"macro-auroc": value} for site, value in scores.items()}


@pytest.mark.parametrize(
    ("reported", "last", "chosen"),
    [
        pytest.param([{"a": 0.99}, {"a": 0.6}, {"a": 0.7}], {"a": 0.8}, 3, id="rising"),
        pytest.param([{"a": 0.99}, {"a": 0.6}, {"a": 0.9}], {"a": 0.8}, 2, id="the second was best"),
        pytest.param([{"a": 0.99}, {"a": 0.9}, {"a": 0.7}], {"a": 0.8}, 1, id="the first was best"),
        pytest.param([{"a": 0.99}, {"a": 0.8}, {"a": 0.8}], {"a": 0.8}, 1, id="a tie"),
        pytest.param([{}, {"a": 0.2, "b": 0.9}, {"a": 0.6, "b": 0.6}], {"a": 0.1}, 2, id="the mean of sites"),
        pytest.param([{}, {}, {"a": 0.4}], {}, 2, id="only one round has a figure"),
        pytest.param([{}, {}, {}], {}, 3, id="no figure at all"),
        pytest.param([{"a": 0.9}], {"a": 0.5}, 1, id="one round"),
        pytest.param([{"a": 0.9}, {"a": 0.0}], {}, 1, id="a score of zero is a score"),
    ],
)
def test_the_best_on_validation(reported, last, chosen):
    rounds = history(*reported)
    assert choose_round(BEST, rounds, final(**last), ALIKE).round == chosen
    assert choose_round(LAST, rounds, final(**last), ALIKE).round == len(rounds)


def test_sites_without_a_defined_score_are_left_out():
    rounds = history({}, {"a": 0.7})
    assert choose_round(BEST, rounds, {"a": {"studies": 3}, "b": {"macro-auroc": 0.8}}, ALIKE).round == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_chosen_round_has_the_highest_figure(figures):
    """``figures[r]`` is what the adapter after round r + 1 scores."""
    rounds = history({"a": 1.0}, *({"a": f} for f in figures[:-1]))
    chosen = choose_round(BEST, rounds, final(a=figures[-1]), ALIKE).round
    assert figures[chosen - 1] == max(figures)
    assert max(figures) not in figures[: chosen - 1]


def test_a_site_counts_by_its_validation_studies():
    rounds = history({}, {"a": 0.6, "b": 0.9})
    last = final(a=0.7, b=0.5)
    assert choose_round(BEST, rounds, last, {"a": 1, "b": 1}).round == 1
    assert choose_round(BEST, rounds, last, {"a": 100, "b": 1}).round == 2


def test_an_abandoned_round_is_never_chosen():
    rounds = history({}, {"a": 0.9}, {"a": 0.5})
    rounds[0].record["status"] = "abandoned"
    assert choose_round(BEST, rounds, final(a=0.6), ALIKE).round == 3
