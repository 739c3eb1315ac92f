"""The adapter a site holds: used where it is the one that is named, and never where it is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from client.held import whole
from common.adapter import AdapterSchema, AdapterState
from common.codec import adapter_digest
from common.config import RunConfig
from common.errors import CheckpointError, FedcxrError, SchemaError
from common.protocol import Instruction
from server.downlink import broadcast

SCHEMA = AdapterSchema(
    (("x.lora_A.weight", (4, 30)), ("x.lora_B.weight", (30, 4)), ("head", (2, 30))), ("head",)
)
CONFIG = RunConfig.build(
    {"data": {"findings": "edema, mass"}, "lora": {"aggregation": "rolora"}, "wire": {"downlink": "int8"}}
)


def state(seed: int) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    return AdapterState({n: torch.randn(s, generator=generator) for n, s in SCHEMA.shapes}, {})


def asked(adapter: np.ndarray | None, named: np.ndarray, **changes: object) -> Instruction:
    plain = Instruction("train", "p" * 64, "c", "b", round=3, adapter=adapter, lineage="run")
    return dataclasses.replace(plain, named=adapter_digest(named), numel=named.size, **changes)  # type: ignore[arg-type]


BEFORE = SCHEMA.pack(state(0).tensors)
EVEN = SCHEMA.select(["x.lora_A.weight", "head"])
SENT = broadcast(state(0), state(1), {}, EVEN, CONFIG.wire)
AFTER = SCHEMA.pack(SENT.state.tensors)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A site that took part in round 2."""
    whole(asked(BEFORE, BEFORE), SCHEMA, CONFIG, tmp_path / "run" / "adapter.safetensors")
    return tmp_path / "run" / "adapter.safetensors"


def test_one_that_names_nothing_is_left_alone(tmp_path: Path) -> None:
    plain = Instruction("train", "p", "c", "b", adapter=BEFORE)
    assert whole(plain, SCHEMA, CONFIG, tmp_path / "none") is plain
    assert not (tmp_path / "none").exists()


def test_what_is_held_is_what_came(file: Path) -> None:
    got = whole(asked(None, BEFORE), SCHEMA, CONFIG, file)
    assert got.adapter is not None and got.adapter.tobytes() == BEFORE.tobytes()
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_change_is_of_the_tensors_of_the_round_before(file: Path) -> None:
    """Round 2 of rolora trains A: what comes with round 3 moves that and the head."""
    got = whole(asked(None, AFTER, change=SENT.change), SCHEMA, CONFIG, file)
    assert got.adapter is not None and got.adapter.tobytes() == AFTER.tobytes()
    assert got.change is None
    again = whole(asked(None, AFTER, change=SENT.change), SCHEMA, CONFIG, file)
    assert again.adapter is not None and again.adapter.tobytes() == AFTER.tobytes()


@pytest.mark.parametrize("spoil", ["missing", "damaged", "another", "no change", "another change", "half"])
def test_what_is_not_here_is_asked_for(file: Path, spoil: str) -> None:
    change = SENT.change
    if spoil == "missing":
        file.unlink()
    elif spoil == "damaged":
        file.write_bytes(b"\0" * 99)
    elif spoil == "half":
        file.write_bytes(file.read_bytes()[:-8])
    elif spoil == "another":
        whole(asked(BEFORE + 1, BEFORE + 1), SCHEMA, CONFIG, file)
    elif spoil == "no change":
        change = None
    else:
        change = broadcast(state(0), state(5), {}, EVEN, CONFIG.wire).change
    with pytest.raises(CheckpointError):
        whole(asked(None, AFTER, change=change), SCHEMA, CONFIG, file)


@pytest.mark.parametrize("change", [np.zeros(0, np.uint8), np.zeros(50, np.uint8), np.zeros(9, np.float32)])
def test_a_change_that_means_nothing_is_a_coded_error(file: Path, change: np.ndarray) -> None:
    with pytest.raises(FedcxrError):
        whole(asked(None, AFTER, change=change), SCHEMA, CONFIG, file)


def test_an_adapter_under_another_s_name_is_refused(file: Path) -> None:
    with pytest.raises(SchemaError):
        whole(asked(BEFORE, AFTER), SCHEMA, CONFIG, file)


def test_a_full_disk_is_no_obstacle(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.held.write_atomic", full)
    got = whole(asked(AFTER, AFTER), SCHEMA, CONFIG, file)
    assert got.adapter is not None and got.adapter.tobytes() == AFTER.tobytes()
    assert whole(asked(None, BEFORE), SCHEMA, CONFIG, file).adapter is not None
