"""An honest answer of a site, and ways to change it before the gate sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from client.gate.egress import check_answer
from client.gate.policy import Policy, parse_policy
from client.site import SiteConfig
from common.config import RunConfig
from common.errors import EgressError
from common.protocol import MESSAGE_TYPES, Answer, Instruction

POLICY = parse_policy({"asked": {"stages": tuple(MESSAGE_TYPES)}})

SCALING = np.array([1.0, 0.5, np.nan, 2.0, 0.0, 0.3, np.nan, -0.5])
"""Slopes, then biases, of the four findings; pneumothorax is not asked for."""

ACCESSION = 20260417001234

PLAN: dict[str, Any] = {
    "data": {"findings": ("effusion", "cardiomegaly", "pneumothorax", "edema"), "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"method": "head"},
    "train": {"batch_size": 16},
    "rounds": {"count": 2, "quorum": 2},
    "evaluate": {"replicates": 20, "calibrate": "platt"},
}

ASKED = {
    "enrol": {"stage": "enrol"},
    "train": {"stage": "train", "round": 1},
    "local": {"stage": "local"},
    "federated": {"stage": "evaluate", "arm": "federated"},
    "alone": {"stage": "evaluate", "arm": "local"},
    "validation": {"stage": "evaluate", "arm": "federated", "split": "validation"},
    "calibrate": {"stage": "calibrate", "scaling": SCALING},
}


@dataclasses.dataclass(frozen=True)
class Told:
    """An honest answer, and what it answers."""

    answer: Answer
    instruction: Instruction
    config: RunConfig
    site: SiteConfig

    def check(self, policy: Policy = POLICY, **changes: Any) -> None:
        check_answer(
            dataclasses.replace(self.answer, **changes), self.instruction, self.config, policy, self.site
        )

    def refused(self, policy: Policy = POLICY, **changes: Any) -> str:
        with pytest.raises(EgressError) as caught:
            self.check(policy, **changes)
        return str(caught.value)

    def with_metrics(self, **changes: Any) -> dict[str, Any]:
        return {**self.answer.metrics, **changes}


NAMES = st.sampled_from(sorted(ASKED))

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
