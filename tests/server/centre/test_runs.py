"""A run's life at the centre: carried out, broken off, resumed, rolled back, handed out; by real parts."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

from client.app import SITE_FILE
from client.app import app as client_app
from common.config import RunConfig
from common.errors import CheckpointError, DigestError, RunError
from common.model.base import load_base
from common.model.build import build_model
from server.centre.folder import CentreFolder
from server.centre.follow import line_of, standing
from server.centre.hand_out import hand_out
from server.centre.rollback import roll_back
from server.centre.run_folder import RunFolder, find_run, run_of_flower
from server.centre.session import carry_out
from server.checkpoint import commit, committed
from server.plan import write_plan
from simulations.engine import run_inline
from simulations.experiment import Experiment
from simulations.inline_grid import InlineGrid
from simulations.prepare import prepare_sites

FLAT = {
    "data.findings": "effusion, edema",
    "data.image-size": 32,
    "model.backbone": "timm:test_vit",
    "pet.rank": 2,
    "train.batch-size": 16,
    "train.lr": 0.01,
    "rounds.count": 3,
    "rounds.sites": 2,
    "rounds.quorum": 2,
    "rounds.deadline": 60.0,
    "evaluate.local": False,
    "evaluate.replicates": 20,
}
CONFIG = RunConfig.from_flat(FLAT)
NODES = {"east": 2**63 + 5, "north": 7}
"""As the provisioned centre has them."""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    phantoms = {
        "north": {"studies": 50, "seed": 1, "size": 32},
        "east": {"studies": 40, "seed": 2, "size": 32},
    }
    tree = {"sites": {name: {"phantom": phantom} for name, phantom in phantoms.items()}}
    experiment = Experiment.build(tree | {"data": {"findings": ["effusion", "edema"], "image_size": 32}})
    return prepare_sites(experiment, tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def simulated(sites: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the researcher's engine for the same plan and sites."""
    folder = tmp_path_factory.mktemp("simulated")
    before = os.environ.pop("FEDCXR_CENTRE", None)
    try:
        run_inline(CONFIG, {name: sites[name] for name in NODES}, folder)
    finally:
        os.environ.pop("FEDCXR_RUN", None)
        if before is not None:
            os.environ["FEDCXR_CENTRE"] = before
    return (folder / "release" / "adapter_model.safetensors").read_bytes()


def grid(sites: dict[str, Path], number: int, config: RunConfig = CONFIG) -> InlineGrid:
    flat = config.to_flat()
    contexts = {
        node: Context(number, node, {SITE_FILE: str(sites[name])}, RecordDict(), flat)
        for name, node in NODES.items()
    }
    return InlineGrid(client_app, contexts)


def planned(centre: CentreFolder, name: str, number: int, config: RunConfig = CONFIG) -> RunFolder:
    run = RunFolder(centre.run(name))
    write_plan(config, build_model(config).base_digest, run.path)
    run.add_flower_run(number)
    return run


@pytest.fixture(scope="module")
def template(
    sites: dict[str, Path],
    provision: Callable[..., CentreFolder],
    tmp_path_factory: pytest.TempPathFactory,
) -> CentreFolder:
    """A centre with one finished run."""
    centre = provision(tmp_path_factory.mktemp("template") / "centre")
    planned(centre, "first", 11)
    carry_out(grid(sites, 11), 11, CONFIG, centre)
    return centre


@pytest.fixture
def centre(template: CentreFolder, tmp_path: Path) -> CentreFolder:
    return CentreFolder(shutil.copytree(template.root, tmp_path / "centre"))


@pytest.fixture
def run(centre: CentreFolder) -> RunFolder:
    return find_run(centre, "first")


def adapter(run: RunFolder) -> bytes:
    return (run.path / "release" / "adapter_model.safetensors").read_bytes()


# ------------------------------------------------------------------ carried out


def test_a_run_at_the_centre_releases_the_simulations_adapter(run: RunFolder, simulated: bytes) -> None:
    assert adapter(run) == simulated
    assert run.outcome() == "finished" and standing(run) == "finished, 3 of 3 rounds"
    assert run.served_by() == 11 and not run.at_work


def test_a_serverapp_finds_its_folder_though_the_number_is_noted_later(
    centre: CentreFolder, run: RunFolder
) -> None:
    import threading

    threading.Timer(0.3, run.add_flower_run, [12]).start()
    assert run_of_flower(centre, 12, patience=5) == run
    with pytest.raises(RunError, match="Flower's run 13"):
        run_of_flower(centre, 13, patience=0.3)


