"""A federation whose sites make the adapter their own: in the ledger, in the report, and after a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.app import worker_for
from common.errors import TargetError
from common.wire import answer_from_records, answer_to_records
from server.ledger import Ledger
from server.report import render
from server.report_schema import Comparison, Report
from server.report_words import headline
from server.summary import summarise
from simulations.engine import run_inline
from simulations.run import run_experiment
from simulations.view import View

Run = Callable[..., Report]
OWN: dict[str, Any] = {
    "arms": ["local", "federated"],
    "evaluate": {"local": True},
    "personalise": {"method": "fine-tune", "epochs": 3},
}


def further(report: Report, reference: str) -> Comparison:
    pairs = {(part.candidate, part.reference): part for part in report.further}
    return pairs["personalised", reference]


@pytest.fixture(scope="module")
def finished(run_tiny: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    run = tmp_path_factory.mktemp("personal") / "run"
    return run, run_tiny(run, **OWN)


def test_each_site_s_own_is_measured_beside_the_released_one(finished: tuple[Path, Report]) -> None:
    _, report = finished
    assert report.personal is not None and report.personal.method == "fine-tune"
    assert set(report.personal.sites) == set(report.sites)
    kept = {site for site, of in report.personal.sites.items() if of.kept}
    assert kept and kept != set(report.sites), (
        "the test needs both: a site that kept its own and one that did not"
    )
    own, together = report.arms["personalised"], report.arms["federated"]
    over = further(report, "federated")
    for site, of in report.personal.sites.items():
        before, after = of.validation_before, of.validation_after
        assert before is not None and after is not None
        assert before < after or not of.kept  # what is told is rounded
        assert own.local_steps[site] == together.local_steps[site] + of.steps
        if not of.kept:
            assert own.sites[site] == together.sites[site]
            assert over.sites[site].difference == 0
        else:
            change = own.sites[site].macro_auroc - together.sites[site].macro_auroc  # type: ignore[operator]
            assert over.sites[site].difference == pytest.approx(change, abs=2e-3)
    gains = [gap.difference for gap in over.sites.values()]
    assert over.site_mean.difference == pytest.approx(sum(gains) / 3)
    alone = further(report, "local")
    assert alone.site_mean.difference == pytest.approx(
        own.site_mean_auroc - report.arms["local"].site_mean_auroc,  # type: ignore[operator]
        abs=2e-3,
    )
    said = " ".join(headline(report).details)
    assert f"Made their own: {len(kept)} of 3 sites kept" in said
    page = render(report)
    assert page.index("Who got worse") < page.index("Made its own, against training alone")
    assert "went back" in page and "the same model" in page


def test_losers_are_told_with_their_pair(finished: tuple[Path, Report]) -> None:
    _, report = finished
    below = {
        (part.candidate, part.reference, site)
        for part in report.further
        for site, gap in part.sites.items()
        if gap.difference < 0
    }
    macro = {(loss.candidate, loss.reference, loss.site) for loss in report.losses if loss.finding == "macro"}
    assert macro == below and below
    for loss in report.losses:
        assert loss.difference == pytest.approx(loss.after - loss.before, abs=2e-3)
        assert loss.certain == (loss.interval[1] < 0)


def test_a_finished_personalisation_is_found_after_a_restart(
    finished: tuple[Path, Report], run_tiny: Run
) -> None:
    run, first = finished
    files = {file: file.stat().st_mtime_ns for file in run.glob("sites/*/state/personal-*.safetensors")}
    assert len(files) == 3
    ledger = Ledger(run / "ledger.sqlite")
    told = [event.id for event in ledger.events() if event.kind == "personalised"]
    # The centre has forgotten one answer: that site is asked again, and finds what it made.
    known = ledger.get("personal")
    del known["sites"]["east"]
    ledger.put("personal", known)
    worker_for.cache_clear()
    again = run_tiny(run, resume=True, **OWN)
    assert (again.personal, again.arms, again.further) == (first.personal, first.arms, first.further)
    assert files == {file: file.stat().st_mtime_ns for file in files}
    new = [event for event in ledger.events() if event.kind == "personalised" and event.id not in told]
    ledger.close()
    assert [event.site for event in new] == ["east"]


def test_what_a_site_made_never_passes_the_wire(
    tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path
) -> None:
    """No answer to the stage, nor to what measures it, holds an array."""
    seen = []

    def listen(reply: Message) -> Message:
        carried = answer_from_records(reply.content).update is not None
        seen.append((reply.metadata.message_type, carried))
        return reply

    run_inline(tiny(personalise=OWN["personalise"]).run_config(3), tiny_sites, tmp_path, listen)
    assert {kind for kind, carried in seen if carried} == {"train.round"}
    assert [kind for kind, _ in seen].count("train.personalise") == 3


def test_a_site_that_does_not_answer_is_left_out(
    tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path
) -> None:
    def spoil(reply: Message) -> Message:
        answer = answer_from_records(reply.content)
        if reply.metadata.message_type == "train.personalise" and answer.site == "east":
            reply.content = answer_to_records(replace(answer, metrics={**answer.metrics, "kept": 7}))
        return reply

    run_inline(tiny(personalise=OWN["personalise"]).run_config(3), tiny_sites, tmp_path, spoil)
    report = summarise(tmp_path)
    assert report.personal is not None and set(report.personal.sites) == {"north", "south"}
    ledger = Ledger(tmp_path / "ledger.sqlite")
    texts = [event.text for event in ledger.events() if event.kind == "personalised"]
    ledger.close()
    assert "east has nothing of its own: E_SCHEMA" in texts
    assert "n/a" in render(report)


def test_dual_on_a_backbone_without_linear_layers_is_refused_before_a_site_is_drawn(
    tiny: Any, tmp_path: Path
) -> None:
    wrong = tiny(
        model={"backbone": "timm:test_resnet"}, pet={"method": "norm"}, personalise={"method": "dual"}
    )
    with pytest.raises(TargetError, match="linear layers"):
        run_experiment(wrong, tmp_path / "run", engine="inline", resume=False, view=View("quiet"))
    assert not (tmp_path / "run" / "sites").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ditto", "dual", "private-head"])
def test_every_method_runs_with_every_part_of_a_plan(run_tiny: Run, tmp_path: Path, method: str) -> None:
    """Also beside a residual, class weights of all sites, and variables of the patient."""
    report = run_tiny(
        tmp_path / "run",
        **{
            **OWN,
            "data": {"clinical": ["age"]},
            "lora": {"aggregation": "fedex"},
            "train": {"class_weights": "federated"},
            "personalise": {"method": method, "epochs": 1},
        },
    )
    assert report.personal is not None and len(report.personal.sites) == 3
    assert set(report.arms["personalised"].sites) == set(report.sites)
