"""Event files, read back by TensorBoard's own reader, hold what the ledger holds, whatever happened."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import ConfigError
from server.monitor.writers.follow import Follower
from server.monitor.writers.tensorboard import TensorBoardWriter


def read_back(folder):
    """tag -> [(step, value)] as TensorBoard shows it; nothing is sampled away."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    found = {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    return {
        tag: values for tag, values in found.items() if values
    }, reader  # after a purge tags are left empty


def points(held):
    return {name: sorted(values.items()) for name, values in held.items()}


def in_32_bits(held):
    return {name: {k: float(np.float32(v)) for k, v in values.items()} for name, values in held.items()}


@pytest.fixture
def export(seen, tmp_path):
    def go(steps=1):
        writer = TensorBoardWriter(tmp_path / "tb")
        follower = Follower(seen, writer, time.time())
        written = sum(follower.step(time.time()) for _ in range(steps))
        follower.close()
        return written

    return go


def compare(folder, expected):
    """Every value of the ledger is there once; what else is there are means, worst sites and the test."""
    found, _ = read_back(folder)
    measured = {tag: values for tag, values in found.items() if "/_mean" not in tag and "/_worst" not in tag}
    measured = {tag: values for tag, values in measured.items() if not tag.startswith("test-")}
    assert measured == points(in_32_bits(expected))
    return found


def test_every_value_is_read_back_at_its_round(written_run, export, said, tmp_path):
    for number in (1, 2, 3):
        written_run.whole_round(number)
    assert export() > 0
    found = compare(tmp_path / "tb" / "pilot", said(written_run))
    sites = ("north", "south", "edema")
    for step, value in found["auroc/macro/_mean"]:
        parts = [dict(found[f"auroc/macro/{site}"])[step] for site in sites]
        assert value == pytest.approx(np.mean(parts), abs=1e-6)
    worst = dict(found["loss/_worst"])[3]
    assert worst == max(dict(found[f"loss/{site}"])[3] for site in sites)
    assert [step for step, _ in found["auroc/macro/_mean"]] == [1, 2], (
        "the last adapter is still being measured"
    )
    assert [step for step, _ in found["loss/_mean"]] == [1, 2, 3]


def test_exported_again_there_is_nothing_new_and_no_new_file(written_run, export, tmp_path):
    written_run.whole_round(1)
    export()
    before = sorted(p.name for p in (tmp_path / "tb" / "pilot").iterdir())
    assert export() == 0
    assert sorted(p.name for p in (tmp_path / "tb" / "pilot").iterdir()) == before


def test_a_run_that_grows_is_followed_and_its_test_comes_at_the_end(written_run, seen, said, tmp_path):
    follower = Follower(seen, TensorBoardWriter(tmp_path / "tb"), time.time())
    for number in range(1, 7):
        written_run.whole_round(number, missing=["south"] if number == 3 else [])
        assert follower.step(time.time()) > 0
        assert follower.step(time.time()) == 0
    compare(tmp_path / "tb" / "pilot", said(written_run))
    written_run.test()
    follower.step(time.time())
    follower.close()
    found = compare(tmp_path / "tb" / "pilot", said(written_run))
    metrics = written_run.ledger.evaluations("test")["federated"]["edema"]
    assert found["test-auroc/federated/macro/edema"] == [(6, float(np.float32(metrics["macro-auroc"])))]
    assert found["test-auroc/federated/edema/edema"] == [(6, float(np.float32(metrics["edema.auroc"])))]
    assert dict(found["auroc/macro/_mean"]).keys() == {1, 2, 3, 4, 5, 6}


def test_the_plan_is_there_as_text_and_as_hyperparameters(written_run, export, tmp_path):
    written_run.whole_round(1)
    written_run.test()
    export()
    export()
    _, reader = read_back(tmp_path / "tb" / "pilot")
    assert sorted(reader.Tags()["tensors"]) == [
        "_hparams_/session_end_info",
        "_hparams_/session_start_info",
        "plan",
    ]
    text = reader.Tensors("plan")[0].tensor_proto.string_val[0].decode()
    assert f"| plan digest | `{'a' * 64}` |" in text
    assert "| pet.rank | `4` |" in text
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = parse_session_start_info_plugin_data(content)
    assert start.hparams["pet.rank"].number_value == 4
    assert start.hparams["pet.method"].string_value == "lora"
    assert len(reader.Tensors("_hparams_/session_start_info")) == 1


def test_after_a_rollback_the_run_goes_on_in_a_folder_that_holds_what_is_true(
    written_run, export, said, roll_back, tmp_path
):
    for number in (1, 2, 3, 4):
        written_run.whole_round(number)
    export()
    before, _ = read_back(tmp_path / "tb" / "pilot")
    roll_back(written_run, 2)
    export()
    compare(tmp_path / "tb" / "pilot.rollback-1", said(written_run))
    written_run.sites = ["north", "edema"]
    for number in (3, 4):
        written_run.whole_round(number)
    export()
    assert export() == 0
    found = compare(tmp_path / "tb" / "pilot.rollback-1", said(written_run))
    assert [step for step, _ in found["loss/south"]] == [1, 2]
    assert [step for step, _ in found["loss/north"]] == [1, 2, 3, 4]
    first, reader = read_back(tmp_path / "tb" / "pilot")
    assert first == before, "what was written stays"
    assert b"goes on as pilot.rollback-1" in reader.Tensors("replaced")[0].tensor_proto.string_val[0]
    roll_back(written_run, 1)
    export()
    assert sorted(p.name for p in (tmp_path / "tb").iterdir()) == [
        "pilot",
        "pilot.rollback-1",
        "pilot.rollback-2",
    ]
    compare(tmp_path / "tb" / "pilot.rollback-2", said(written_run))


