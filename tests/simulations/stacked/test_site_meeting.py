"""Sites answer by their own code and meet where they train."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from client.prefix_cache import StudyInputs
from client.train import LocalResult, train_round, trained_by
from common.errors import ConfigError, DataError
from simulations.stacked import training
from simulations.stacked.limits import check_stack
from simulations.stacked.meeting import Meeting


def here(*arguments: object, **named: object) -> LocalResult:
    """Train as a worker does: with whoever else has come, alone where nobody meets."""
    return trained_by.get()(*arguments, **named)


@pytest.fixture
def arguments(make_model, sites):
    """What each site calls `train_round` with."""
    model = make_model(pet__method="head", train__batch_size=6)
    start = model.initial_state()
    return {
        name: (model, data, StudyInputs(model, data, model.config.train), start, 1, name)
        for name, data in sites.items()
    }


def test_all_that_come_are_trained_in_one_pass_and_each_gets_its_own(arguments, distance):
    order: list[str] = []

    def site(name: str) -> LocalResult:
        order.append(f"{name} comes")
        result = trained_by.get()(*arguments[name])
        order.append(f"{name} goes")
        return result

    together = Meeting(8)
    results = together.answer([partial(site, name) for name in arguments])
    assert together.passes == [3]
    assert order == [f"{name} {does}" for does in ("comes", "goes") for name in arguments]
    for (name, given), result in zip(arguments.items(), results, strict=True):
        alone = train_round(*given)
        assert distance(alone, result, given[3]) < 1e-4, name


def test_who_does_not_train_or_fails_holds_nobody_up(arguments):
    def refuses() -> LocalResult:
        raise DataError("nothing to train on")

    def answers() -> str:
        return "enough"

    trains = partial(here, *arguments["north"])
    together = Meeting(8)
    assert together.answer([answers, partial(here, *arguments["north"]), answers])[::2] == [
        "enough",
        "enough",
    ]
    with pytest.raises(DataError, match="nothing to train on"):
        together.answer([partial(here, *arguments["east"]), refuses])
    assert together.passes == [1, 1]
    assert isinstance(trains(), LocalResult)


def test_sites_may_train_several_times_and_not_as_often_as_others(arguments):
    def site(name: str, times: int) -> list[float]:
        return [trained_by.get()(*arguments[name]).loss for _ in range(times)]

    together = Meeting(8)
    losses = together.answer(
        [partial(site, name, times) for name, times in zip(arguments, (3, 1, 2), strict=True)]
    )
    assert together.passes == [3, 2, 1]
    assert [len(of_site) for of_site in losses] == [3, 1, 2]


def test_what_goes_wrong_in_a_pass_reaches_every_site_as_its_own_failure(arguments):
    def site(name: str) -> str:
        model, *rest = arguments[name]
        try:
            here(model, *rest, proximal_mu="much")
        except TypeError as error:
            return type(error).__name__
        return "trained"

    together = Meeting(8)
    assert together.answer([partial(site, name) for name in arguments]) == ["TypeError"] * 3


def test_a_pass_computes_with_the_threads_that_its_sites_set(arguments, monkeypatch):
    seen = []
    one_pass = training._one_pass

    def noting(students: object) -> list[LocalResult]:
        results = one_pass(students)
        seen.append(torch.get_num_threads())
        return results

    def site(name: str) -> LocalResult:
        torch.set_num_threads(3)  # as a worker does, on the thread it answers on
        return here(*arguments[name])

    monkeypatch.setattr(training, "_one_pass", noting)
    before = torch.get_num_threads()
    try:
        together = Meeting(8)
        together.answer([partial(site, name) for name in arguments])
    finally:
        torch.set_num_threads(before)
    assert seen == [3] != [before]


def test_an_interrupt_leaves_no_thread_behind(arguments, monkeypatch):
    def interrupted(students: object) -> list[LocalResult]:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.stacked.meeting.train_stacked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Meeting(8).answer([partial(here, *given) for given in arguments.values()])
    assert not [thread for thread in threading.enumerate() if thread.name == "site"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("pet.method", "full"), ("lora.dropout", 0.1), ("model.drop_path", 0.1), ("data.text", True),
     ("train.select", "best-validation")],
)  # fmt: skip
def test_a_plan_that_cannot_be_stacked_is_refused_by_key(make_config, key, value):
    check_stack(make_config())
    with pytest.raises(ConfigError, match="cannot be trained in one pass") as caught:
        check_stack(make_config(**{key.replace(".", "__"): value}))
    assert caught.value.found.startswith(key)


# ------------------------------------------------------------------ whole federations

Run = Callable[..., object]


@pytest.fixture
def two_runs(run_tiny, tmp_path):
    """Run a variant one by one and with a stack: their folders and reports."""

    def run(stack: int, **overrides: object) -> tuple[Path, Path, object, object]:
        alone = run_tiny(tmp_path / "alone", **overrides)
        together = run_tiny(tmp_path / "together", stack=stack, **overrides)
        return tmp_path / "alone", tmp_path / "together", alone, together

    return run


@pytest.mark.parametrize("stack", [8, pytest.param(2, marks=pytest.mark.slow)])
def test_a_federation_ends_where_it_ends_one_by_one(two_runs, final_adapter, stack):
    """Through the same messages: update, figures, admission, each site's own baseline."""
    from server.ledger import Ledger

    places = two_runs(
        stack, arms=["local", "federated"], evaluate={"local": True}, train={"optimizer": "sgd", "lr": 0.05}
    )
    one, other = (final_adapter(place).tensors for place in places[:2])
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() < 1e-6
    records = []
    for place in places[:2]:
        ledger = Ledger(place / "ledger.sqlite")
        records.append(ledger.rounds())
        ledger.close()
    for mine, theirs in zip(*records, strict=True):
        for key in ("steps", "returned", "payload"):
            assert mine[key] == theirs[key], key
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-6)
        assert mine["validation_before"] == theirs["validation_before"]
    alone, together = places[2:]
    assert alone.arms == together.arms


