"""An update and a site's own model leave in one form, within the bounds of plan and policy, or not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.gate.egress import answer_bytes, release, withhold
from client.gate.policy import parse_policy
from tests.client.gate.told import ASKED, POLICY, Told, quick


@quick
@given(data=st.data(), bad=st.sampled_from([math.nan, math.inf, -math.inf, 1e6]))
def test_an_update_with_one_wrong_value(honest: dict[str, Told], data: st.DataObject, bad: float) -> None:
    update = np.array(honest["train"].answer.update)
    update[data.draw(st.integers(0, update.size - 1))] = bad
    honest["train"].refused(update=update)


UPDATES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda u: None,
    "one number more": lambda u: np.append(u, np.float32(0)),
    "twice": lambda u: np.concatenate([u, u]),
    "empty": lambda u: u[:0],
    "two-dimensional": lambda u: u.reshape(1, -1),
    "no dimension": lambda u: u[0],
    "double": lambda u: u.astype(np.float64),
    "half": lambda u: u.astype(np.float16),
    "whole numbers": lambda u: u.astype(np.int32),
    "bytes": lambda u: u.view(np.uint8),
    "words": lambda u: np.array(["Doe^Jane"] * u.size),
    "objects": lambda u: np.array([None] * u.size),
    "other byte order": lambda u: u.astype(">f4"),
    "too far": lambda u: np.full_like(u, 100.0),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_of_another_form(honest: dict[str, Told], name: str) -> None:
    told = honest["train"]
    told.refused(update=UPDATES[name](np.array(told.answer.update)))


def test_fewer_numbers_may_leave(honest: dict[str, Told]) -> None:
    """Some methods train a part of the adapter; which part, the centre checks."""
    honest["train"].check(update=np.array(honest["train"].answer.update)[:-1])


@pytest.mark.parametrize("name", [name for name in ASKED if name != "train"])
def test_no_update_where_none_was_asked_for(honest: dict[str, Told], name: str) -> None:
    honest[name].refused(update=np.zeros(3, dtype=np.float32))


def test_plan_and_policy_both_bound_an_update(honest: dict[str, Told]) -> None:
    told = honest["train"]
    norm = float(np.linalg.norm(np.asarray(told.answer.update, dtype=np.float64)))
    assert norm > 0
    tight = parse_policy({"answers": {"max_update_norm": norm / 2}})
    assert "larger than plan and policy" in told.refused(tight)
    strict = told.config.model_copy(
        update={"strategy": told.config.strategy.model_copy(update={"max_update_norm": norm / 2})}
    )
    dataclasses.replace(told, config=strict).refused()
    size = answer_bytes(told.answer)
    told.check(parse_policy({"answers": {"max_bytes": size}}))
    assert "max_bytes" in told.refused(parse_policy({"answers": {"max_bytes": size - 1}}))
    assert "number format" in told.refused(parse_policy({"answers": {"codecs": ("fp16",)}}))


LETS = parse_policy({"answers": {"local_adapter": True}})

MATRIX = {"evaluate": {"matrix": True}}


@pytest.fixture(scope="module")
def own(ask: Callable[..., Told]) -> Told:
    """The site's own model, as a plan with evaluate.matrix asks for it."""
    return ask("local", **MATRIX)


def test_a_site_s_own_model_leaves_where_policy_and_plan_both_say_so(own: Told) -> None:
    assert own.answer.update is not None and own.instruction.adapter is not None
    assert own.answer.update.size == own.instruction.adapter.size
    own.check(LETS)
    assert release(own.answer, own.instruction, own.config, LETS, own.site) == own.answer
    own.refused()
    plain = own.config.model_copy(
        update={"evaluate": own.config.evaluate.model_copy(update={"matrix": False})}
    )
    bare = {k: v for k, v in own.answer.metrics.items() if k != "num-examples"}
    assert "holds an update" in own.refused(metrics=bare)
    assert "holds an update" in dataclasses.replace(own, config=plain).refused(LETS, metrics=bare)


def test_where_policy_keeps_it_the_rest_is_answered(own: Told, honest: dict[str, Told]) -> None:
    out = release(own.answer, own.instruction, own.config, POLICY, own.site)
    assert out == honest["local"].answer and out.update is None and out.metrics["steps"]
    assert withhold(own.answer, own.instruction, own.config, POLICY) == out
    large = dataclasses.replace(own.answer, update=np.full_like(own.answer.update, 100.0))
    assert release(large, own.instruction, own.config, POLICY, own.site) == out


def test_a_site_s_own_model_is_bounded_as_an_update_is(own: Told) -> None:
    update = np.array(own.answer.update)
    for spoil in [*UPDATES.values(), lambda u: u[:-1]]:
        if spoil(update) is not None:
            own.refused(LETS, update=spoil(update))
    bare = {k: v for k, v in own.answer.metrics.items() if k != "num-examples"}
    assert "number of studies behind it" in own.refused(LETS, metrics=bare)
    few = own.with_metrics(**{"num-examples": 10})
    assert "not within 11" in own.refused(LETS, metrics=few)
    own.check(LETS, update=None)
