"""The gate on the way in: each instruction that is not the centre's, not new or not allowed, by its code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.gate import incoming as module
from client.gate.approval import withdraw
from client.gate.audit import head_file, read_audit, verify_audit
from client.gate.policy import AskedPolicy, Policy
from common.config import RunConfig
from common.errors import (
    ApprovalError,
    AuditError,
    ConfigError,
    DigestError,
    EgressError,
    PolicyError,
    ReplayError,
    SignatureError,
)
from common.protocol import Instruction


@pytest.fixture
def instruct(gate: Any, plan: RunConfig) -> Callable[..., Instruction]:
    return lambda **changes: gate.centre.instruct(plan, **changes)


def kinds(gate: Any) -> list[str]:
    return [line["kind"] for line in read_audit(gate.folder)]


def test_an_honest_instruction_passes_and_is_written_down(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], run_id: int
) -> None:
    assert gate.check(instruct(committed=0), plan) == plan
    assert gate.check(instruct(sequence=2, round=2, committed=1), plan) == plan
    assert gate.incoming.committed(run_id) == gate.incoming.committed(str(run_id)) == 1
    line = list(read_audit(gate.folder))[-1]
    assert (line["kind"], line["stage"], line["round"], line["run"]) == (
        "instruction",
        "train",
        2,
        str(run_id),
    )
    assert verify_audit(gate.folder).problems == []
    assert gate.folder.seen.stat().st_mode & 0o777 == 0o600


def unsigned(gate: Any, plan: RunConfig) -> Instruction:
    return dataclasses.replace(gate.centre.instruct(plan), signature="")


def changed(**changes: Any) -> Callable[[Any, RunConfig], Instruction]:
    """Signed, and then changed."""
    return lambda gate, plan: dataclasses.replace(gate.centre.instruct(plan), **changes)


def signed(**changes: Any) -> Callable[[Any, RunConfig], Instruction]:
    return lambda gate, plan: gate.centre.instruct(plan, **changes)


CASES: dict[str, tuple[type[Exception], Callable[[Any, RunConfig], Instruction]]] = {
    "not signed": (SignatureError, unsigned),
    "another round": (SignatureError, changed(round=2)),
    "another number": (SignatureError, changed(sequence=2)),
    "another stage": (SignatureError, changed(stage="evaluate")),
    "another adapter": (SignatureError, changed(adapter=np.zeros(6, dtype=np.float32))),
    "a residual put in": (
        SignatureError,
        changed(residual={"residual:x.left": np.zeros((2, 2), np.float32)}),
    ),
    "signature of nonsense": (SignatureError, changed(signature="not base64 at all")),
    "another site": (ReplayError, signed(site="south")),
    "no site": (ReplayError, signed(site="")),
    "another run": (ReplayError, signed(run="12345")),
    "number zero": (ReplayError, signed(sequence=0)),
    "a round that is over": (ReplayError, signed(round=3, committed=3)),
    "other code": (DigestError, signed(code_digest="c" * 64)),
    "another plan": (DigestError, signed(plan_digest="d" * 64)),
    "another base": (DigestError, signed(base_digest="e" * 64)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_honest_is_refused_and_its_number_stays_free(
    gate: Any, plan: RunConfig, name: str
) -> None:
    kind, make = CASES[name]
    instruction = make(gate, plan)
    with pytest.raises(kind) as caught:
        gate.check(instruction, plan)
    line = list(read_audit(gate.folder))[-1]
    assert (line["kind"], line["code"]) == ("refused", caught.value.code)  # type: ignore[attr-defined]
    assert not gate.folder.seen.exists()
    gate.check(gate.centre.instruct(plan), plan)


def test_a_base_signed_with_its_own_plan_is_still_not_approved(gate: Any, plan: RunConfig) -> None:
    from common.code import code_digest

    other = "e" * 64
    instruction = gate.centre.instruct(
        plan, base_digest=other, plan_digest=plan.plan_digest(other, code_digest())
    )
    with pytest.raises(DigestError, match="not one approved"):
        gate.check(instruction, plan)


def test_another_bundle_is_refused(gate: Any, plan: RunConfig, instruct: Callable[..., Instruction]) -> None:
    with pytest.raises(ApprovalError, match="bundle"):
        gate.check(instruct(), plan, fab="f" * 64)


def test_another_centre_is_refused(gate: Any, plan: RunConfig) -> None:
    stranger = type(gate.centre)()
    with pytest.raises(SignatureError):
        gate.check(stranger.instruct(plan), plan)


def test_settings_that_the_centre_did_not_sign(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction]
) -> None:
    """Whoever submits a run can override settings; the signature covers the plan they make."""
    flat = plan.to_flat()
    with pytest.raises(DigestError, match="settings"):
        gate.check(instruct(), plan, run_config=flat | {"train.lr": 0.5})
    for wrong in ({"train.lr": "much"}, {"nonsense": 1}, {"seed.x.y": 1}, {".".join("a" * 5000): 1}):
        with pytest.raises(ConfigError):
            gate.check(instruct(), plan, run_config=flat | wrong)


def test_a_plan_beyond_policy_is_refused(gate: Any) -> None:
    greedy = RunConfig.build({"rounds": {"quorum": 3}, "train": {"epochs": 1000}})
    with pytest.raises(PolicyError, match="epochs"):
        gate.check(gate.centre.instruct(greedy), greedy)


def test_each_number_is_taken_once_also_after_a_restart(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction]
) -> None:
    first = instruct(sequence=5)
    gate.check(first, plan)
    for site in (gate, gate.restarted()):
        for again in (first, instruct(sequence=4), instruct(sequence=5, round=2)):
            with pytest.raises(ReplayError, match="seen before"):
                site.check(again, plan)
    gate.restarted().check(instruct(sequence=6), plan)


def test_another_run_counts_from_its_own_start(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction]
) -> None:
    gate.check(instruct(sequence=9, committed=0), plan)
    gate.check(instruct(sequence=1, run="8"), plan, run=8)
    assert gate.incoming.committed(8) == gate.incoming.committed("unheard of") == 0


def test_a_round_that_was_committed_does_not_come_back(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction]
) -> None:
    gate.check(instruct(sequence=1, stage="evaluate", round=0, committed=2), plan)
    with pytest.raises(ReplayError, match="over"):
        gate.check(instruct(sequence=2, round=2, committed=0), plan)
    gate.check(instruct(sequence=3, round=3, committed=2), plan)


def test_what_was_taken_and_not_answered_may_be_taken_up_again(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], rewrite: Callable[..., None]
) -> None:
    taken = instruct(sequence=5)
    gate.check(taken, plan)
    again = gate.restarted()
    assert again.check(taken, plan, resumed=True) == plan
    with pytest.raises(SignatureError):
        again.check(dataclasses.replace(taken, round=2), plan, resumed=True)
    withdraw(gate.folder, "IT")
    with pytest.raises(ApprovalError):
        again.check(taken, plan, resumed=True)


@pytest.mark.parametrize(
    "damage", ["", "{}", '{"runs": {"4711": {"sequence": -1}}}', '{"runs": {"1": 5}}', "[1]"]
)
def test_a_damaged_record_of_numbers_lets_nothing_in(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], damage: str
) -> None:
    gate.check(instruct(), plan)
    gate.folder.seen.write_text(damage)
    with pytest.raises(ReplayError, match="damaged") as caught:
        gate.check(instruct(sequence=2), plan)
    assert str(gate.folder.seen) in caught.value.fix
    with pytest.raises(ReplayError):
        gate.incoming.committed(1)


def test_a_changed_policy_stops_everything(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], rewrite: Callable[..., None]
) -> None:
    rewrite(gate.folder, "max_rounds = 100", "max_rounds = 1000")
    with pytest.raises(ApprovalError, match=r"policy\.toml"):
        gate.check(instruct(), plan)


def test_approval_comes_before_everything(gate: Any, plan: RunConfig) -> None:
    """An unapproved site does not even say whose signature it would take."""
    withdraw(gate.folder, "IT")
    with pytest.raises(ApprovalError):
        gate.check(unsigned(gate, plan), plan)


def test_a_flood_of_refusals_does_not_fill_the_audit(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def flood(count: int, **changes: Any) -> None:
        for number in range(count):
            told = {key: value + number if key == "round" else value for key, value in changes.items()}
            with pytest.raises(SignatureError):
                gate.check(dataclasses.replace(instruct(), signature="AAAA", **told), plan)

    flood(100)
    assert kinds(gate).count("refused") == 1
    flood(100, round=10)
    assert kinds(gate).count("refused") == module.BURST
    with pytest.raises(ReplayError):
        gate.check(instruct(site="south"), plan)
    assert kinds(gate).count("refused") == module.BURST + 1, "another code is told all the same"
    now[0] += module.REPEATED + 1
    flood(1)
    told = [line for line in read_audit(gate.folder) if line["kind"] == "refused"]
    assert sum(line.get("not-written", 0) for line in told) == 200 - module.BURST


def test_what_cannot_be_written_down_is_not_done(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", full)
        with pytest.raises(AuditError, match="written down"):
            gate.check(instruct(), plan)
    gate.check(instruct(), plan)
    head_file(gate.folder).unlink()
    with pytest.raises(AuditError):
        gate.restarted().check(instruct(sequence=2), plan)


def test_the_bytes_of_a_run_are_bounded(gate: Any, run_id: int) -> None:
    gate.incoming.count_sent(run_id, 3_000_000_000)
    gate.restarted().incoming.count_sent(run_id, 2_000_000_000)
    with pytest.raises(EgressError, match="together"):
        gate.incoming.count_sent(run_id, 1)
    gate.incoming.count_sent(run_id + 1, 1)
    assert gate.incoming.sent(run_id) == 5_000_000_000


def test_numbers_and_bytes_are_kept_side_by_side(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], run_id: int
) -> None:
    gate.incoming.count_sent(run_id, 10)
    gate.check(instruct(sequence=3, round=3, committed=2), plan)
    kept = json.loads(gate.folder.seen.read_text())["runs"]
    assert kept == {str(run_id): {"sequence": 3, "committed": 2, "sent": 10, "calibrations": 0}}


def test_what_is_no_instruction_is_refused_in_the_audit_too(gate: Any) -> None:
    gate.incoming.refuse(9, SignatureError("a message is not an instruction"))
    line = list(read_audit(gate.folder))[-1]
    assert (line["kind"], line["code"], line["run"]) == ("refused", "E_SIGNATURE", "9")


def test_sums_to_calibrate_by_are_asked_for_a_bounded_number_of_times(
    gate: Any, plan: RunConfig, instruct: Callable[..., Instruction], run_id: int, monkeypatch: Any
) -> None:
    """Each answer tells a little of the studies; a restart of the site does not begin the count anew."""
    monkeypatch.setattr(module, "MOST_CALIBRATIONS", 3)
    policy = Policy(asked=AskedPolicy(stages=("enrol", "train", "calibrate")))
    monkeypatch.setattr(module, "load_policy", lambda path: policy)

    def ask(number: int, **changes: Any) -> None:
        gate.check(instruct(stage="calibrate", round=0, sequence=number), plan, **changes)

    for number in (1, 2):
        ask(number)
    ask(2, resumed=True)
    gate = gate.restarted()
    ask(3)
    with pytest.raises(PolicyError, match="more often than any fit"):
        ask(4)
    gate.check(instruct(sequence=5), plan)
    kept = json.loads(gate.folder.seen.read_text())["runs"][str(run_id)]
    assert kept["calibrations"] == 3