def test_a_rollback_between_two_looks_of_a_follower_is_seen(written_run, seen, said, roll_back, tmp_path):
    follower = Follower(seen, TensorBoardWriter(tmp_path / "tb"), time.time())
    for number in (1, 2, 3, 4, 5):
        written_run.whole_round(number)
    follower.step(time.time())
    roll_back(written_run, 1)
    for number in (2, 3, 4, 5, 6, 7, 8):  # only a round long past is not what it was
        written_run.whole_round(number, missing=["south"] if number == 2 else [])
    follower.step(time.time())
    follower.close()
    compare(tmp_path / "tb" / "pilot.rollback-1", said(written_run))


def test_a_rollback_to_rounds_that_are_the_same_again_changes_nothing(
    written_run, export, said, roll_back, tmp_path
):
    for number in (1, 2, 3):
        written_run.whole_round(number)
    export()
    roll_back(written_run, 1)
    for number in (2, 3):
        written_run.whole_round(number)
    assert export() == 0
    compare(tmp_path / "tb" / "pilot", said(written_run))
    assert [p.name for p in (tmp_path / "tb").iterdir()] == ["pilot"]


_EXPORT = """
import sys, time
from pathlib import Path
from server.centre.folder import CentreFolder
from server.facts.runs import Runs
from server.monitor.writers.follow import Follower
from server.monitor.writers.tensorboard import TensorBoardWriter

class Slow(TensorBoardWriter):
    count = 0
    def scalar(self, *what):
        super().scalar(*what)
        self.count += 1
        if self.count == 300:
            self._file._writer.flush()
            print("in the middle", flush=True)
            time.sleep(60)

run = Runs.of_centre(CentreFolder(Path(sys.argv[1]))).find("pilot")
Follower(run, Slow(Path(sys.argv[2])), time.time()).step(time.time())
"""


def test_killed_in_the_middle_and_begun_again_nothing_is_doubled_or_lost(
    written_run, page_centre, export, said, tmp_path, repository
):
    for number in range(1, 9):
        written_run.whole_round(number)
    command = [sys.executable, "-c", _EXPORT, str(page_centre.folder.root), str(tmp_path / "tb")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=repository, env={**os.environ, "PYTHONPATH": "."}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in the middle\n"
    with pytest.raises(ConfigError, match="another export writes"):
        export()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (half,) = (tmp_path / "tb" / "pilot").glob("events.*")
    kept = read_back(tmp_path / "tb" / "pilot")[0]
    assert 0 < sum(map(len, kept.values())) <= 300
    with half.open("ab") as stream:
        stream.write(struct.pack("<Q", 5_000) + b"cut")  # the kernel had half a record of it
    written = export()
    found = compare(tmp_path / "tb" / "pilot", said(written_run))
    assert written == sum(map(len, found.values())) - 300
    assert export() == 0


def test_files_are_named_in_the_order_they_were_begun_even_if_the_clock_goes_back(
    written_run, seen, said, tmp_path
):
    for number, moment in ((1, 5_000.0), (2, 4_000.0), (3, 4_000.0)):
        written_run.whole_round(number)
        follower = Follower(seen, TensorBoardWriter(tmp_path / "tb", clock=lambda m=moment: m), time.time())
        follower.step(time.time())
        follower.close()
    names = sorted(p.name for p in (tmp_path / "tb" / "pilot").glob("events.*"))
    assert names == [f"events.out.tfevents.{n:010d}.fedcxr" for n in (5000, 5001, 5002)]
    compare(tmp_path / "tb" / "pilot", said(written_run))


def test_another_plan_is_not_written_into_the_same_folder(written_run, export, tmp_path):
    written_run.whole_round(1)
    export()
    written_run.ledger.put("plan_digest", "f" * 64)
    with pytest.raises(ConfigError, match="another run"):
        export()
    (tmp_path / "tb" / "pilot" / "fedcxr.json").write_text("{")
    with pytest.raises(ConfigError, match="another run"):
        export()


def test_event_files_of_something_else_are_left_alone(written_run, export, tmp_path):
    folder = tmp_path / "tb" / "pilot"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.host").write_bytes(b"")
    written_run.whole_round(1)
    with pytest.raises(ConfigError, match="something else"):
        export()


def test_without_tensorboard_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError) as raised:
        TensorBoardWriter(tmp_path)
    assert raised.value.fix == "pip install 'fedcxr[tensorboard]'"


def test_no_path_and_no_host_of_this_machine_is_in_the_files(written_run, export, tmp_path, page_centre):
    written_run.whole_round(1)
    export()
    for file in (tmp_path / "tb" / "pilot").iterdir():
        assert str(page_centre.folder.root).encode() not in file.read_bytes()
        assert os.uname().nodename not in file.name
    assert json.loads((tmp_path / "tb" / "pilot" / "fedcxr.json").read_text()) == {
        "run": "pilot",
        "plan": "a" * 64,
    }
