"""What a hospital did not agree to is refused before any training step, with a code, and audited."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PLAN = """
[data]
findings = "effusion"
image_size = 32
[model]
backbone = "timm:test_vit"
[pet]
method = "head"
[rounds]
count = 1
sites = 2
quorum = 2
deadline = 60.0
[evaluate]
local = false
replicates = 50
"""


@pytest.fixture(scope="module")
def up(deploy: Callable[[str], Any]) -> Iterator[Any]:
    """A centre with two hospitals that approved one plan."""
    d = deploy("refusals")
    d.make_centre()
    plan = d.plan(PLAN)
    for seed, name in enumerate(("north", "south")):
        d.export(name, "--studies", "40", "--seed", str(seed), "--size", "48")
        d.join(name, approve=False)
        d.approve(name, "--plan", plan)
    d.up(("north", "south"))
    d.run_plan = plan
    return d


def refusals(d: Any, site: str, code: str) -> list[dict[str, Any]]:
    return [line for line in d.audit(site) if line.get("code") == code]


def trained(d: Any, site: str) -> int:
    return sum(line["kind"] == "answer" and "update" in line["records"] for line in d.audit(site))


def refused_run(d: Any, name: str, code: str, plan: Path, *arguments: str) -> None:
    """Submit a run and see both sites refuse it: at the centre by name, at home in the audit."""
    before = {site: trained(d, site) for site in d.sites}
    d.server("run", plan, "--name", name, "--yes", *arguments, exit_code=6)
    events = d.events(name, "refused")
    assert {e["site"] for e in events} == set(d.sites)
    assert {json.loads(str(e["facts"]))["code"] for e in events} == {code}
    for site in d.sites:
        assert refusals(d, site, code), f"{site} did not audit {code}"
        assert trained(d, site) == before[site]


def test_code_changed_by_one_byte(up: Any) -> None:
    """The centre's installed code is taken as it is; what it sends is swapped on the way to Flower."""
    from flwr.cli.build import build_fab_from_files

    from common.bundle import read_bundle
    from server.centre.bundle import build_bundle

    files = {name: data for name, data in read_bundle(build_bundle()).items() if not name.startswith(".info")}
    source = files["client/app.py"]
    files["client/app.py"] = source.replace(b"hands", b"hants", 1)
    assert sum(a != b for a, b in zip(source, files["client/app.py"], strict=True)) == 1
    (up.root / "changed.fab").write_bytes(build_fab_from_files(files)[0])
    refused_run(up, "changed", "E_APPROVAL", up.run_plan, "--bundle", str(up.root / "changed.fab"))


@pytest.mark.parametrize(("name", "setting"), [("full", "pet.method=full"), ("greedy", "train.epochs=1000")])
def test_a_plan_above_policy(up: Any, name: str, setting: str) -> None:
    refused_run(up, name, "E_POLICY", up.run_plan, "--set", setting)


def test_another_base(up: Any) -> None:
    refused_run(up, "base", "E_DIGEST", up.run_plan, "--set", "model.backbone=timm:test_vit2")


def test_strangers_at_the_door_leave_a_round_unharmed(up: Any) -> None:
    """400 connections that say nothing, or half a request, while a run goes from beginning to end."""
    idle = []
    for number in range(400):
        idle.append(socket.create_connection(("127.0.0.1", up.gate), timeout=5))
        if number % 2:
            idle[-1].sendall(b"\x16\x03\x01")  # the beginning of a TLS handshake
    try:
        up.server("run", up.run_plan, "--name", "besieged", "--yes")
    finally:
        for connection in idle:
            connection.close()
    (only,) = up.events("besieged", "round")
    record = json.loads(str(only["facts"]))
    assert record["status"] == "committed" and record["returned"] == ["north", "south"]
    assert not up.events("besieged", "lost")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's database migrations
def test_replayed_stale_foreign_and_unsigned_instructions(up: Any) -> None:
    """An intruder at the centre holds its database and even old signed instructions, not its key."""
    from flwr.app import Message
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.federation import NoOpFederationManager

    from common.protocol import MESSAGE_TYPES, Instruction
    from common.signing import load_signing_key, sign
    from common.wire import instruction_to_records
    from server.centre.registry import Registry

    d = up
    d.stop("south")  # the run then waits for south, and stays a running one
    d.server("run", d.run_plan, "--name", "long", "--yes", "--detach")
    numbers = json.loads((d.run_folder("long") / "flower.json").read_text())
    run = int(numbers["runs"][-1] if isinstance(numbers, dict) else numbers[-1])
    node = {name: number for number, name in Registry(d.centre / "registry.sqlite").names().items()}["north"]
    digests = tomllib.loads((d.run_folder("long") / "plan.toml").read_text())["digests"]
    key = load_signing_key(d.centre / "keys" / "centre.key")
    end = time.monotonic() + 90
    while not any(line["kind"] == "answer" and line.get("run") == str(run) for line in d.audit("north")):
        assert time.monotonic() < end, "north never answered the run's first instruction"
        time.sleep(0.5)

    database = str(d.centre / "superlink.sqlite")
    objects = ObjectStoreFactory(database)
    state = LinkStateFactory(database, NoOpFederationManager(), objects).state()
    store = objects.store()
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run, 1, 1

    def inject(instruction: Instruction) -> None:
        message = Message(
            instruction_to_records(instruction), node, MESSAGE_TYPES[instruction.stage], ttl=60.0
        )
        message.metadata.__dict__["_message_id"] = message.object_id
        session = state.start_session(run)
        stored, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
        assert stored
        for object_id, part in get_all_nested_objects(message).items():
            if object_id in missing:
                store.put(object_id, part.deflate())

    honest = Instruction(
        stage="train",
        plan_digest=digests["plan"],
        code_digest=digests["code"],
        base_digest=digests["base"],
        round=1,
        run=str(run),
        site="north",
        sequence=2**61,
    )

    def signed(**changes: Any) -> Instruction:
        changed = dataclasses.replace(honest, **changes)
        return dataclasses.replace(changed, signature=sign(key, changed.signed_bytes()))

    before = trained(d, "north")
    attacks = {
        "E_SIGNATURE": [honest, dataclasses.replace(signed(), round=2)],
        "E_REPLAY": [signed(sequence=1), signed(site="south"), signed(run="12345"), signed(committed=1)],
    }
    for code, instructions in attacks.items():
        for instruction in instructions:
            count = len(refusals(d, "north", code))
            inject(instruction)
            end = time.monotonic() + 60
            while len(refusals(d, "north", code)) == count:
                assert time.monotonic() < end, f"north did not refuse with {code}: {instruction}"
                time.sleep(0.3)
    assert trained(d, "north") == before
    d.site("audit", "verify", d.sites["north"])
    d.server("stop", "long")
