"""Each rule on scripted histories: when it holds, when it does not, and what it says."""

from __future__ import annotations

import pytest

from server.facts.records import Rejection
from server.monitor.alerts.rules import check
from server.monitor.alerts.settings import AlertSettings


@pytest.fixture
def told(now):
    """rule -> {site: alert} of everything that holds."""

    def tell(facts, at=now, **settings):
        found = {}
        for alert in check(facts, AlertSettings(**settings), at):
            assert alert.site not in found.setdefault(alert.rule, {}), "the same alert twice"
            found[alert.rule][alert.site] = alert
        return found

    return tell


def test_a_quiet_run_has_no_alert(told, facts, row, curve_of):
    sound = facts(
        sites=(row("north"), row("south")),
        loss=curve_of("loss", [0.7, 0.6, 0.55, 0.56, 0.54], first=1),
        auroc=curve_of("auroc", [0.5, 0.6, 0.7, 0.69, 0.72]),
        norms={"north": [(1, 3.0), (2, 2.0), (3, 2.5)], "south": [(1, 3.0), (2, 2.1), (3, 1.9)]},
        lora_error=[(1, 0.2), (2, 0.1)],
        traffic=10**9,
    )
    assert told(sound) == {}


def test_a_silent_site_is_named_with_how_long(told, facts, row, now):
    rows = (
        row("north", heard=now - 301.0, contact="silent"),
        row("south", heard=now - 299.0, contact="late"),
    )
    (alert,) = told(facts(sites=rows))["site-silent"].values()
    assert (alert.site, alert.severity, alert.since) == ("north", "warning", now - 301.0)
    assert alert.sentence == "north has not been heard of for 5 min 01 s"
    assert "site-silent" not in told(facts(sites=rows), site_silent=0)
    assert set(told(facts(sites=rows), site_silent=60)["site-silent"]) == {"north", "south"}


def test_a_site_never_heard_of_counts_from_the_beginning_and_a_simulated_one_never(told, facts, row):
    rows = (row("north", heard=None, contact="silent"), row("south", heard=None, contact="unknown"))
    found = told(facts(sites=rows))["site-silent"]
    assert set(found) == {"north"}
    assert "since the run began" in found["north"].sentence


def test_a_rejected_update_is_told_until_the_site_is_admitted_again(told, facts, row):
    why = (Rejection(2, "E_NORM", "the update is larger than the plan allows"),)
    history = [
        (("returned",), False),
        (("returned", "rejected"), True),
        (("returned", "rejected", "asked"), True),
        (("returned", "rejected", "missing"), True),
        (("returned", "rejected", "not asked", "returned"), False),
    ]
    for participation, holds in history:
        found = told(facts(sites=(row("north", participation=participation, rejections=why), row("south"))))
        assert ("update-rejected" in found) is holds
        if holds:
            sentence = found["update-rejected"]["north"].sentence
            assert "north in round 2" in sentence
            assert "larger than the plan allows (E_NORM)" in sentence


def test_a_refused_site_is_told_with_its_reason(told, facts, row):
    why = (Rejection(None, "E_POLICY", "the plan asks for more\nthan the site's policy allows"),)
    found = told(facts(sites=(row("north", doing="refused", rejections=why),), quorum=1))
    assert found["site-refused"]["north"].sentence == (
        "north cannot take part: the plan asks for more than the site's policy allows (E_POLICY)"
    )


def test_too_few_connected_sites_put_the_quorum_at_risk(told, facts, row, now):
    gone = row("south", heard=now - 90.0, contact="silent")
    found = told(facts(sites=(row("north"), gone)))
    assert "1 site connected, a round needs 2; not there: south" in found["quorum-at-risk"][""].sentence
    assert found["quorum-at-risk"][""].severity == "critical"
    assert "quorum-at-risk" not in told(facts(sites=(row("north"), gone), quorum=1))
    assert "quorum-at-risk" not in told(facts(sites=(row("north"), gone), state="testing"))
    unknown = row("south", heard=None, contact="unknown")
    assert "quorum-at-risk" not in told(facts(sites=(row("north"), unknown)))


def test_abandoned_rounds_are_counted(told, facts):
    assert "round 3 was abandoned" in told(facts(abandoned=(3,)))["round-abandoned"][""].sentence
    assert "rounds 2 to 4 were abandoned" in told(facts(abandoned=(4, 3, 2)))["round-abandoned"][""].sentence
    assert told(facts(abandoned=())) == {}


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([0.7, 0.5, 0.4, 0.9, 0.9, 0.9], True),
        ([0.7, 0.5, 0.4, 0.9, 0.9, 0.55], False),
        ([0.7, 0.5, 0.4, 0.9, 0.9], False),
        ([0.7, 0.5, 0.4, None, 0.9, 0.9, 0.9], True),
        ([0.01, 0.001, 0.02, 0.03, 0.02], False),  # doubled, and still next to nothing
        ([0.4, 0.9, 0.9], False),  # only two rounds to compare with a best
        ([0.4, 0.41, 0.9, 0.8, 3.0, 0.2], False),
    ],
)
def test_a_loss_that_stays_far_above_its_best_diverges(told, facts, curve_of, values, holds):
    found = told(facts(loss=curve_of("loss", values, first=1)))
    assert ("divergence-loss" in found) is holds


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([0.5, 0.7, 0.6, 0.6, 0.6], True),
        ([0.5, 0.7, 0.66, 0.6, 0.6], False),
        ([0.5, 0.7, 0.6, 0.6], False),
        ([0.5, 0.7, 0.6, 0.6, 0.71], False),
    ],
)
def test_an_auroc_that_stays_far_below_its_best_is_told(told, facts, curve_of, values, holds):
    found = told(facts(auroc=curve_of("auroc", values)))
    assert ("divergence-auroc" in found) is holds


