"""The first sentence is no surer than the interval."""

from __future__ import annotations

import pytest

from server import report_words as words
from server.report_schema import Comparison, Gap, WorseSite


def compared(report, difference, interval):
    gap = Gap(difference=difference, interval=interval)
    return report.model_copy(
        update={
            "comparison": Comparison(
                candidate="federated", reference="local", site_mean=gap,
                sites=report.comparison.sites,
            )
        }
    )  # fmt: skip


def loss(site, difference, interval, finding="macro"):
    return WorseSite(
        site=site, finding=finding, local=0.8, federated=0.8 + difference,
        difference=difference, interval=interval, certain=interval[1] < 0,
    )  # fmt: skip


def test_a_gain_is_said_with_both_levels_and_the_losers_follow(report):
    said = words.headline(report)
    assert said.tone == "mixed"
    assert said.answer.startswith("Federated training raised the mean AUROC over 4 sites from 0.7")
    assert "(local) to 0.7" in said.answer and "95 % interval +0.0" in said.answer
    assert said.details[0].startswith("1 of 4 sites got worse: south (−0.0")


def test_an_interval_over_zero_is_not_called_a_change(report):
    said = words.headline(compared(report, 0.004, (-0.01, 0.018)).model_copy(
        update={"worse_sites": ()}))  # fmt: skip
    assert said.tone == "unclear"
    assert "did not measurably change" in said.answer
    assert said.answer.endswith("+0.004 (95 % interval −0.010 to +0.018); the interval includes zero.")
    assert said.details == ("No site got worse.",)


def test_a_loss_is_called_a_loss(report):
    said = words.headline(compared(report, -0.03, (-0.05, -0.01)))
    assert said.tone == "worse"
    assert "training lowered the mean AUROC" in said.answer


def test_lower_within_noise_is_not_called_worse(report):
    noisy = report.model_copy(update={"worse_sites": (loss("west", -0.01, (-0.03, 0.01)),)})
    said = words.headline(noisy)
    assert said.tone == "better"
    assert said.details == ("No site got worse beyond noise; lower, within noise: west (−0.010).",)


def test_a_certain_loss_on_one_finding_is_told_even_if_every_site_gained(report):
    single = loss("east", -0.1, (-0.2, -0.05), finding="nodule")
    said = words.headline(report.model_copy(update={"worse_sites": (single,)}))
    assert said.details == (
        "No site got worse.",
        "1 result on a single finding lies wholly below local (east).",
    )


def test_levels_are_left_out_where_they_are_not_of_the_sites_compared(report):
    north = {"north": report.comparison.sites["north"]}
    part = report.comparison.model_copy(update={"sites": north})
    said = words.headline(report.model_copy(update={"comparison": part, "worse_sites": ()}))
    level = report.arms["local"].sites["north"].macro_auroc
    assert f"at north from {level:.3f} (local)" in said.answer
    assert said.details[-1].startswith("Not compared, because no AUROC is defined there: ")


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        (("federated",), "no local arm"),
        (("federated", "local"), "No paired comparison"),
        ((), "no federated arm"),
    ],
)
def test_without_a_comparison_nothing_is_claimed(report, arms, expected):
    alone = report.model_copy(update={"comparison": None, "arms": {name: report.arms[name] for name in arms}})
    said = words.headline(alone)
    assert said.tone == "none"
    assert expected in " ".join([said.answer, *said.details])


def test_unequal_local_work_is_called_out(report):
    assert words.equal_work(report)[0]
    local = report.arms["local"].model_copy(update={"local_steps": {"north": 960}})
    equal, why = words.equal_work(report.model_copy(update={"arms": {**report.arms, "local": local}}))
    assert not equal
    assert "north (960 local, 480 federated)" in why


def test_the_number_of_differences_looked_at_is_told(report):
    looked, flukes = words.chance_flags(report)
    # 4 macros; 7 findings at north and south, 6 at east and west: hernia is too rare to tell.
    assert looked == 4 + 7 + 7 + 6 + 6
    assert flukes == pytest.approx(0.025 * looked)


def test_every_incident_names_its_round_and_site(report):
    assert words.incidents(report) == [
        "Round 5: south rejected (E_NORM)",
        "Round 8: west missing",
        "Round 9: east missing, south missing, west missing, round abandoned",
    ]
