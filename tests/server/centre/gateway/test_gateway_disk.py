"""A centre whose disk is full pushes back, says so, and loses nothing."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import httpx
import pytest
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse

pytestmark = pytest.mark.e2e


@pytest.mark.slow
def test_below_the_margin_sites_wait_and_nothing_is_read(own_centre):
    centre = own_centre(min_free_disk=10**15)
    north = centre.admit("north")
    north.activate()
    assert north.heartbeat()
    assert north.pull() is None
    response = north.post("push-object", PushObjectRequest(node=north.node))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json() == {"detail": "try again later"}
    for _ in range(3):
        assert north.post("push-messages", PushObjectRequest()).status_code == 503
    # Once a minute, not once a request; and without anybody's name, for it is nobody's fault.
    said = [line for line in centre.log.read_text().splitlines() if "disk is nearly full" in line]
    assert len(said) == 1
    assert len(centre.events(kind="disk-full")) == 1


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0,
    reason="a small disk needs user and mount namespaces",
)
def test_an_update_survives_a_disk_that_is_really_full(own_centre, start_run):
    """Flower alone answers "stored: no" with status 200, and the update is gone."""
    centre = own_centre(start=False, small_disk=6_000_000, min_free_disk=0)
    north = centre.register("north")
    centre.start()
    north.node_id = north.activate()
    run = start_run(centre)
    asked = run.ask(north)
    answer = north.answer(north.pull()[0], 5.0)
    assert answer.push().status_code == 200
    filler = centre.inside / "filler"
    _fill(filler)
    *parts, root = answer.parts()
    response = answer.push_part(parts[0])
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert centre.post(centre.public, "/health").status_code == 404
    assert httpx.get(f"https://{centre.public}/health", verify=centre.tls()).status_code == 200
    # The ServerApp waits likewise, and its next instruction is not lost either.
    next_one = threading.Thread(target=run.ask, args=(north,), kwargs={"number": 0.125, "group": "2"})
    next_one.start()
    time.sleep(0.5)
    filler.unlink()
    for part in (*parts, root):
        again = answer.push_part(part)
        assert again.status_code == 200
        assert PushObjectResponse.FromString(again.content).stored
    (reply,) = run.collect(asked)
    assert reply.content["update"].to_numpy_ndarrays()[0][0] == 5.0
    next_one.join(30)
    assert not next_one.is_alive()
    assert north.pull()[0].metadata.group_id == "2"
    assert "disk is nearly full" in centre.log.read_text()


def _fill(path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    size = 1 << 20
    while size:
        try:
            os.write(descriptor, b"x" * size)
        except OSError:
            size //= 2
    os.close(descriptor)