def test_a_bad_site_in_a_pass_is_named_and_changes_nothing(run_tiny, final_adapter, tmp_path):
    report = run_tiny(tmp_path / "bad", stack=8, faults=[{"site": "east", "kind": "nan"}])
    assert all(r.rejected == {"east": "E_NONFINITE"} for r in report.rounds)
    report = run_tiny(
        tmp_path / "lost", stack=8, faults=[{"site": "east", "kind": "silent"}], rounds={"deadline": 3.0}
    )
    assert all(r.missing == ("east",) for r in report.rounds)
    assert final_adapter(tmp_path / "bad").digest() == final_adapter(tmp_path / "lost").digest()


def test_a_run_that_is_gone_on_with_ends_in_the_same_bits(run_tiny, final_adapter, tmp_path):
    import shutil

    run_tiny(tmp_path / "whole", stack=8, rounds={"count": 3})
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(max((tmp_path / "cut" / "checkpoints").glob("round-*")))
    run_tiny(tmp_path / "cut", resume=True, stack=8, rounds={"count": 3})
    assert final_adapter(tmp_path / "cut").digest() == final_adapter(tmp_path / "whole").digest()


def test_ray_is_told_that_it_cannot(run_tiny, tmp_path):
    with pytest.raises(ConfigError, match="stack is for the inline engine"):
        run_tiny(tmp_path / "run", engine="ray", stack=2)


def test_a_plan_that_cannot_be_stacked_is_refused_before_anything_runs(run_tiny, tmp_path):
    with pytest.raises(ConfigError, match="cannot be trained in one pass"):
        run_tiny(tmp_path / "run", stack=2, pet={"method": "full"})
    assert not (tmp_path / "run" / "ledger.sqlite").exists()
