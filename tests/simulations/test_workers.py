"""As many workers as fit, and no more; and what Ray makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from client import app as client_app
from common.errors import ConfigError
from simulations import engine
from simulations.workers import Footprint, Machine, Share, limit_threads, measure_worker, one_step, share_out

GIB = 1024**3
LAPTOP, SERVER = Machine(2, 0.0, 8 * GIB), Machine(16, 2.0, 100 * GIB)


@pytest.mark.parametrize(
    ("machines", "footprint", "asked", "expected"),
    [
        ([LAPTOP], Footprint(GIB), {"sites": 8}, Share(1, 0.0, 2, 1)),
        ([LAPTOP], Footprint(5 * GIB), {"sites": 8}, Share(2, 0.0, 1, 2)),
        ([LAPTOP], Footprint(GIB), {"sites": 8, "threads": 2}, Share(2, 0.0, 1, 2)),
        ([LAPTOP], Footprint(GIB), {"sites": 1}, Share(2, 0.0, 1, 2)),
        # memory holds five
        ([SERVER], Footprint(20 * GIB), {"sites": 30}, Share(3, 0.0, 5, 3)),
        ([SERVER], Footprint(20 * GIB), {"sites": 30, "threads": 1}, Share(3, 0.0, 5, 1)),
        ([SERVER], Footprint(GIB), {"sites": 3}, Share(5, 0.0, 3, 5)),
        # two GPUs of 80 GiB, each for four workers
        ([SERVER], Footprint(GIB, 18 * GIB, 80 * GIB), {"sites": 30}, Share(2, 0.25, 8, 2)),
        ([SERVER], Footprint(GIB, 18 * GIB, 80 * GIB), {"sites": 30, "gpus": 1.0}, Share(8, 1.0, 2, 8)),
        ([SERVER], Footprint(GIB, 90 * GIB, 80 * GIB), {"sites": 30}, Share(8, 1.0, 2, 8)),
        # a cluster: what fits everywhere
        ([LAPTOP, SERVER], Footprint(GIB), {"sites": 30}, Share(1, 0.0, 18, 1)),
        # the laptop holds none: its two cores must not be enough
        ([LAPTOP, SERVER], Footprint(9 * GIB), {"sites": 30}, Share(3, 0.0, 5, 3)),
        ([Machine(0, 0.0, 2 * GIB), SERVER], Footprint(9 * GIB), {"sites": 30}, Share(2, 0.0, 8, 2)),
        # the server holds four by its memory; its share is more than the laptop has
        ([LAPTOP, Machine(16, 0.0, 30 * GIB)], Footprint(7 * GIB), {"sites": 30}, Share(4, 0.0, 4, 4)),
    ],
)  # fmt: skip
def test_as_many_as_memory_cores_and_gpus_hold(
    machines: list[Machine], footprint: Footprint, asked: dict[str, Any], expected: Share
) -> None:
    share = share_out(machines, footprint, **asked)
    assert share == expected
    for machine in machines:
        here = machine.cores // share.cores  # as Flower counts what Ray has
        if share.gpus:
            here = min(here, int(machine.gpus / share.gpus))
        assert here * footprint.memory <= machine.memory


@pytest.mark.parametrize(
    ("footprint", "asked"),
    [(Footprint(9 * GIB), {}), (Footprint(GIB), {"threads": 4}), (Footprint(GIB), {"gpus": 0.5})],
)
def test_where_not_one_fits_it_is_said(footprint: Footprint, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no machine holds one site's worker") as caught:
        share_out([LAPTOP], footprint, 3, **asked)
    assert "8.0 GiB free" in caught.value.found


def test_a_machine_too_small_that_cannot_be_passed_over_is_said() -> None:
    many_cores = Machine(64, 0.0, GIB)
    with pytest.raises(ConfigError, match="does not has the most cores") as caught:
        share_out([SERVER, many_cores], Footprint(9 * GIB), 3)
    assert "take small machines out" in caught.value.fix


@pytest.mark.slow
def test_a_worker_is_measured_by_what_it_does(tiny: Any, tiny_sites: dict[str, Path]) -> None:
    config = tiny().run_config(3)
    before = {file: sorted(file.parent.rglob("*state*/*")) for file in tiny_sites.values()}
    footprint = measure_worker(config, tiny_sites)
    # torch and timm alone take more than 200 MiB; nothing here takes as much as this machine has.
    assert 200 * 1024**2 < footprint.memory < psutil.virtual_memory().total
    assert footprint.gpu == 0 or footprint.gpu < footprint.gpu_whole
    assert before == {file: sorted(file.parent.rglob("*state*/*")) for file in tiny_sites.values()}


@pytest.mark.slow
def test_sites_that_cannot_train_are_passed_over(
    tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path
) -> None:
    """Of three one has no label of the plan, and one no table any more."""
    gone = tmp_path / "site.toml"
    gone.write_text(tiny_sites["east"].read_text().replace('table = "', 'table = "no-'))
    config = tiny(data={"findings": ["cardiomegaly"]}).run_config(3)
    footprint = measure_worker(config, {**tiny_sites, "east": gone})
    assert 200 * 1024**2 < footprint.memory < psutil.virtual_memory().total
    assert measure_worker(config, {"east": gone}).memory > 200 * 1024**2


def test_one_step_trains_what_the_run_trains(tiny: Any) -> None:
    config = tiny(rounds={"count": 9, "probe": 2}, pretrain={"rounds": 3}).run_config(3)
    short = one_step(config)
    assert (short.rounds.count, short.rounds.probe, short.pretrain.rounds) == (1, 0, 1)
    assert short.train.steps == short.pretrain.steps == 1
    assert short.train.batch_size == config.train.batch_size and short.pet == config.pet


def test_a_site_computes_with_no_more_threads_than_its_worker_has(
    tiny_sites: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(tiny_sites["east"].read_text().replace("threads = 1", "threads = 8"))
    for most, threads in ((16, 8), (3, 3), (4, 3), (1, 1)):
        limit_threads(file, most)
        assert client_app.worker_for(file).site.device.threads == threads


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[list[str]]]:
    """Let every answer under Ray leave a line: process, whether it just built a model, machine, GPUs."""
    seen, make_app = tmp_path / "seen", engine.make_app

    def noting(mods: Any) -> Any:
        def note(message: Any, context: Any, call: Any) -> Any:
            import ray

            reply = call(message, context)
            where = ray.get_runtime_context().get_node_id()
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            for model in client_app._pool()._models.values():
                what = "used" if hasattr(model, "noted") else "built"
                model.noted = True  # type: ignore[attr-defined]
                with seen.open("a") as stream:
                    stream.write(f"{os.getpid()},{what},{where},{gpus}\n")
            return reply

        return make_app([*mods, note])

    monkeypatch.setattr(engine, "make_app", noting)
    return lambda: [line.split(",") for line in seen.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_ray_worker_builds_its_model_once(
    run_tiny: Any, tmp_path: Path, noted: Callable[[], list[list[str]]]
) -> None:
    """Three sites and three rounds: every process goes on using the one model it built."""
    run_tiny(tmp_path / "run", engine="ray", rounds={"count": 3, "deadline": 200.0})
    lines = noted()
    processes = {line[0] for line in lines}
    assert 1 <= len(processes) <= min(3, os.cpu_count() or 1)
    assert str(os.getpid()) not in processes
    assert sum(line[1] == "built" for line in lines) == len(processes)
    assert len(lines) >= 3 * (1 + 3 + 1)  # enrol, train, evaluate


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_of_machines_with_gpus_is_used(
    run_tiny: Any,
    final_adapter: Any,
    tmp_path: Path,
    noted: Callable[[], list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of Ray's nodes that say they have a GPU each: both answer, each with a GPU of its own."""
    from ray.cluster_utils import Cluster

    from simulations.run import quiet_libraries

    quiet_libraries()
    patient = {"count": 2, "deadline": 200.0}
    run_tiny(tmp_path / "inline", rounds=patient)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        cluster.add_node(num_cpus=1, num_gpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        run_tiny(tmp_path / "cluster", engine="ray", gpus=1.0, rounds=patient)
    finally:
        cluster.shutdown()
    lines = noted()
    assert len({line[0] for line in lines}) == len({line[2] for line in lines}) == 2
    assert {line[3] for line in lines} == {"0"}
    assert final_adapter(tmp_path / "cluster").digest() == final_adapter(tmp_path / "inline").digest()
