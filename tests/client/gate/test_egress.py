"""The gate on the way out: every honest answer passes, and what policy withholds does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.gate.egress import CODES, check_answer, describe, release, withhold
from client.gate.policy import Policy, parse_policy
from common.errors import EgressError
from common.protocol import MESSAGE_TYPES, Answer, metrics_from_wire
from common.wire import answer_from_records, answer_to_records
from tests.client.gate.told import ACCESSION, ASKED, PLAN, POLICY, Told


@pytest.mark.parametrize("name", ASKED)
def test_every_honest_answer_passes(honest: dict[str, Told], name: str) -> None:
    told = honest[name]
    assert not told.answer.code, (told.site.data.state / "site.log").read_text()
    told.check()
    over_the_wire = answer_from_records(answer_to_records(told.answer))
    check_answer(over_the_wire, told.instruction, told.config, POLICY, told.site)
    assert release(told.answer, told.instruction, told.config, POLICY, told.site) == told.answer


@pytest.mark.parametrize(
    "sections",
    [
        {"wire": {"codec": "fp16"}},
        {"train": {"steps": 3}},
        {"train": {"epochs": 2, "select": "best-validation"}},
        {"pet": {"method": "lora", "rank": 2}, "lora": {"aggregation": "rolora"}},
        {"pet": {"method": "lora", "rank": 2}, "lora": {"aggregation": "ffa"}},
        {"pet": {"method": "norm"}},
        {"data": {"fraction": 0.5}},
        {"data": {"shots": 12}},
    ],
    ids=str,
)
def test_honest_answers_to_other_plans_pass(ask: Callable[..., Told], sections: dict[str, Any]) -> None:
    for name in ("enrol", "train", "local", "alone"):
        told = ask(name, **sections)
        assert not told.answer.code
        told.check()


def test_the_site_is_what_these_tests_need(honest: dict[str, Told]) -> None:
    assert honest["enrol"].answer.metrics["quarantined.not-an-image"] == 1
    metrics, gains = metrics_from_wire(honest["federated"].answer.metrics, PLAN["data"]["findings"])
    assert metrics.findings["effusion"].positives > 11 and metrics.findings["effusion"].auroc is not None
    for finding in ("pneumothorax", "edema"):
        assert metrics.findings[finding].positives == metrics.findings[finding].negatives == 0
    assert set(gains) == {"effusion", "cardiomegaly", "macro"}
    assert "validation-auroc" in honest["train"].answer.metrics


def test_a_validation_score_rests_on_no_small_cell(ask: Callable[..., Told], honest: dict[str, Told]) -> None:
    """Whoever chooses the adapter could read single studies from a ranking of one among few."""
    evaluated = honest["validation"].answer.metrics
    assert honest["train"].answer.metrics["validation-auroc"] == evaluated["macro-auroc"]
    rare = ask("train", data={"findings": ("pneumothorax",)})
    assert not rare.answer.code and not [key for key in rare.answer.metrics if key.startswith("validation")]


def test_a_round_s_figures_by_finding_are_those_of_an_evaluation(honest: dict[str, Told]) -> None:
    """The two ways of measuring one adapter on the validation studies agree, and are silent on the same."""
    told, evaluated = honest["train"].answer.metrics, honest["validation"].answer.metrics
    names = ("auroc", "pr-auc", "ece", "positives", "negatives")
    by_finding = {key for key in told if key.startswith("validation.")}
    assert by_finding == {f"validation.{f}.{n}" for f in ("effusion", "cardiomegaly") for n in names}
    assert {key: told[key] for key in by_finding} == {
        key: evaluated[key.removeprefix("validation.")] for key in by_finding
    }


def test_the_default_policy_sends_no_sums(honest: dict[str, Told]) -> None:
    assert "calibrate" in honest["calibrate"].refused(Policy())
    plain = honest["calibrate"].config.evaluate.model_copy(update={"calibrate": "none"})
    none = honest["calibrate"].config.model_copy(update={"evaluate": plain})
    assert "may not hold" in dataclasses.replace(honest["calibrate"], config=none).refused()


def test_an_answer_is_this_sites(honest: dict[str, Told]) -> None:
    for name in ASKED:
        honest[name].refused(site="south")
    honest["enrol"].refused(site="north\x00Doe^Jane")


def test_a_code_stands_alone_and_is_one_of_ours(honest: dict[str, Told]) -> None:
    told = honest["train"]
    alone: dict[str, Any] = {"metrics": {}, "update": None}
    for code in ("E_POLICY", "E_INTERNAL", "E_TABLE", "E_WORKER", "E_EGRESS"):
        assert code in CODES
        told.check(code=code, **alone)
    for code in ("E_DOE_JANE", "e_policy", "Doe", " ", "E_POLICY\n"):
        told.refused(code=code, **alone)
    told.refused(code="E_POLICY", metrics={}, update=told.answer.update)
    told.refused(code="E_POLICY", metrics=told.answer.metrics, update=None)


def test_a_stage_that_policy_forbids_is_not_answered(honest: dict[str, Told]) -> None:
    policy = parse_policy({"asked": {"stages": ("enrol",)}})
    honest["enrol"].check(policy)
    assert "train" in honest["train"].refused(policy)


MEANS = {"studies", "macro-auroc", "macro-interval", "macro-se", "pooled-ece", "gain.macro", "gain-se.macro"}

WITHHELD: dict[str, set[str]] = {
    "enrol": {"quarantined.not-an-image"},
    "train": {"loss", "seconds", "validation-auroc"}
    | {
        f"validation.{finding}.{name}"
        for finding in ("effusion", "cardiomegaly")
        for name in ("auroc", "pr-auc", "ece", "positives", "negatives")
    },
    "local": set(),
    "calibrate": {
        f"{f}.{n}" for f in ("effusion", "cardiomegaly") for n in ("positives", "negatives", "platt")
    },
}


def test_what_policy_withholds_does_not_leave(honest: dict[str, Told]) -> None:
    policy = parse_policy({"answers": {"metrics": ()}, "asked": {"stages": tuple(MESSAGE_TYPES)}})
    for name, told in honest.items():
        out = release(told.answer, told.instruction, told.config, policy, told.site)
        gone = set(told.answer.metrics) - set(out.metrics)
        told.check(policy, metrics=out.metrics)
        if told.instruction.stage == "evaluate":
            assert set(out.metrics) <= MEANS
            assert "macro-auroc" in out.metrics
        else:
            assert gone == WITHHELD[name]
        if gone:
            told.refused(policy)


def test_what_is_withheld_is_checked_first(honest: dict[str, Told]) -> None:
    """A mean over cells that are too small is refused although the cells themselves would stay here."""
    told, policy = honest["federated"], parse_policy({"answers": {"metrics": ()}})
    small = dataclasses.replace(told.answer, metrics=told.with_metrics(**{"effusion.positives": 3}))
    with pytest.raises(EgressError):
        release(small, told.instruction, told.config, policy, told.site)
    odd = dataclasses.replace(told.answer, metrics=told.with_metrics(accession=ACCESSION))
    assert "accession" in withhold(odd, told.instruction, told.config, policy).metrics
    with pytest.raises(EgressError):
        release(odd, told.instruction, told.config, policy, told.site)


def test_an_answer_is_described_by_what_it_holds(honest: dict[str, Told]) -> None:
    import hashlib
    import json

    answer = honest["train"].answer
    told = describe(answer)
    assert answer.update is not None
    assert told["update"] == {
        "shape": [answer.update.size],
        "dtype": "float32",
        "bytes": answer.update.nbytes,
        "sha256": hashlib.sha256(answer.update.tobytes()).hexdigest(),
    }
    assert told["site"] == {"name": "north", "code": ""} and told["metrics"] == answer.metrics
    assert set(describe(Answer("north", code="E_POLICY"))) == {"site"}
    json.dumps([describe(t.answer) for t in honest.values()], allow_nan=False)


def test_the_gate_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, client.gate.audit_commands, client.gate.commands, client.gate.egress, "
        "client.gate.incoming, client.gate.words\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'flwr', 'pandas', 'rich.table')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
