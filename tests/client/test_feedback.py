"""What a codec loses is owed, comes later, and is neither lost by a crash nor handed to another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from client.feedback import KEPT, RUNS, Owed, Sent, feedback_folder, send
from common.adapter import AdapterSchema
from common.codec import decode
from common.protocol import CODEC_ERROR
from common.sections import WireConfig

SCHEMA = AdapterSchema((("a", (300,)), ("head", (3, 20))), ("head",))
TOPK = WireConfig(codec="topk", keep=0.05)
LOSSY = [WireConfig(codec="fp16"), WireConfig(codec="int8"), TOPK, WireConfig(codec="int8", entropy=True)]


def delta(round_number: int, schema: AdapterSchema = SCHEMA) -> dict[str, Tensor]:
    """What a round moved; the head's last row is of a finding that the site does not annotate."""
    generator = torch.Generator().manual_seed(round_number)
    moved = {name: torch.randn(shape, generator=generator) for name, shape in schema.shapes}
    if "head" in moved:
        moved["head"][2] = 0.0
    return moved


def at(folder: Path, round_number: int, phase: str = "tune") -> Owed:
    return Owed(folder, round_number, phase)


def meant(sent: Sent, wire: WireConfig, schema: AdapterSchema = SCHEMA) -> dict[str, Tensor]:
    return schema.unpack(decode(sent.update, wire, schema.numel))


def take_part(folder: Path, rounds: list[int], wire: WireConfig) -> list[bytes]:
    return [send(delta(n), SCHEMA, wire, at(folder, n)).update.tobytes() for n in rounds]


def test_what_was_sent_and_what_is_owed_are_what_was_moved(tmp_path):
    """The sum of all updates differs from that of all deltas by what is owed, and by nothing else."""
    for place, wire in enumerate(LOSSY):
        folder, arrived, moved = tmp_path / str(place), np.zeros(SCHEMA.numel), np.zeros(SCHEMA.numel)
        for number in range(1, 6):
            arrived += decode(
                send(delta(number), SCHEMA, wire, at(folder, number)).update, wire, SCHEMA.numel
            )
            moved += SCHEMA.pack(delta(number))
            owed = SCHEMA.pack(at(folder, number + 1).load())
            assert np.allclose(arrived + owed, moved, atol=1e-4)
            assert np.linalg.norm(owed) > 0


def test_what_topk_sends_reaches_every_value_in_time(tmp_path):
    """A constant gradient of which one value in twenty is sent: without feedback the rest never moves."""
    moved = {name: torch.full(shape, 0.1) + 0.01 * delta(0)[name] for name, shape in SCHEMA.shapes}
    for feedback, reached in ((True, 1.0), (False, 0.05)):
        wire, ever = TOPK.model_copy(update={"feedback": feedback}), np.zeros(SCHEMA.numel, dtype=bool)
        for number in range(1, 41):
            sent = send(moved, SCHEMA, wire, at(tmp_path / str(feedback), number))
            ever |= decode(sent.update, wire, SCHEMA.numel) != 0
        assert ever.mean() == pytest.approx(reached, abs=0.01)
    assert not (tmp_path / "False").exists()


def test_without_loss_nothing_is_owed_or_told(tmp_path):
    sent = send(delta(1), SCHEMA, WireConfig(), at(tmp_path / "owed", 1))
    assert sent.update.tobytes() == SCHEMA.pack(delta(1)).tobytes()
    assert not sent.metrics and not (tmp_path / "owed").exists()


@pytest.mark.parametrize("wire", LOSSY)
def test_the_error_that_is_told_is_that_of_the_update(tmp_path, wire):
    sent = send(delta(1), SCHEMA, wire, at(tmp_path, 1))
    wanted = SCHEMA.pack(delta(1)).astype(np.float64)
    off = np.linalg.norm(decode(sent.update, wire, SCHEMA.numel) - wanted) / np.linalg.norm(wanted)
    assert sent.metrics == {CODEC_ERROR: pytest.approx(off, abs=1e-6)}
    assert 0 < sent.metrics[CODEC_ERROR] < 1


@pytest.mark.parametrize("wire", LOSSY)
def test_rows_of_findings_the_site_does_not_annotate_stay_zero(tmp_path, wire):
    for number in range(1, 5):
        assert not meant(send(delta(number), SCHEMA, wire, at(tmp_path, number)), wire)["head"][2].any()


