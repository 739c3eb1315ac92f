"""Whole federations whose updates and adapters are not sent in fp32: same bits after a crash, fewer bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from client.app import worker_for
from client.site import load_site
from common.adapter import AdapterState
from common.codec import adapter_digest, decode
from common.errors import ConfigError
from common.model.build import build_model
from common.protocol import CODEC_ERROR
from common.wire import answer_from_records
from server.ledger import Ledger
from server.report_schema import Report
from simulations.engine import run_inline
from tests.simulations.killed import kill_run

Run = Callable[..., Report]
Final = Callable[[Path], AdapterState]

LOSSY = [
    pytest.param({"codec": "fp16"}, marks=pytest.mark.slow),
    {"codec": "int8"},
    pytest.param({"codec": "int8", "entropy": True}, marks=pytest.mark.slow),
    {"codec": "topk", "keep": 0.05},
]
BOTH: dict[str, Any] = {"codec": "topk", "keep": 0.1, "downlink": "int8"}


def rounds(folder: Path) -> list[dict[str, Any]]:
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        return ledger.rounds()
    finally:
        ledger.close()


def measured(folder: Path, name: str) -> dict[tuple[str, int], float]:
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        rows = ledger._db.execute("SELECT site, round, value FROM measures WHERE name = ?", (name,))
        return {(site, number): value for site, number, value in rows}
    finally:
        ledger.close()


def apart(first: Path, second: Path) -> float:
    """How far apart two runs are after one round, relative to how far that round went."""
    one, two = (
        AdapterState.from_bytes((folder / "checkpoints/round-0001/adapter.safetensors").read_bytes())
        for folder in (first, second)
    )
    gap = sum(float((one.tensors[n] - t).double().square().sum()) for n, t in two.tensors.items())
    return gap**0.5 / measured(second, "aggregate-norm")["", 1]


@pytest.fixture(scope="module")
def exact(run_tiny: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact") / "run"
    run_tiny(folder, rounds={"count": 4})
    return folder


@pytest.mark.parametrize("wire", LOSSY, ids=str)
def test_a_codec_costs_little_and_says_what(
    run_tiny: Run, exact: Path, tmp_path: Path, wire: dict[str, Any]
) -> None:
    run_tiny(tmp_path / "run", wire=wire, rounds={"count": 4})
    found, plain = rounds(tmp_path / "run"), rounds(exact)
    assert not any(record["rejected"] for record in found)
    assert 0 < apart(tmp_path / "run", exact) < {"fp16": 1e-3, "int8": 0.01, "topk": 1.0}[wire["codec"]]
    share = {"fp16": 0.5, "int8": 1 / 3.8, "topk": 0.05}[wire["codec"]]
    for mine, theirs in zip(found, plain, strict=True):
        assert sum(mine["payload"].values()) <= share * sum(theirs["payload"].values())
        assert set(mine["codec_error"]) == {"north", "east", "south"}
        assert not theirs["codec_error"]
    told = measured(tmp_path / "run", CODEC_ERROR)
    assert told == {(s, r["round"]): v for r in found for s, v in r["codec_error"].items()}


def test_rows_that_a_site_does_not_annotate_leave_it_as_zero(
    tiny: Any, tmp_path: Path, tiny_sites: Any
) -> None:
    """South annotates no cardiomegaly; what it sends of that row of the head is exactly nothing."""
    sites = shutil.copytree(next(iter(tiny_sites.values())).parents[1], tmp_path / "sites")
    config = tiny(wire={"codec": "int8"}, pet={"method": "head"}, rounds={"count": 3}).run_config(3)
    schema, seen = build_model(config).schema, []

    def watch(reply: Any) -> Any:
        answer = answer_from_records(reply.content)
        if answer.update is not None and answer.site == "south":
            seen.append(schema.unpack(decode(answer.update, config.wire, schema.numel)))
        return reply

    run_inline(config, {n: sites / n / "site.toml" for n in tiny_sites}, tmp_path / "run", watch)
    worker_for.cache_clear()
    assert len(seen) == 3
    for tensors in seen:
        for name in schema.head:
            assert not tensors[name][0].any() and tensors[name][1:].any()


@pytest.mark.parametrize(
    "overrides",
    [
        {"wire": BOTH, "lora": {"aggregation": "rolora"}},
        pytest.param(
            {
                "wire": BOTH | {"codec": "int8"},
                "strategy": {"name": "fedadam"},
                "lora": {"aggregation": "ffa"},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rolora", "fedadam"],
)
def test_a_run_killed_and_resumed_ends_in_the_same_bits(
    run_tiny: Run,
    final_adapter: Final,
    tmp_path: Path,
    tiny: Any,
    tiny_sites: dict[str, Path],
    overrides: dict[str, Any],
) -> None:
    """What sites and centre owe, and who holds what, survive: half of a round was done when it died."""
    overrides = {**overrides, "rounds": {"count": 5}}
    run_tiny(tmp_path / "whole", **overrides)
    killed, sites = tmp_path / "killed", next(iter(tiny_sites.values())).parents[1]
    half_done = "SELECT count(*) FROM events WHERE kind = 'returned' AND round = ?"
    assert kill_run(tiny(**overrides), sites, killed, half_done, 4)[-1] == "round-0003"
    run_tiny(killed, resume=True, **overrides)
    assert final_adapter(killed).digest() == final_adapter(tmp_path / "whole").digest()
    for mine, theirs in zip(rounds(killed), rounds(tmp_path / "whole"), strict=True):
        keys = ("returned", "payload", "codec_error", "update_norm", "validation_before")
        assert {k: mine[k] for k in keys} == {k: theirs[k] for k in keys}


def test_a_second_run_of_a_plan_at_the_same_sites_owes_nothing(
    run_tiny: Run, final_adapter: Final, tmp_path: Path
) -> None:
    run_tiny(tmp_path / "run", wire=BOTH)
    first = final_adapter(tmp_path / "run").digest()
    for part in ("checkpoints", "release"):
        shutil.rmtree(tmp_path / "run" / part)
    for file in tmp_path.glob("run/ledger.sqlite*"):
        file.unlink()
    (tmp_path / "run" / "plan.toml").unlink()
    run_tiny(tmp_path / "run", wire=BOTH)
    assert final_adapter(tmp_path / "run").digest() == first
    state = load_site(tmp_path / "run" / "sites" / "north" / "site.toml").data.state
    assert len([*state.glob("feedback-*")]) == 2


# ---------------------------------------------------------------------- what goes down


@pytest.mark.parametrize("downlink", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_after_the_first_round_only_changes_go_down(
    run_tiny: Run, exact: Path, tmp_path: Path, downlink: str
) -> None:
    run_tiny(tmp_path / "run", wire={"downlink": downlink}, rounds={"count": 4})
    found, plain = rounds(tmp_path / "run"), rounds(exact)
    assert found[0]["down"] == pytest.approx(plain[0]["down"], rel=0.01)
    share = {"fp16": 0.55, "int8": 0.30}[downlink]
    for mine, theirs in zip(found[1:], plain[1:], strict=True):
        assert mine["down"] < share * theirs["down"]
    assert 0 < apart(tmp_path / "run", exact) < {"fp16": 1e-3, "int8": 0.01}[downlink]


def _run(tiny: Any, tiny_sites: dict[str, Path], place: Path, tamper: Callable[[Any], Any]) -> Path:
    """Run four rounds with int8 down, something happening to the replies on their way."""
    sites = shutil.copytree(next(iter(tiny_sites.values())).parents[1], place / "sites")
    config = tiny(wire={"downlink": "int8"}, rounds={"count": 4, "deadline": 3.0}).run_config(3)
    run_inline(config, {n: sites / n / "site.toml" for n in tiny_sites}, place / "run", tamper)
    worker_for.cache_clear()
    return place / "run"


def _forgetful(place: Path) -> Callable[[Any], Any]:
    """After round 2 east's disk loses the adapter it held."""

    def tamper(reply: Any) -> Any:
        answer = answer_from_records(reply.content)
        if reply.metadata.group_id == "2" and answer.site == "east":
            for file in (place / "sites").glob("east/*/feedback-*/adapter.safetensors"):
                file.unlink()
        return reply

    return tamper


