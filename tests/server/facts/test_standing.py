"""A run's standing follows what happens in it, and names whom it waits for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from common.errors import RunError
from server.centre.folder import CentreFolder
from server.centre.follow import standing as said_by_the_command
from server.centre.registry import Registry
from server.centre.run_folder import RunFolder
from server.facts.records import Waiting
from server.facts.runs import Run, Runs
from server.facts.standing import standing

SITES = ["east", "north", "south"]


def test_a_run_from_its_first_event_to_its_last(told) -> None:
    def now():
        return standing(told.run, told.now)

    assert (now().state, now().sentence, now().rounds) == ("waiting", "starting", 4)
    told.tell("plan")
    assert now().state == "enrolling"
    told.tell("waiting", sites=["south"])
    assert now().waiting == (Waiting("south", 1001.0),) and now().deadline == 1061.0
    assert "waiting for south" in now().sentence
    for site in SITES:
        told.tell("enrolled", site=site)
    assert now().waiting == () and "3 have" in now().sentence
    told.tell("stage")
    told.tell("asking", stage="local", cohort=SITES, deadline=60.0)
    assert now().state == "local" and [w.site for w in now().waiting] == SITES
    told.tell("local", site="north")
    assert [w.site for w in now().waiting] == ["east", "south"]
    assert now().since == 1006.0, "the stage began with itself, not with the question"

    told.tell("asked", round=1, cohort=SITES, deadline=60.0)
    asked = told.now
    standing_now = now()
    assert (standing_now.state, standing_now.round, standing_now.committed) == ("training", 1, 0)
    assert standing_now.sentence == "round 1 of 4, waiting for east, north and south"
    assert standing_now.deadline == asked + 60.0 and standing_now.since == asked
    told.tell("lost", round=1, site="east", code="E_NODE_5")
    told.tell("returned", round=1, site="north")
    told.tell("rejected", round=1, site="south", code="E_NORM")
    assert now().waiting == (Waiting("east", asked),), "who was lost is still waited for"
    told.tell("returned", round=1, site="east")
    assert now().sentence == "round 1 of 4, every site has answered" and now().deadline is None
    told.finish_round(1, SITES)
    assert (now().state, now().round, now().committed) == ("training", 1, 1)
    assert now().sentence == "1 of 4 rounds, the next one begins"

    for number in (2, 3, 4):
        told.tell("asked", round=number, cohort=SITES)
        told.finish_round(number, SITES)
    told.tell("asking", stage="evaluate", arm="federated", cohort=SITES)
    assert now().state == "testing"
    assert now().sentence == "4 of 4 rounds; sites measure federated, waiting for east, north and south"
    told.tell("answered", site="north", code="")
    told.tell("answered", site="east", code="E_DATA")
    assert [w.site for w in now().waiting] == ["south"]
    told.tell("chosen", round=4)
    assert now().waiting == () and now().sentence == "4 of 4 rounds; models are measured"
    told.tell("stage", "the sites calibrate the adapter together")
    told.tell("asking", stage="calibrate", arm="", cohort=SITES)
    assert now().state == "testing"
    assert now().sentence == "4 of 4 rounds; sites calibrate together, waiting for east, north and south"
    told.tell("calibrated")
    assert now().waiting == ()
    told.tell("finished")
    done = standing(told.run, told.now + 1e6)
    assert (done.state, done.sentence, done.waiting) == ("finished", "finished, 4 of 4 rounds", ())


@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_an_end_before_its_time_and_a_new_beginning(told, end: str) -> None:
    told.tell("plan")
    told.tell("asked", round=1, cohort=SITES)
    told.tell(end)
    assert standing(told.run, told.now).state == end and standing(told.run, told.now).waiting == ()
    told.tell("submitted")
    assert standing(told.run, told.now).state == "waiting"
    told.tell("plan")
    assert standing(told.run, told.now).state == "enrolling"


def test_of_a_simulation_long_silence_is_a_guess_that_is_called_one(told) -> None:
    told.tell("plan")
    told.tell("asked", round=1, cohort=SITES)
    assert standing(told.run, told.now + 200).state == "training"
    idle = standing(told.run, told.now + 400)
    assert idle.state == "idle" and idle.waiting == ()
    assert idle.sentence == "quiet for 7 minutes, perhaps broken off; 0 of 4 rounds"
    told.tell("returned", round=1, site="east", after=500.0)
    assert standing(told.run, told.now + 1400).state == "training", "this run is a slow one"
    assert standing(told.run, told.now + 1600).state == "idle"


def test_many_sites_are_not_all_named(told) -> None:
    told.tell("plan")
    told.tell("asked", round=1, cohort=[f"s{k:02d}" for k in range(50)])
    assert standing(told.run, told.now).sentence == "round 1 of 4, waiting for s00, s01, s02, s03 and 46 more"


@pytest.fixture
def at_a_centre(told, tmp_path: Path) -> Run:
    """The same run, in a centre where east, north and south are admitted."""
    root = tmp_path / "centre"
    (root / "runs").mkdir(parents=True)
    (root / "centre.toml").write_text("")
    told.run.folder.rename(root / "runs" / "told")
    with Registry(root / "registry.sqlite") as registry:
        for place, site in enumerate(SITES):
            registry.admit(site, bytes([place]), f"ed25519:{site}", registry.invite(site))
    (root / "runs" / "told" / "flower.json").write_text('{"runs": ["1"]}')
    return Runs.of_centre(CentreFolder(root)).find("told")


def test_at_a_centre_the_lock_tells_whether_anybody_works(told, at_a_centre: Run) -> None:
    folder = RunFolder(at_a_centre.folder)
    told.tell("plan")
    told.tell("enrolled", site="north")
    with folder.hold(0.0):
        here = standing(at_a_centre, told.now + 1e6)
        assert here.state == "enrolling", "however long it takes"
        assert [w.site for w in here.waiting] == ["east", "south"]
        assert said_by_the_command(folder) == here.sentence
    told.tell("asked", round=1, cohort=SITES)
    left = standing(at_a_centre, told.now)
    assert (left.state, left.sentence) == ("idle", "not running, 0 of 4 rounds")
    assert said_by_the_command(folder) == left.sentence
    told.tell("submitted")
    assert standing(at_a_centre, told.now).state == "waiting", "handed in, and nobody has begun"


def test_looking_at_the_lock_keeps_nobody_out(at_a_centre: Run) -> None:
    """Somebody looks without a pause while another takes the lock a hundred times."""
    folder, stop = RunFolder(at_a_centre.folder), threading.Event()
    assert not folder.at_work and not (folder.path / ".lock").exists(), "looking makes no file"
    seen: set[bool] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add(folder.at_work)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(100):
            with folder.hold(0.0):
                assert folder.at_work
                time.sleep(0.001)
            time.sleep(0.001)  # so that it is seen free too
    except RunError:
        pytest.fail("looking kept the lock from somebody")
    finally:
        stop.set()
        thread.join()
    assert seen == {True, False}