@pytest.mark.parametrize("wire", LOSSY)
def test_a_round_asked_for_again_gives_the_same_bits(tmp_path, wire):
    straight = take_part(tmp_path / "straight", [1, 2, 3, 4], wire)
    broken = take_part(tmp_path / "broken", [1, 2, 2, 3, 3, 3, 4], wire)
    assert [broken[i] for i in (0, 1, 3, 6)] == straight
    assert broken[1] == broken[2] and broken[3] == broken[4] == broken[5]


def test_one_round_further_back_too(tmp_path):
    """Where the centre's newest checkpoint is damaged it asks for the round before."""
    straight = take_part(tmp_path / "straight", [1, 2, 3, 4, 5], TOPK)
    back = take_part(tmp_path / "back", [1, 2, 3, 4, 3, 4, 5], TOPK)
    assert back[:2] + back[4:] == straight


def test_a_process_killed_while_it_writes_leaves_the_round_before(tmp_path, monkeypatch):
    straight = take_part(tmp_path / "straight", [1, 2, 3], TOPK)
    take_part(tmp_path / "broken", [1, 2], TOPK)

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("common.files.os.replace", dies)
        with pytest.raises(KeyboardInterrupt):
            take_part(tmp_path / "broken", [3], TOPK)
    assert take_part(tmp_path / "broken", [3], TOPK) == straight[2:]


def test_a_site_that_skips_rounds_keeps_what_it_owes(tmp_path):
    take_part(tmp_path, [1], TOPK)
    owed = at(tmp_path, 2).load()
    assert at(tmp_path, 7).load().keys() == owed.keys()
    sent = send({name: torch.zeros(shape) for name, shape in SCHEMA.shapes}, SCHEMA, TOPK, at(tmp_path, 7))
    assert torch.equal(meant(sent, TOPK)["a"] != 0, meant(sent, TOPK)["a"].abs() > 0)
    assert meant(sent, TOPK)["a"].any()


def test_tensors_that_a_round_does_not_train_keep_what_they_owe(tmp_path):
    only = SCHEMA.select(["head"])
    take_part(tmp_path, [1], TOPK)
    before = at(tmp_path, 2).load()["a"]
    send(delta(2, only), only, TOPK, at(tmp_path, 2))
    assert torch.equal(at(tmp_path, 3).load()["a"], before)


def test_another_phase_begins_with_nothing_owed(tmp_path):
    take_part(tmp_path, [1], TOPK)
    assert not at(tmp_path, 2, "probe").load()
    assert at(tmp_path, 2).load()


def test_another_run_begins_with_nothing_owed_and_old_ones_go(tmp_path):
    first = take_part(feedback_folder(tmp_path, "p" * 64, "one"), [1, 2], TOPK)
    again = take_part(feedback_folder(tmp_path, "p" * 64, "two"), [1, 2], TOPK)
    assert first == again
    for number in range(RUNS + 3):
        take_part(feedback_folder(tmp_path, "p" * 64, f"run {number}/../x"), [1], TOPK)
    assert len([*tmp_path.iterdir()]) == RUNS
    assert not (tmp_path.parent / "x").exists()


def test_few_files_stay_and_nobody_else_reads_them(tmp_path):
    take_part(tmp_path, [*range(1, 9)], TOPK)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"round-{n:06d}.safetensors" for n in range(9 - KEPT, 9)]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_damaged_file_owes_nothing(tmp_path):
    take_part(tmp_path, [1], TOPK)
    (tmp_path / "round-000001.safetensors").write_bytes(b"\0" * 40)
    sent = send(delta(2), SCHEMA, TOPK, at(tmp_path, 2))
    assert sent.update.tobytes() == take_part(tmp_path / "new", [2], TOPK)[0]


def test_a_full_disk_owes_nothing_twice(tmp_path, monkeypatch):
    take_part(tmp_path / "owed", [1], TOPK)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("client.feedback.write_atomic", full)
        sent = send(delta(2), SCHEMA, TOPK, at(tmp_path / "owed", 2))
    assert sent.metrics
    assert not at(tmp_path / "owed", 3).load()


@pytest.mark.parametrize("wire", LOSSY)
def test_an_update_that_is_not_finite_is_told_and_not_owed(tmp_path, wire):
    take_part(tmp_path, [1], wire)
    before = at(tmp_path, 2).load()
    broken = delta(2)
    broken["a"][5] = torch.nan
    sent = send(broken, SCHEMA, wire, at(tmp_path, 2))
    assert not np.isfinite(decode(sent.update, wire, SCHEMA.numel)).all()
    assert not sent.metrics
    after = at(tmp_path, 3).load()
    assert all(torch.equal(after[name], before[name]) for name in before)
