"""What a spool gives back is what was put into it, from memory or from disk, whatever comes in between."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.adapter import AdapterSchema, AdapterState
from common.config import RunConfig
from common.errors import RunError, SchemaError, SiteError
from server.geometry import geometry
from server.spool import Spool
from server.strategies.mean import weighted_mean
from server.strategies.strategy import aggregate
from server.update import SiteUpdate

SCHEMA = AdapterSchema((("body", (40, 25)), ("scalar", ()), ("head.weight", (3, 7))), ("head.weight",))


def sent(count: int, seed: int = 0) -> list[SiteUpdate]:
    generator = torch.Generator().manual_seed(seed)
    return [
        SiteUpdate(
            f"site-{k:02d}", 3 * k + 1, np.array([k, 1, 0]),
            {name: torch.randn(shape, generator=generator) for name, shape in SCHEMA.shapes},
        )
        for k in range(count)
    ]  # fmt: skip


def shuffled(updates: list[SiteUpdate], seed: int) -> list[SiteUpdate]:
    return random.Random(seed).sample(updates, len(updates))


@pytest.mark.parametrize("held", [0, 3 * 4 * SCHEMA.numel, 1 << 30])
def test_every_value_comes_back_by_site_name(tmp_path: Path, held: int) -> None:
    updates = sent(7)
    with Spool(SCHEMA, tmp_path, held) as spool:
        for update in shuffled(updates, 1):
            sender = spool.add(update)
            flat = SCHEMA.pack(update.delta)
            assert (sender.site, sender.num_examples) == (update.site, update.num_examples)
            assert sender.norm == pytest.approx(np.linalg.norm(flat.astype(np.float64)), rel=1e-14)
        assert [sender.site for sender in spool.senders] == [update.site for update in updates]
        for start, stop in (
            (0, 1),
            (0, SCHEMA.numel),
            (998, 1010),
            (1000, 1001),
            (SCHEMA.numel - 1, SCHEMA.numel),
        ):
            for place, update in enumerate(updates):
                assert (
                    spool.read(place, start, stop).tolist() == SCHEMA.pack(update.delta)[start:stop].tolist()
                )
        for place, update in enumerate(updates):
            found = spool.tensors(place, ["head.weight", "of another round", "scalar"])
            assert {*found} == {"head.weight", "scalar"}
            assert all(torch.equal(tensor, update.delta[name]) for name, tensor in found.items())


def test_tensors_are_not_overwritten_by_the_next_site(tmp_path: Path) -> None:
    one, two = sent(2)
    with Spool(SCHEMA, tmp_path, 0) as spool:
        spool.add(one)
        spool.add(two)
        first = spool.tensors(0, ["body"])["body"]
        spool.tensors(1, ["body"])
        assert torch.equal(first, one.delta["body"])


def test_the_aggregate_does_not_tell_where_updates_lay_nor_who_came_first(tmp_path: Path) -> None:
    updates, config = sent(9), RunConfig.from_flat({"pet.method": "norm"})
    start = AdapterState({name: torch.ones(shape) for name, shape in SCHEMA.shapes}, {})
    outcomes = set()
    for seed, held in enumerate((0, 4 * 4 * SCHEMA.numel, 1 << 30)):
        with Spool(SCHEMA, tmp_path, held) as spool:
            for update in shuffled(updates, seed):
                spool.add(update)
            outcome = aggregate(start, spool, {}, config)
            shape = geometry(spool, outcome.mean)
            outcomes.add((outcome.state.digest(), shape.norm, str(shape.cosines), shape.pairs))
    assert len(outcomes) == 1


def test_a_spool_takes_a_site_once_and_only_what_fits(tmp_path: Path) -> None:
    (update,) = sent(1)
    with Spool(SCHEMA, tmp_path, 0) as spool:
        with pytest.raises(SchemaError):
            spool.add(SiteUpdate("b", 1, update.labelled, {"body": update.delta["body"]}))
        spool.add(update)
        with pytest.raises(SiteError, match="already"):
            spool.add(update)
        assert len(spool.senders) == 1


def test_a_round_that_trains_nothing_has_room_for_it(tmp_path: Path) -> None:
    with Spool(AdapterSchema(()), tmp_path, 0) as spool:
        spool.add(SiteUpdate("a", 1, np.array([1]), {}))
        assert weighted_mean(spool).shape == (0,)


# ---------------------------------------------------------------------- the disk


def test_on_disk_it_has_no_name_and_only_so_much_stays_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with Spool(SCHEMA, folder, 2 * 4 * SCHEMA.numel) as spool:
        for update in sent(6):
            spool.add(update)
        assert [*folder.iterdir()] == []
        opened = [file for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        (ours,) = [file for file in opened if str(file.readlink()).startswith(str(folder))]
        assert str(ours.readlink()).endswith("(deleted)")
        status = ours.stat()
        assert status.st_size == 4 * 4 * SCHEMA.numel, "four of the six, and nothing else"
        assert status.st_mode & 0o777 == 0o600
    assert [*folder.iterdir()] == []


def test_a_killed_process_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import sys, time, numpy as np, torch\n"
        "from pathlib import Path\n"
        "from common.adapter import AdapterSchema\n"
        "from server.spool import Spool\n"
        "from server.update import SiteUpdate\n"
        "spool = Spool(AdapterSchema((('w', (1000,)),)), Path(sys.argv[1]), 0)\n"
        "spool.add(SiteUpdate('a', 1, np.array([1]), {'w': torch.ones(1000)}))\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [*tmp_path.iterdir()] == []


def test_on_a_full_disk_an_update_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second write fails half way; what is written after it takes its place."""
    real, calls = os.pwrite, []

    def pwrite(descriptor: int, data: memoryview, where: int) -> int:
        calls.append(where)
        if len(calls) == 2:
            return real(descriptor, data[: len(data) // 2], where)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, where)

    updates = sent(4)
    with Spool(SCHEMA, tmp_path, 0) as spool:
        monkeypatch.setattr(os, "pwrite", pwrite)
        for update in updates:
            spool.add(update)
        for place, update in enumerate(updates):
            assert spool.read(place, 0, SCHEMA.numel).tolist() == SCHEMA.pack(update.delta).tolist()
    assert "No space left on device" in caplog.text
    size = 4 * SCHEMA.numel
    assert calls == [0, size, size + size // 2, size, 2 * size]


def test_a_disk_that_loses_what_it_took_stops_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(SCHEMA, tmp_path, 0) as spool:
        for update in sent(2):
            spool.add(update)
        spool.read(1, 0, 5)
        os.ftruncate(spool._file._file.fileno(), 4 * SCHEMA.numel)  # type: ignore[union-attr]
        with pytest.raises(RunError, match="does not give back") as caught:
            weighted_mean(spool)
        assert "resume" in caught.value.fix
