"""Whatever is changed in a figure of an answer, a count or a cell, does not leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from client.gate.egress import release
from client.gate.policy import parse_policy
from client.site import SiteConfig
from tests.client.gate.told import ACCESSION, NAMES, Told, quick

FOREIGN = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(
        [
            "accession",
            "patient-name",
            "patients.doe",
            "pneumonia.auroc",
            "gain.pneumonia",
            "quarantined.doe",
            "x",
        ]
    ),
)

VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=True),
    st.lists(st.integers(0, 2**40), max_size=5),
    st.text(max_size=20),
    st.none(),
    st.booleans(),
)


@quick
@given(name=NAMES, key=FOREIGN, value=VALUES)
def test_a_key_too_many(honest: dict[str, Told], name: str, key: str, value: Any) -> None:
    told = honest[name]
    assume(key not in told.answer.metrics)
    said = told.refused(metrics=told.with_metrics(**{key: value}))
    assert key not in said or len(key) < 4, "what may not leave is not repeated either"


@quick
@given(name=NAMES, data=st.data())
def test_a_key_of_another_stage(honest: dict[str, Told], name: str, data: st.DataObject) -> None:
    told, other = honest[name], honest[data.draw(NAMES)]
    assume(told.instruction.stage != other.instruction.stage)
    key = data.draw(st.sampled_from(sorted(other.answer.metrics)))
    assume(key not in told.answer.metrics)
    told.refused(metrics=told.with_metrics(**{key: other.answer.metrics[key]}))


@quick
@given(name=NAMES, which=st.integers(0, 999), kind=st.integers(0, 15))
def test_another_kind_of_value(honest: dict[str, Told], name: str, which: int, kind: int) -> None:
    told = honest[name]
    keys = sorted(told.answer.metrics)
    key = keys[which % len(keys)]
    value = told.answer.metrics[key]
    kinds: list[Any] = ["Doe^Jane", None, True, b"1", {"a": 1}, (1, 2), [[1]], np.float64(0.5), float("nan")]
    kinds += [float("inf"), -1, -0.5, ACCESSION, [ACCESSION]]
    kinds += [value[0]] if isinstance(value, list) else [[value], [value, value]]
    told.refused(metrics=told.with_metrics(**{key: kinds[kind % len(kinds)]}))


@quick
@given(name=NAMES, data=st.data(), digits=st.integers(1, 999))
def test_more_decimals(honest: dict[str, Told], name: str, data: st.DataObject, digits: int) -> None:
    """Decimals beyond those of a figure could carry anything, an identifier too."""
    told = honest[name]
    reals = {k: v for k, v in told.answer.metrics.items() if isinstance(v, float | list)}
    reals = {k: v for k, v in reals.items() if not isinstance(v, list) or isinstance(v[0], float)}
    assume(reals)
    key = data.draw(st.sampled_from(sorted(reals)))
    hidden = digits / 1e12

    def more(value: float) -> float:
        return value - hidden if value > 0.5 else value + hidden

    value = reals[key]
    changed = [more(value[0]), *value[1:]] if isinstance(value, list) else more(value)
    told.refused(metrics=told.with_metrics(**{key: changed}))


@quick
@given(name=NAMES, data=st.data())
def test_lists_of_another_length(honest: dict[str, Told], name: str, data: st.DataObject) -> None:
    told = honest[name]
    lists = {k: v for k, v in told.answer.metrics.items() if isinstance(v, list)}
    assume(lists)
    key = data.draw(st.sampled_from(sorted(lists)))
    told.refused(metrics=told.with_metrics(**{key: lists[key] + lists[key][:1]}))
    told.refused(metrics=told.with_metrics(**{key: lists[key][:-1]}))


@quick
@given(name=NAMES, data=st.data())
def test_a_needed_figure_missing(honest: dict[str, Told], name: str, data: st.DataObject) -> None:
    told = honest[name]
    needed = ("-studies", "patients", "owned", "num-examples", "labelled", "steps", "rounds-kept", "studies")
    keys = [k for k in told.answer.metrics if k.endswith((*needed, ".positives", ".negatives"))]
    key = data.draw(st.sampled_from(sorted(keys)))
    told.refused(metrics={k: v for k, v in told.answer.metrics.items() if k != key})


@quick
@given(at=st.integers(1, 10), side=st.sampled_from(["positives", "negatives"]))
def test_small_cells(honest: dict[str, Told], at: int, side: str) -> None:
    told = honest["federated"]
    other = "negatives" if side == "positives" else "positives"
    share = {"positives": at, "negatives": 20} if side == "positives" else {"positives": 20, "negatives": at}
    changes: dict[str, Any] = {f"effusion.{side}": at, f"effusion.{other}": 20}
    changes["effusion.prevalence"] = round(share["positives"] / (20 + at), 3)
    assert "fewer than 11" in told.refused(metrics=told.with_metrics(**changes))


def test_suppressed_means_nothing_is_told(honest: dict[str, Told]) -> None:
    told = honest["federated"]
    zero = {"effusion.positives": 0, "effusion.negatives": 0}
    assert "nobody" in told.refused(metrics=told.with_metrics(**zero))
    for key in ("edema.auroc", "edema.prevalence", "gain-se.edema"):
        assert "nobody" in told.refused(metrics=told.with_metrics(**{key: 0.5}))
    told.refused(metrics=told.with_metrics(**{"gain.edema": [0.0, 0.0, 0.0]}))


def test_a_mean_of_suppressed_findings_is_a_leak(honest: dict[str, Told]) -> None:
    told = honest["alone"]
    bare = {
        key: 0 if key.endswith((".positives", ".negatives")) else value
        for key, value in told.answer.metrics.items()
        if key == "studies" or key.endswith((".positives", ".negatives"))
    }
    told.check(metrics=bare)
    means = [
        ("macro-auroc", 0.5),
        ("macro-interval", [0.1, 0.2]),
        ("pooled-ece", 0.1),
        ("gain-se.macro", 0.1),
    ]
    for key, value in means:
        assert "none of which" in told.refused(metrics={**bare, key: value})


def test_counts_fit_together(honest: dict[str, Told]) -> None:
    told = honest["federated"]
    told.refused(metrics=told.with_metrics(**{"effusion.prevalence": 0.123}))
    told.refused(metrics=told.with_metrics(**{"effusion.positives": 5000}))
    told.refused(metrics=told.with_metrics(studies=20))
    trained = honest["train"]
    trained.refused(metrics=trained.with_metrics(steps=trained.answer.metrics["steps"] + 1))
    trained.refused(
        metrics=trained.with_metrics(**{"num-examples": trained.answer.metrics["num-examples"] - 100})
    )
    trained.refused(metrics=trained.with_metrics(**{"num-examples": 10}))
    trained.refused(metrics=trained.with_metrics(labelled=[10**6, 0, 0, 0]))


def test_bins_rest_on_large_cells_and_fit_their_counts(honest: dict[str, Told]) -> None:
    told = honest["federated"]
    keys = [f"effusion.bins-{name}" for name in ("studies", "positives", "mean")]
    studies, positives = (list(told.answer.metrics[key]) for key in keys[:2])
    whole = told.answer.metrics["effusion.positives"] + told.answer.metrics["effusion.negatives"]
    assert sum(studies) == whole and 1 <= len(studies) < 15
    assert all(min(k, n - k) >= 11 for n, k in zip(studies, positives, strict=True))

    def said(*values: Any) -> str:
        return told.refused(metrics=told.with_metrics(**dict(zip(keys, values, strict=True))))

    n, k = sum(studies), sum(positives)
    assert "fewer than 11" in said([n - 15, 15], [k - 5, 5], [0.3, 0.9])
    assert "fewer than 11" in said([n - 15, 15], [k - 10, 10], [0.3, 0.9])
    assert "do not add up" in said([n - 1], [k], [0.5])
    assert "do not add up" in said([n], [k - 1], [0.5])
    assert "more than the studies" in said([k - 1, n - k + 1], [k, 0], [0.3, 0.9])
    assert "more than the studies" in said([0, n], [0, k], [0.3, 0.9])
    assert "as many" in said([n], [k], [0.3, 0.9])
    assert "do not grow" in said([n - 30, 30], [k - 15, 15], [0.9, 0.3])
    assert "expected 1024" in said([1] * 1025, [1] * 1025, [0.5] * 1025)
    assert "expected 1024" in said([], [], [])
    for key in keys:
        told.refused(metrics={name: v for name, v in told.answer.metrics.items() if name != key})
    told.refused(metrics=told.with_metrics(**{"edema.bins-mean": [0.5]}))
    cells = ["effusion.bins-from", "effusion.bins-to"]
    told.check(metrics={name: v for name, v in told.answer.metrics.items() if name not in (*keys, *cells)})


def test_cells_leave_no_gap_and_lie_at_coarse_edges(honest: dict[str, Told]) -> None:
    told = honest["federated"]
    keys = ["effusion.bins-from", "effusion.bins-to"]
    assert [told.answer.metrics[key] for key in keys] == [[0], [1024]]  # too few studies for two bins of 11
    n, k = (sum(told.answer.metrics[f"effusion.bins-{name}"]) for name in ("studies", "positives"))
    two = {"studies": [22, n - 22], "positives": [11, k - 11], "mean": [0.3, 0.6]}
    first, end = [0, 512], [512, 1024]
    metrics = told.with_metrics(**{f"effusion.bins-{name}": values for name, values in two.items()})
    metrics |= dict(zip(keys, (first, end), strict=True))
    told = dataclasses.replace(told, answer=dataclasses.replace(told.answer, metrics=metrics))
    told.check()

    def said(first: list[int], end: list[int]) -> str:
        return told.refused(metrics=told.with_metrics(**dict(zip(keys, (first, end), strict=True))))

    assert "as many" in said([0], [1024])
    assert "one after the other" in said([0, 0], end)
    assert "one after the other" in said(end, first)
    assert "gap" in said([8, *first[1:]], end)
    assert "gap" in said(first, [512, 1016])
    assert "gap" in said([0, 520], end)
    assert "finer" in said([0, 513], [513, 1024])
    assert "1024" in said(first, [512, 1025])
    for key in keys:
        told.refused(metrics={name: v for name, v in told.answer.metrics.items() if name != key})
    bins = [f"effusion.bins-{name}" for name in ("studies", "positives", "mean")]
    assert "as many" in told.refused(metrics={k: v for k, v in told.answer.metrics.items() if k not in bins})


def test_cells_leave_only_where_the_plan_pools_and_the_policy_lets_them(
    honest: dict[str, Told], ask: Callable[..., Told]
) -> None:
    told = honest["federated"]
    cells = {key: [0] for key in ("effusion.bins-from", "effusion.bins-to")}
    for other in (honest["validation"], ask("federated", evaluate={"pooled": False})):
        assert not [key for key in other.answer.metrics if "bins-from" in key]
        assert "may not hold" in other.refused(metrics=other.with_metrics(**cells))
    without = parse_policy({"answers": {"metrics": ("set-aside", "training", "findings")}})
    assert "histograms" in told.refused(without)
    left = release(told.answer, told.instruction, told.config, without, told.site)
    assert [*told.answer.metrics.keys() - left.metrics.keys()]
    assert {key.rpartition(".")[2] for key in told.answer.metrics.keys() - left.metrics.keys()} == {
        "bins-from",
        "bins-to",
    }
    alone = parse_policy({"answers": {"metrics": ("training", "histograms")}})
    left = release(told.answer, told.instruction, told.config, alone, told.site)
    assert not [key for key in left.metrics if "effusion" in key]


def test_counts_of_labels_are_told_where_the_plan_weighs_by_them(ask: Callable[..., Told]) -> None:
    told = ask("enrol", train={"class_weights": "federated"})
    positives, negatives = (told.answer.metrics[f"label-{side}"] for side in ("positives", "negatives"))
    assert positives[0] >= 11 and negatives[0] >= 11  # effusion
    assert positives[2] == negatives[2] == positives[3] == negatives[3] == 0  # too rare; not annotated
    told.check()
    assert "label-positives" not in ask("enrol").answer.metrics
    for few in ([10, *positives[1:]], [0, *positives[1:]]):
        assert "fewer than 11" in told.refused(metrics=told.with_metrics(**{"label-positives": few}))
    many = [*negatives[:3], told.answer.metrics["train-studies"]]
    of_all = told.with_metrics(**{"label-negatives": many, "label-positives": [*positives[:3], 11]})
    assert "more than the training studies" in told.refused(metrics=of_all)
    told.refused(metrics=told.with_metrics(**{"label-positives": positives[:3]}))
    for side in ("positives", "negatives"):
        bare = {k: v for k, v in told.answer.metrics.items() if k != f"label-{side}"}
        assert "missing" in told.refused(metrics=bare)


def test_a_round_s_figures_rest_on_large_cells_or_do_not_leave(honest: dict[str, Told]) -> None:
    told = honest["train"]
    for side in ("positives", "negatives"):
        key = f"validation.effusion.{side}"
        assert "fewer than 11" in told.refused(metrics=told.with_metrics(**{key: 10}))
        bare = {k: v for k, v in told.answer.metrics.items() if k != key}
        assert "without the number" in told.refused(metrics=bare)
    nobody = {"validation.effusion.positives": 0, "validation.effusion.negatives": 0}
    assert "nobody" in told.refused(metrics=told.with_metrics(**nobody))
    none = {k: v for k, v in told.answer.metrics.items() if not k.startswith("validation.")}
    assert "none of which" in told.refused(metrics=none)
    other = {"validation-auroc": round(1 - told.answer.metrics["validation-auroc"] / 2, 3)}
    assert "not the mean" in told.refused(metrics=told.with_metrics(**other))
    told.refused(metrics=told.with_metrics(**{"validation.edema.auroc": 0.5}))
    told.check(metrics={k: v for k, v in none.items() if k != "validation-auroc"})


def test_a_single_class_has_no_ranking(honest: dict[str, Told], site: SiteConfig) -> None:
    """Where a site allows cells of one, of studies that are all alike only the counts are told."""
    told = dataclasses.replace(
        honest["alone"],
        site=site.model_copy(update={"evaluate": site.evaluate.model_copy(update={"min_cell": 1})}),
    )
    policy = parse_policy({"answers": {"min_cell": 1}})
    alike = {"edema.positives": 0, "edema.negatives": 30, "edema.prevalence": 0.0}
    told.check(policy, metrics=told.with_metrics(**alike))
    told.refused(policy, metrics=told.with_metrics(**alike, **{"edema.auroc": 0.5}))
    round_ = dataclasses.replace(told, answer=honest["train"].answer, instruction=honest["train"].instruction)
    few = {"validation.edema.positives": 0, "validation.edema.negatives": 3, "validation.edema.ece": 0.1}
    round_.check(policy, metrics=round_.with_metrics(**few))
    for name in ("auroc", "pr-auc"):
        said = round_.refused(policy, metrics=round_.with_metrics(**few, **{f"validation.edema.{name}": 0.5}))
        assert "alike" in said


def test_sums_are_of_large_cells_that_were_asked_for(honest: dict[str, Told]) -> None:
    told = honest["calibrate"]
    names = ("positives", "negatives", "platt")
    assert set(told.answer.metrics) == {f"{f}.{n}" for f in ("effusion", "cardiomegaly") for n in names}
    keys = [f"effusion.{name}" for name in names]
    for side in keys[:2]:
        assert "fewer than 11" in told.refused(metrics=told.with_metrics(**{side: 10}))
    for key in keys:
        said = told.refused(metrics={k: v for k, v in told.answer.metrics.items() if k != key})
        assert "belong to it" in said
    sums = list(told.answer.metrics["effusion.platt"])
    many = [told.answer.metrics["effusion.positives"] + told.answer.metrics["effusion.negatives"] + 1.0]
    assert "cannot come" in told.refused(
        metrics=told.with_metrics(**{"effusion.platt": [*sums[:2], *many, *sums[3:]]})
    )
    moved = {f"pneumothorax.{name}": told.answer.metrics[f"effusion.{name}"] for name in names}
    assert "not asked for" in told.refused(metrics=told.with_metrics(**moved))
    without = dataclasses.replace(told, instruction=dataclasses.replace(told.instruction, scaling=None))
    assert "without a slope" in without.refused()
    told.check(metrics={k: v for k, v in told.answer.metrics.items() if not k.startswith("effusion")})
