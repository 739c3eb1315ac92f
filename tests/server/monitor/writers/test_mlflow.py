"""MLflow's own client finds what the ledger holds, once, whatever happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from common.errors import ConfigError, UnreachableError
from server.monitor.writers.follow import Follower
from server.monitor.writers.mlflow import EXPERIMENT, MlflowWriter, tracking_uri


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store without a run: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowWriter(str(folder))
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def store(tmp_path, empty_store):
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "mlflow.db").write_bytes(empty_store)
    return str(tmp_path / "ml")


@pytest.fixture
def export(seen, store):
    def go():
        follower = Follower(seen, MlflowWriter(store), time.time())
        written = follower.step(time.time())
        follower.close()
        return written

    return go


@pytest.fixture
def stored(store):
    """Every MLflow run: (run, name -> [(step, value)])."""

    def read():
        client = MlflowWriter(store)._client
        experiment = client.get_experiment_by_name(EXPERIMENT)
        found = []
        for run in client.search_runs([experiment.experiment_id], order_by=["attributes.created ASC"]):
            history = {n: client.get_metric_history(run.info.run_id, n) for n in run.data.metrics}
            found.append((run, {n: sorted((m.step, m.value) for m in told) for n, told in history.items()}))
        return found

    return read


def measured(found):
    return {
        name: values
        for name, values in found.items()
        if not name.startswith("test-") and not name.endswith(("/_mean", "/_worst"))
    }


def points(held):
    return {name: sorted(values.items()) for name, values in held.items()}


def test_params_metrics_and_digests_are_found(written_run, export, stored, said):
    for number in (1, 2, 3):
        written_run.whole_round(number)
    written_run.test()
    export()
    ((run, found),) = stored()
    assert measured(found) == points(said(written_run)), "to the last bit"
    assert found["test-auroc/local/macro/north"][0][0] == 3
    assert run.info.run_name == "pilot"
    assert run.info.status == "FINISHED"
    assert run.data.params["pet.rank"] == "4"
    assert run.data.params["data.findings"] == "cardiomegaly, effusion, edema, consolidation"
    assert run.data.tags["fedcxr.plan_digest"] == "a" * 64
    assert run.data.tags["fedcxr.base_digest"] == "b" * 64
    assert not [key for key in run.data.tags if key.startswith("mlflow.") and key != "mlflow.runName"]


def test_metrics_bear_the_time_of_their_round(written_run, export, store, stored):
    written_run.whole_round(1)
    export()
    ((run, _),) = stored()
    (metric,) = MlflowWriter(store)._client.get_metric_history(run.info.run_id, "loss/north")
    assert metric.timestamp == int(written_run.time * 1000)
    assert run.info.start_time == int(next(iter(written_run.ledger.events())).time * 1000)


def test_the_same_run_is_there_once_and_grows(written_run, export, stored, said):
    written_run.whole_round(1)
    assert export() > 0
    assert export() == 0
    written_run.whole_round(2)
    assert export() > 0
    ((run, found),) = stored()
    assert measured(found) == points(said(written_run))
    assert run.info.status == "RUNNING"
    written_run.ledger.event("failed", "it failed")
    export()
    assert stored()[0][0].info.status == "FAILED"


def test_a_run_that_was_rolled_back_is_replaced_by_a_second(written_run, export, stored, said, roll_back):
    for number in (1, 2, 3):
        written_run.whole_round(number)
    export()
    roll_back(written_run, 1)
    written_run.sites = ["north", "edema"]
    written_run.whole_round(2)
    export()
    export()
    (first, before), (second, after) = sorted(
        stored(), key=lambda one: "fedcxr.replaced_by" not in one[0].data.tags
    )
    assert first.data.tags["fedcxr.replaced_by"] == second.info.run_id
    assert first.info.status == "KILLED"
    assert max(step for step, _ in before["loss/south"]) == 3
    assert measured(after) == points(said(written_run))
    assert second.info.status == "RUNNING"


_EXPORT = """
import sys, time
from pathlib import Path
from server.centre.folder import CentreFolder
from server.facts.runs import Runs
from server.monitor.writers import mlflow
from server.monitor.writers.follow import Follower

mlflow._AT_ONCE = 100

class Slow(mlflow.MlflowWriter):
    batches = 0
    def flush(self):
        super().flush()
        self.batches += 1
        if self.batches == 3:
            print("in the middle", flush=True)
            time.sleep(60)

run = Runs.of_centre(CentreFolder(Path(sys.argv[1]))).find("pilot")
Follower(run, Slow(sys.argv[2]), time.time()).step(time.time())
"""


def test_killed_in_the_middle_and_begun_again_nothing_is_doubled_or_lost(
    written_run, page_centre, export, stored, said, store, repository
):
    for number in range(1, 7):
        written_run.whole_round(number)
    command = [sys.executable, "-c", _EXPORT, str(page_centre.folder.root), store]
    environment = {**os.environ, "PYTHONPATH": "."}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    ((_, kept),) = stored()
    assert sum(map(len, kept.values())) == 300
    written = export()
    ((_, found),) = stored()
    assert measured(found) == points(said(written_run))
    assert written == sum(map(len, found.values())) - 300


_ALONE = """
import socket, sys, time
tried = []
def refuse(self, address):
    tried.append(address)
    raise OSError("no network here")
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda *a, **k: tried.append(a) or resolve("127.0.0.1", 9)
from pathlib import Path
from server.centre.folder import CentreFolder
from server.facts.runs import Runs
from server.monitor.writers.follow import Follower
from server.monitor.writers.mlflow import MlflowWriter
run = Runs.of_centre(CentreFolder(Path(sys.argv[1]))).find("pilot")
follower = Follower(run, MlflowWriter(sys.argv[2]), time.time())
assert follower.step(time.time()) > 0
follower.close()
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
time.sleep(1.0)
assert tried == [], tried
print("alone")
"""


def test_mlflow_calls_nobody(written_run, page_centre, store, repository):
    written_run.whole_round(1)
    telling = {"PYTEST_CURRENT_TEST", "CI", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"}
    environment = {k: v for k, v in os.environ.items() if k not in telling} | {"PYTHONPATH": "."}
    command = [sys.executable, "-c", _ALONE, str(page_centre.folder.root), store]
    done = subprocess.run(
        command, capture_output=True, cwd=repository, env=environment, timeout=100, text=True
    )
    assert done.stdout == "alone\n", done.stderr


def test_without_mlflow_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError) as raised:
        MlflowWriter(str(tmp_path))
    assert raised.value.fix == "pip install 'fedcxr[mlflow]'"


def test_addresses_that_are_none_are_refused_by_name(tmp_path):
    assert tracking_uri(str(tmp_path / "new")) == f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    assert tracking_uri("https://mlflow.example.org") == "https://mlflow.example.org"
    assert tracking_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    with pytest.raises(ConfigError, match="https only"):
        tracking_uri("http://mlflow.example.org")
    with pytest.raises(ConfigError, match="not file:"):
        tracking_uri("file:///srv/mlruns")


def test_a_store_that_cannot_be_opened_is_said_in_a_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(UnreachableError, match="MLflow's store"):
        MlflowWriter(str(tmp_path))