def test_an_exploding_update_names_its_site_once_it_is_the_newest(told, facts):
    norms = {"north": [(1, 1.0), (2, 1.1), (3, 11.5)], "south": [(1, 0.9), (2, 1.2)]}
    found = told(facts(norms=norms))["divergence-norm"]
    assert set(found) == {"north"}
    assert found["north"].sentence == "the update of north in round 3 has norm 11.5; usual is 1.050"
    assert told(facts(norms=norms | {"south": [*norms["south"], (4, 1.0)]})) == {}
    assert told(facts(norms={"north": [(1, 1.0), (2, 90.0)]})) == {}, "too little to compare with"


def test_a_large_lora_error_must_last(told, facts):
    assert told(facts(lora_error=[(1, 0.6), (2, 0.6)])) == {}
    assert (
        "loses 70 %"
        in told(facts(lora_error=[(1, 0.6), (2, 0.6), (3, 0.7)]))["divergence-lora-error"][""].sentence
    )
    assert told(facts(lora_error=[(1, 0.6), (2, 0.6), (3, 0.4)])) == {}


def test_budgets_are_told_at_their_share(told, facts, now):
    spent = facts(epsilon={"north": [(1, 2.0), (2, 6.4)], "south": [(1, 1.0)]}, traffic=800_000)
    found = told(spent, budget_epsilon=8.0, budget_bytes=1_000_000)
    assert set(found["budget-epsilon"]) == {"north"}
    assert "north has spent epsilon 6.400 of 8.000" in found["budget-epsilon"]["north"].sentence
    assert "800 kB of 1.00 MB, 3 of 8 rounds done" in found["budget-bytes"][""].sentence
    assert told(spent, budget_epsilon=8.1, budget_bytes=1_000_001) == {}
    assert told(spent) == {}
    hours = told(facts(), at=now + 3600.0, budget_hours=2.5)["budget-hours"][""]
    assert hours.since == pytest.approx(now + 3600.0)
    assert told(facts(), at=now + 3599.0, budget_hours=2.5) == {}


def test_rounds_without_a_new_best_run_out_of_patience(told, facts, curve_of):
    flat = [0.5, 0.7, *[0.6995] * 3, 0.7005, 0.69]
    assert (
        "no new best for 5 rounds"
        in told(facts(auroc=curve_of("auroc", flat)), patience=5)["budget-patience"][""].sentence
    )
    assert told(facts(auroc=curve_of("auroc", flat)), patience=6) == {}
    assert told(facts(auroc=curve_of("auroc", [*flat, 0.702])), patience=5) == {}


def test_the_end_of_a_run_is_all_that_is_told_of_it(told, facts, row, now):
    rows = (row("north", heard=now - 9000.0, contact="silent"),)
    for state, severity in (("finished", "info"), ("failed", "critical"), ("stopped", "info")):
        found = told(facts(state, sites=rows, abandoned=(3,)))
        assert set(found) == {f"run-{state}"}
        assert found[f"run-{state}"][""].severity == severity
        assert "3 of 8 rounds done" in found[f"run-{state}"][""].sentence
    assert told(facts("finished"), run_ended=("failed",)) == {}
    assert "run-idle" in told(facts("idle"), run_ended=("failed",))
    assert told(facts("idle"), run_ended=()) == {}


def test_every_rule_can_be_switched_off(told, facts, row, curve_of, now):
    bad = facts(
        sites=(
            row("north", heard=now - 9000.0, contact="silent", participation=("rejected",)),
            row("south", heard=now - 9000.0, contact="silent", doing="refused"),
        ),
        abandoned=(3, 2),
        loss=curve_of("loss", [0.4, 2.0, 2.0, 2.0], first=1),
        auroc=curve_of("auroc", [0.9, 0.5, 0.5, *[0.5] * 12]),
        norms={"north": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 99.0)]},
        lora_error=[(1, 0.9)] * 3,
        epsilon={"north": [(1, 9.0)]},
        traffic=10**9,
    )
    assert set(told(bad, budget_epsilon=1, budget_bytes=1, budget_hours=0.1)) == {
        "site-silent", "update-rejected", "site-refused", "round-abandoned", "quorum-at-risk",
        "divergence-loss", "divergence-auroc", "divergence-norm", "divergence-lora-error",
        "budget-epsilon", "budget-bytes", "budget-hours", "budget-patience",
    }  # fmt: skip
    off = {
        "site_silent": 0, "update_rejected": False, "round_abandoned": False, "quorum_at_risk": False,
        "loss_factor": 0, "auroc_drop": 0, "norm_factor": 0, "lora_error": 0, "patience": 0,
    }  # fmt: skip
    assert told(bad, **off) == {}
