"""What is thrown away lies at the site between rounds: the right one, and not all of them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from client.pretrain.pretext import from_seed, load_pretext, save_pretext
from common.errors import CheckpointError


def part(value: float) -> nn.Linear:
    made = nn.Linear(2, 1)
    with torch.no_grad():
        made.weight.fill_(value)
    return made


def loaded(folder: Path, round_number: int) -> float:
    made = part(-1.0)
    load_pretext(made, folder, round_number)
    return float(made.weight.detach()[0, 0])


def test_a_round_starts_from_the_newest_before_it(tmp_path: Path) -> None:
    assert loaded(tmp_path, 1) == -1.0  # nothing there: as it was made
    for number in (1, 2, 4):
        save_pretext(part(number), tmp_path, number)
    assert loaded(tmp_path, 5) == 4.0
    assert loaded(tmp_path, 4) == 2.0  # the same round again: from where it started the first time
    assert loaded(tmp_path, 2) == -1.0  # long gone


def test_only_what_may_be_needed_again_stays(tmp_path: Path) -> None:
    for number in range(1, 6):
        save_pretext(part(number), tmp_path, number)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "round-0004.safetensors",
        "round-0005.safetensors",
    ]
    assert stat.S_IMODE((tmp_path / "round-0005.safetensors").stat().st_mode) == 0o600
    # The run went back to round 5: what it left the first time is written over, not read.
    save_pretext(part(50.0), tmp_path, 5)
    assert loaded(tmp_path, 6) == 50.0
    save_pretext(part(30.0), tmp_path, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["round-0003.safetensors"]


def test_a_damaged_file_is_said_and_not_replaced_silently(tmp_path: Path) -> None:
    save_pretext(part(1.0), tmp_path, 1)
    (tmp_path / "round-0001.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="between rounds") as caught:
        loaded(tmp_path, 2)
    assert "remove" in caught.value.fix
    save_pretext(nn.Linear(3, 1), tmp_path, 1)
    with pytest.raises(CheckpointError):
        loaded(tmp_path, 2)


def test_a_seed_disturbs_nobody_else() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two = (from_seed(lambda: nn.Linear(4, 4), 7) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(before, torch.random.get_rng_state())