def test_only_one_works_in_a_folder(centre: CentreFolder, run: RunFolder) -> None:
    with run.hold(0):
        assert run.at_work
        with pytest.raises(RunError, match="another process"), run.hold(0.2):
            pytest.fail("two at once")
        with pytest.raises(RunError, match="another process"):
            roll_back(run, 1)
    assert not run.at_work


# ------------------------------------------------------------------ broken off and resumed


class Struck(BaseException):
    """The process dies here."""


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "moment", ["asked", pytest.param("returned", marks=_SLOW), "round", pytest.param("chosen", marks=_SLOW)]
)
def test_a_run_that_died_at_any_moment_resumes_to_the_same_adapter(
    centre: CentreFolder,
    sites: dict[str, Path],
    simulated: bytes,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    from server.ledger import Ledger

    run = planned(centre, "second", 21)
    tell = Ledger.event

    def strike(self: Ledger, kind: str, text: str, **facts: Any) -> None:
        tell(self, kind, text, **facts)
        if kind == moment and facts.get("round", 2) == 2:
            raise Struck

    monkeypatch.setattr(Ledger, "event", strike)
    with pytest.raises(Struck):
        carry_out(grid(sites, 21), 21, CONFIG, centre)
    monkeypatch.undo()
    assert run.outcome() == "" and not run.at_work
    before = len(committed(run.path / "checkpoints"))
    run.add_flower_run(22)
    carry_out(grid(sites, 22), 22, CONFIG, centre)
    assert adapter(run) == simulated
    assert run.flower_runs() == [21, 22] and run.served_by() == 22
    resumed = [event.round for event in run.events() if event.kind == "resumed"]
    assert resumed == [before]
    counted = [event.round for event in run.events() if event.kind == "round"]
    assert counted == [1, 2, 3], "every round is committed once"


def test_what_ends_a_run_is_told_in_its_ledger(centre: CentreFolder, sites: dict[str, Path]) -> None:
    rounds = CONFIG.rounds.model_copy(update={"deadline": 0.5, "quorum": 3, "sites": 3})
    config = CONFIG.model_copy(update={"rounds": rounds})
    run = planned(centre, "lonely", 31, config)
    with pytest.raises(RunError):
        carry_out(grid(sites, 31, config), 31, config, centre)
    assert run.outcome() == "failed" and standing(run) == "failed, 0 of 3 rounds"
    last = run.events()[-1]
    assert last.facts["code"] == "E_QUORUM" and "too few sites" in line_of(last)
    assert "too few sites" in (centre.logs / "serverapp.log").read_text()


def test_a_fault_of_ours_is_told_without_its_words(
    centre: CentreFolder, sites: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(centre, "faulty", 41)

    def broken(*_: object) -> None:
        raise TypeError("secret words")

    monkeypatch.setattr("server.plan.train_rounds", broken)
    with pytest.raises(TypeError):
        carry_out(grid(sites, 41), 41, CONFIG, centre)
    last = run.events()[-1]
    assert last.kind == "failed" and "TypeError" in last.text and "secret" not in last.text


# ------------------------------------------------------------------ rolled back


def test_rolled_back_and_resumed_it_ends_in_the_same_adapter(
    centre: CentreFolder, run: RunFolder, sites: dict[str, Path], simulated: bytes
) -> None:
    assert roll_back(run, 1) == [2, 3]
    assert committed(run.path / "checkpoints") == [1]
    aside = run.path / "rolled-back-1"
    assert {path.name for path in aside.iterdir()} == {"round-0002", "round-0003", "release"}
    assert run.outcome() == "" and standing(run) == "not running, 1 of 3 rounds"
    with pytest.raises(RunError, match="released nothing yet"):
        hand_out(run, None, False)
    run.add_flower_run(12)
    carry_out(grid(sites, 12), 12, CONFIG, centre)
    assert adapter(run) == simulated
    assert standing(run) == "finished, 3 of 3 rounds"
    roll_back(run, 0)
    assert committed(run.path / "checkpoints") == []
    assert (run.path / "rolled-back-0" / "round-0001").is_dir()


def test_rolling_back_twice_to_a_round_keeps_both(run: RunFolder) -> None:
    checkpoints = run.path / "checkpoints"
    roll_back(run, 2)
    shutil.copytree(run.path / "rolled-back-2" / "round-0003", checkpoints / "round-0003")
    roll_back(run, 2)
    assert (run.path / "rolled-back-2-2" / "round-0003").is_dir()


@pytest.mark.parametrize(("to", "said"), [(7, "no round 7"), (3, "newest"), (-1, "no round -1")])
def test_there_must_be_such_a_round(run: RunFolder, to: int, said: str) -> None:
    with pytest.raises(RunError, match=said):
        roll_back(run, to)
    assert committed(run.path / "checkpoints") == [1, 2, 3]


# ------------------------------------------------------------------ handed out


def test_a_release_is_verified_and_copied(run: RunFolder, tmp_path: Path, simulated: bytes) -> None:
    from peft import PeftModel

    out = tmp_path / "out"
    released = hand_out(run, out, False)
    assert released.folder == out and (out / "adapter_model.safetensors").read_bytes() == simulated
    net, _, _ = load_base(run.config())
    opened = PeftModel.from_pretrained(net, str(out))
    assert any("lora_B" in name for name, _ in opened.named_parameters())
    assert hand_out(run, None, False).folder == run.path / "release"


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_release_that_is_not_what_the_run_wrote_is_written_again(
    run: RunFolder, simulated: bytes, damage: str
) -> None:
    file = run.path / "release" / "adapter_model.safetensors"
    if damage == "gone":
        shutil.rmtree(file.parent)
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    hand_out(run, None, False)
    assert adapter(run) == simulated


def test_a_release_whose_round_is_damaged_too_is_refused(run: RunFolder) -> None:
    told = json.loads((run.path / "checkpoints" / "round-0003" / "manifest.json").read_text())
    for number in (1, 2, 3):
        place = run.path / "checkpoints" / f"round-{number:04d}" / "adapter.safetensors"
        data = bytearray(place.read_bytes())
        data[-1] ^= 1
        place.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        hand_out(run, None, False)
    assert told["round"] == 3


def test_another_adapter_under_a_true_manifest_is_refused(run: RunFolder) -> None:
    """Whoever can write the folder swaps release and round alike: the ledger's hash tells."""
    from dataclasses import replace

    from common.adapter import AdapterState
    from server.checkpoint import read
    from server.ledger import Ledger

    plan = Ledger(run.ledger).get("plan_digest")
    for number in (1, 2, 3):
        found = read(run.path / "checkpoints", number, plan)
        tensors = {name: tensor + 1 for name, tensor in found.state.tensors.items()}
        commit(run.path / "checkpoints", replace(found, state=AdapterState(tensors, {})), plan)
    shutil.rmtree(run.path / "release")
    with pytest.raises(CheckpointError, match="no longer gives the adapter"):
        hand_out(run, None, False)


def test_the_merged_network_says_what_the_model_says(run: RunFolder, tmp_path: Path) -> None:
    released = hand_out(run, tmp_path / "out", True)
    config = run.config()
    from server.checkpoint import read

    checkpoint = read(run.path / "checkpoints", released.round, released.plan_digest)
    model = build_model(config)
    digest = model.base_digest
    model.load(checkpoint.state)
    net, _, _ = load_base(config)
    assert released.merged is not None
    net.load_state_dict(load_file(released.merged))
    images = torch.randn(4, model.channels, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), model.forward(images), atol=1e-5, rtol=1e-5)
        untouched, _, _ = load_base(config)
        assert not torch.allclose(untouched.eval()(images), model.forward(images), atol=1e-3)
    assert build_model(config).base_digest == digest


def test_nothing_is_merged_into_another_base(run: RunFolder, tmp_path: Path) -> None:
    file = run.path / "plan.toml"
    base = run.config() and json.loads(json.dumps(build_model(run.config()).base_digest))
    file.write_text(file.read_text().replace(base, "0" * 64))
    with pytest.raises(DigestError, match="the base here"):
        hand_out(run, tmp_path / "out", True)


def test_a_serverapp_that_flower_interrupts_says_why(
    centre: CentreFolder, sites: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's client sends its own process SIGINT once its task is over; handlers are put back."""
    run = planned(centre, "interrupted", 51)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("server.plan.train_rounds", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(RunError, match="Flower has ended this run"):
        carry_out(grid(sites, 51), 51, CONFIG, centre)
    assert run.outcome() == "failed" and "resume" in run.events()[-1].text
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_was_stopped_has_not_failed(
    centre: CentreFolder, sites: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(centre, "stopped", 61)

    def stopped(*_: object) -> None:
        run.tell("stopped", "stopped from the centre")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("server.plan.train_rounds", stopped)
    with pytest.raises(RunError):
        carry_out(grid(sites, 61), 61, CONFIG, centre)
    assert run.outcome() == "stopped"
