"""The benchmark of a round's overhead: what it reads from the records of a deployment."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.gate.audit import Audit
from client.place import SiteFolder
from common.signing import create_signing_key
from server.centre.run_folder import RunFolder
from server.ledger import Ledger
from simulations.benchmarks.round_overhead import (
    KINDS,
    PARTS,
    SITES,
    Measured,
    Round,
    Visit,
    lines_of,
    main,
    measure,
    rounds_of,
    worked_in,
)

LATE = Round(
    10.0,
    14.0,
    {
        "north": Visit(10.5, 10.6, 12.6, 12.75, 13.5),
        "south": Visit(10.1, 10.2, 11.2, 11.3, 11.5),
    },
)


def test_the_parts_are_the_whole_round_of_the_site_that_answers_last() -> None:
    assert LATE.slowest == pytest.approx(2.0) and LATE.overhead == pytest.approx(2.0)
    parts = LATE.parts()
    assert [*parts] == [*PARTS]
    assert sum(parts.values()) == pytest.approx(LATE.over - LATE.asked)
    assert parts["worked"] == pytest.approx(2.0) and parts["up"] == pytest.approx(0.75)


def test_what_takes_longest_is_said() -> None:
    lines = lines_of("small adapter", Measured([LATE], 0.1))
    assert lines[-2].endswith(PARTS["up"]), "not the work, however long it took"
    assert "0.100 s" in lines[-1] and "0.300 s for 3 sites" in lines[-1]


def test_a_round_worked_on_twice_counts_as_it_was_last() -> None:
    log = "1970-01-02 00:00:10,500 train of round 1: done in 2.000 s\n"
    again = "1970-01-02 00:00:20,250 train of round 1: done in 0.250 s\n"
    noise = "1970-01-02 00:00:21,000 evaluate of round 1: done in 1.000 s\n"
    (found,) = worked_in(log + again + noise).items()
    assert found[0] == 1
    began, ended = found[1]
    assert ended - began == pytest.approx(0.25) and ended % 60 == pytest.approx(20.25)


@pytest.fixture
def sites(tmp_path: Path) -> Mapping[str, SiteFolder]:
    made = {}
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        made[name] = SiteFolder.of(tmp_path / name)
        create_signing_key(made[name].signing_key)
        made[name].logs.mkdir(parents=True)
    return made


def log_work(folder: SiteFolder, number: int, took: float) -> None:
    """Write the line that a worker writes."""
    record = logging.LogRecord(
        "worker", logging.INFO, "", 0, "train of round %d: done in %.3f s", (number, took), None
    )
    with (folder.logs / "worker.log").open("a") as log:
        log.write(logging.Formatter("%(asctime)s %(message)s").format(record) + "\n")


def test_the_moments_come_from_ledger_audit_and_log(tmp_path: Path, sites: Mapping[str, SiteFolder]) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.add_flower_run(7)
    ledger = Ledger(run.ledger)
    for number in (1, 2, 3):
        ledger.event("asked", "", round=number)
        for name, folder in sites.items():
            audit = Audit(folder)
            audit.append("instruction", stage="train", run="6", round=number)  # of another run
            audit.append("instruction", stage="train", run="7", round=number)
            time.sleep(0.02)
            log_work(folder, number, 0.01)
            audit.append("answer", stage="train", run="7", round=number)
            audit.append("answer", stage="evaluate", run="7", round=number)
            ledger.event("returned", "", round=number, site=name)
    ledger.close()
    found = rounds_of(run, sites)
    assert len(found) == 2, "the last round has no next one"
    for one in found:
        assert {*one.visits} == {"north", "south"}
        assert one.slowest == pytest.approx(0.01, abs=1e-6)
        # Times in logs and audits are cut to milliseconds.
        assert min(one.parts().values()) > -0.003
        assert sum(one.parts().values()) == pytest.approx(one.over - one.asked)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_a_real_deployment_is_measured(tmp_path: Path) -> None:
    (kind, *_) = KINDS
    (measured,) = measure(tmp_path, [kind], 2).values()
    assert len(measured.rounds) == 2 and measured.superlink > 0
    for one in measured.rounds:
        assert {*one.visits} == {*SITES}
        assert 0 < one.slowest < one.over - one.asked
        assert min(one.parts().values()) > -0.01


def test_a_limit_that_is_missed_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"small adapter": Measured([LATE], 0.1)}
    monkeypatch.setattr("simulations.benchmarks.round_overhead.measure", lambda *_: measured)
    numbers = tmp_path / "numbers.json"
    assert main(["--most", "1.5", "--json", str(numbers)]) == 1
    assert "above the limit of 1.5 s" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["small adapter"]["rounds"][0]["overhead"] == 2.0
    assert main(["--most", "2.5"]) == 0


def test_what_the_engine_alone_takes_is_no_miss_of_ours_but_is_said() -> None:
    """LATE is 2 s beyond its slowest site; three sites at 0.6 s of the SuperLink are 1.8 s."""
    measured = Measured([LATE], 0.6)
    assert not measured.missed(1.5) and measured.missed(1.9)
    assert "SuperLink alone uses 1.800 s" in measured.verdict(1.5)
    assert measured.verdict(1.9) == "above the limit of 1.9 s"
    assert not measured.missed(2.0) and "within" in measured.verdict(2.0)