def test_a_site_that_lost_what_it_held_is_sent_the_whole_and_nothing_changes(
    tiny: Any, final_adapter: Final, tmp_path: Path, tiny_sites: dict[str, Path]
) -> None:
    whole = _run(tiny, tiny_sites, tmp_path / "whole", lambda reply: reply)
    lost = _run(tiny, tiny_sites, tmp_path / "lost", _forgetful(tmp_path / "lost"))
    assert final_adapter(lost).digest() == final_adapter(whole).digest()
    for record in rounds(lost):
        assert record["returned"] == ["east", "north", "south"] and not record["rejected"]
    down, before = measured(lost, "down"), measured(whole, "down")
    assert down["east", 3] > 4 * before["east", 3]
    assert {key for key in down if down[key] > 1.01 * before[key]} == {("east", 3), ("", 3)}


def test_a_site_whose_answer_was_lost_is_sent_the_whole(
    tiny: Any, tmp_path: Path, tiny_sites: dict[str, Path]
) -> None:
    def tamper(reply: Any) -> Any:
        answer = answer_from_records(reply.content)
        return None if reply.metadata.group_id == "2" and answer.site == "south" else reply

    folder = _run(tiny, tiny_sites, tmp_path / "place", tamper)
    found, down = rounds(folder), measured(folder, "down")
    assert found[1]["missing"] == ["south"] and not found[2]["missing"]
    assert down["south", 3] > 3 * down["north", 3]
    assert down["south", 4] == pytest.approx(down["north", 4], rel=0.02)


def test_what_is_committed_is_what_sites_hold(tiny: Any, tmp_path: Path, tiny_sites: dict[str, Path]) -> None:
    """The site made its copy of changes, the centre's checkpoint says the same to the last bit."""
    folder = _run(tiny, tiny_sites, tmp_path / "place", lambda reply: reply)
    schema = build_model(tiny().run_config(3)).schema
    digests = {
        adapter_digest(schema.pack(AdapterState.from_bytes(file.read_bytes()).tensors))
        for file in (folder / "checkpoints").glob("round-*/adapter.safetensors")
    }
    assert len(digests) == 4
    for name in tiny_sites:
        (held,) = (tmp_path / "place" / "sites").glob(f"{name}/*/feedback-*/adapter.safetensors")
        assert adapter_digest(load_file(held)["values"].numpy()) in digests


def test_a_residual_is_not_kept_beside_rounded_factors(run_tiny: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedex"):
        run_tiny(tmp_path / "run", wire={"downlink": "int8"}, lora={"aggregation": "fedex"})
