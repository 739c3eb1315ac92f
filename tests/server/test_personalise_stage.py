"""What a site may say of its personalisation, and plans that are refused before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.errors import SchemaError, TargetError
from common.protocol import Answer
from server.personalise_stage import check_personalise, told_by

GOOD: dict[str, Any] = {"kept": 1, "steps": 9, "validation-before": 0.5, "validation-auroc": 0.75}


def test_what_is_said_is_taken_as_it_stands() -> None:
    told = told_by(Answer("north", metrics=GOOD))
    assert told == {"kept": True, "steps": 9, "before": 0.5, "after": 0.75}
    assert told_by(Answer("north", metrics={"kept": 0, "steps": 0})) == {"kept": False, "steps": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"kept": 2}, {"kept": 1.0}, {"kept": None}, {"steps": -1}, {"steps": 1.5}, {"steps": [9]},
        {"validation-auroc": 1.5}, {"validation-auroc": float("nan")}, {"validation-before": [0.5]},
        {"validation-before": 1}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        told_by(Answer("north", metrics={**GOOD, **change}))


def test_a_personal_part_that_came_along_is_refused() -> None:
    with pytest.raises(SchemaError):
        told_by(Answer("north", update=np.zeros(3, dtype=np.float32), metrics=GOOD))


def test_a_plan_that_this_model_cannot_carry_out_is_refused(make_model: Any) -> None:
    cnn = {"model__backbone": "timm:test_resnet", "pet__method": "norm"}
    with pytest.raises(TargetError, match="linear layers"):
        check_personalise(make_model(**cnn, personalise__method="dual"))
    check_personalise(make_model(**cnn, personalise__method="ditto"))
    check_personalise(make_model(personalise__method="dual"))
