"""The gate on the way out: every honest answer passes, and whatever is changed in one does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from client.gate.egress import CODES, answer_bytes, check_answer, describe, release, withhold
from client.gate.policy import Policy, parse_policy
from client.site import SiteConfig, load_site
from client.worker import ModelPool, SiteWorker
from common.code import code_digest
from common.config import RunConfig
from common.errors import EgressError
from common.protocol import MESSAGE_TYPES, Answer, Instruction, metrics_from_wire
from common.wire import answer_from_records, answer_to_records
from simulations.make_site import make_site

POLICY = parse_policy({"asked": {"stages": tuple(MESSAGE_TYPES)}})
SCALING = np.array([1.0, 0.5, np.nan, 2.0, 0.0, 0.3, np.nan, -0.5])
"""Slopes, then biases, of the four findings; pneumothorax is not asked for."""
ACCESSION = 20260417001234
PLAN: dict[str, Any] = {
    "data": {"findings": ("effusion", "cardiomegaly", "pneumothorax", "edema"), "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"method": "head"},
    "train": {"batch_size": 16},
    "rounds": {"count": 2, "quorum": 2},
    "evaluate": {"replicates": 20, "calibrate": "platt"},
}
ASKED = {
    "enrol": {"stage": "enrol"},
    "train": {"stage": "train", "round": 1},
    "local": {"stage": "local"},
    "federated": {"stage": "evaluate", "arm": "federated"},
    "alone": {"stage": "evaluate", "arm": "local"},
    "validation": {"stage": "evaluate", "arm": "federated", "split": "validation"},
    "calibrate": {"stage": "calibrate", "scaling": SCALING},
}


@dataclasses.dataclass(frozen=True)
class Told:
    """An honest answer, and what it answers."""

    answer: Answer
    instruction: Instruction
    config: RunConfig
    site: SiteConfig

    def check(self, policy: Policy = POLICY, **changes: Any) -> None:
        check_answer(
            dataclasses.replace(self.answer, **changes), self.instruction, self.config, policy, self.site
        )

    def refused(self, policy: Policy = POLICY, **changes: Any) -> str:
        with pytest.raises(EgressError) as caught:
            self.check(policy, **changes)
        return str(caught.value)

    def with_metrics(self, **changes: Any) -> dict[str, Any]:
        return {**self.answer.metrics, **changes}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    """A phantom site that annotates two findings often, one too rarely to be told, and one not at all."""
    findings = ("effusion", "cardiomegaly", "pneumothorax")
    folder = tmp_path_factory.mktemp("north")
    toml = make_site(folder, "north", 260, 3, size=32, prevalence=0.5, findings=findings)
    rows = (folder / "studies.csv").read_text().splitlines()
    at = rows[0].split(",").index("pneumothorax")
    for i in range(1, len(rows)):
        cells = rows[i].split(",")
        rows[i] = ",".join([*cells[:at], "1" if i % 30 == 0 else "0", *cells[at + 1 :]])
    (folder / "studies.csv").write_text("\n".join(rows) + "\n")
    (folder / "images" / "damaged.png").write_bytes(b"not a picture")
    with (folder / "studies.csv").open("a") as table:
        table.write(rows[1].replace(rows[1].split(",")[0], "images/damaged.png") + "\n")
    return load_site(toml)


@pytest.fixture(scope="module")
def ask(site: SiteConfig) -> Callable[..., Told]:
    """Ask a real worker, as the node does."""
    pool = ModelPool()
    worker = SiteWorker(site, pool)

    def answer(name: str, **sections: Mapping[str, Any]) -> Told:
        config = RunConfig.build({k: {**PLAN.get(k, {}), **sections.get(k, {})} for k in {*PLAN, *sections}})
        model = pool.get(config, torch.device("cpu"))
        digests = (config.plan_digest(model.base_digest, code_digest()), code_digest(), model.base_digest)
        asked: dict[str, Any] = dict(ASKED[name])
        whole = asked["stage"] == "local" and config.evaluate.matrix
        if whole or asked["stage"] in ("train", "calibrate") or asked.get("arm") == "federated":
            asked["adapter"] = model.schema.pack(model.initial_state().tensors)
        instruction = Instruction(
            plan_digest=digests[0], code_digest=digests[1], base_digest=digests[2], **asked
        )
        return Told(worker.handle(instruction, config.to_flat()), instruction, config, site)

    return answer


@pytest.fixture(scope="module")
def honest(ask: Callable[..., Told]) -> dict[str, Told]:
    return {name: ask(name) for name in ASKED}


@pytest.mark.parametrize("name", ASKED)
def test_every_honest_answer_passes(honest: dict[str, Told], name: str) -> None:
    told = honest[name]
    assert not told.answer.code, (told.site.data.state / "site.log").read_text()
    told.check()
    over_the_wire = answer_from_records(answer_to_records(told.answer))
    check_answer(over_the_wire, told.instruction, told.config, POLICY, told.site)
    assert release(told.answer, told.instruction, told.config, POLICY, told.site) == told.answer


@pytest.mark.parametrize(
    "sections",
    [
        {"wire": {"codec": "fp16"}},
        {"train": {"steps": 3}},
        {"train": {"epochs": 2, "select": "best-validation"}},
        {"pet": {"method": "lora", "rank": 2}, "lora": {"aggregation": "rolora"}},
        {"pet": {"method": "lora", "rank": 2}, "lora": {"aggregation": "ffa"}},
        {"pet": {"method": "norm"}},
        {"data": {"fraction": 0.5}},
        {"data": {"shots": 12}},
    ],
    ids=str,
)
def test_honest_answers_to_other_plans_pass(ask: Callable[..., Told], sections: dict[str, Any]) -> None:
    for name in ("enrol", "train", "local", "alone"):
        told = ask(name, **sections)
        assert not told.answer.code
        told.check()


def test_the_site_is_what_these_tests_need(honest: dict[str, Told]) -> None:
    assert honest["enrol"].answer.metrics["quarantined.not-an-image"] == 1
    metrics, gains = metrics_from_wire(honest["federated"].answer.metrics, PLAN["data"]["findings"])
    assert metrics.findings["effusion"].positives > 11 and metrics.findings["effusion"].auroc is not None
    for finding in ("pneumothorax", "edema"):
        assert metrics.findings[finding].positives == metrics.findings[finding].negatives == 0
    assert set(gains) == {"effusion", "cardiomegaly", "macro"}
    assert "validation-auroc" in honest["train"].answer.metrics


def test_a_validation_score_rests_on_no_small_cell(ask: Callable[..., Told], honest: dict[str, Told]) -> None:
    """Whoever chooses the adapter could read single studies from a ranking of one among few."""
    evaluated = honest["validation"].answer.metrics
    assert honest["train"].answer.metrics["validation-auroc"] == evaluated["macro-auroc"]
    rare = ask("train", data={"findings": ("pneumothorax",)})
    assert not rare.answer.code and not [key for key in rare.answer.metrics if key.startswith("validation")]


def test_a_round_s_figures_by_finding_are_those_of_an_evaluation(honest: dict[str, Told]) -> None:
    """The two ways of measuring one adapter on the validation studies agree, and are silent on the same."""
    told, evaluated = honest["train"].answer.metrics, honest["validation"].answer.metrics
    names = ("auroc", "pr-auc", "ece", "positives", "negatives")
    by_finding = {key for key in told if key.startswith("validation.")}
    assert by_finding == {f"validation.{f}.{n}" for f in ("effusion", "cardiomegaly") for n in names}
    assert {key: told[key] for key in by_finding} == {
        key: evaluated[key.removeprefix("validation.")] for key in by_finding
    }


# ---------------------------------------------------------------------- what is changed is refused

NAMES = st.sampled_from(sorted(ASKED))
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
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


# ---------------------------------------------------------------------- the update


@quick
@given(data=st.data(), bad=st.sampled_from([math.nan, math.inf, -math.inf, 1e6]))
def test_an_update_with_one_wrong_value(honest: dict[str, Told], data: st.DataObject, bad: float) -> None:
    update = np.array(honest["train"].answer.update)
    update[data.draw(st.integers(0, update.size - 1))] = bad
    honest["train"].refused(update=update)


UPDATES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda u: None,
    "one number more": lambda u: np.append(u, np.float32(0)),
    "twice": lambda u: np.concatenate([u, u]),
    "empty": lambda u: u[:0],
    "two-dimensional": lambda u: u.reshape(1, -1),
    "no dimension": lambda u: u[0],
    "double": lambda u: u.astype(np.float64),
    "half": lambda u: u.astype(np.float16),
    "whole numbers": lambda u: u.astype(np.int32),
    "bytes": lambda u: u.view(np.uint8),
    "words": lambda u: np.array(["Doe^Jane"] * u.size),
    "objects": lambda u: np.array([None] * u.size),
    "other byte order": lambda u: u.astype(">f4"),
    "too far": lambda u: np.full_like(u, 100.0),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_of_another_form(honest: dict[str, Told], name: str) -> None:
    told = honest["train"]
    told.refused(update=UPDATES[name](np.array(told.answer.update)))


def test_fewer_numbers_may_leave(honest: dict[str, Told]) -> None:
    """Some methods train a part of the adapter; which part, the centre checks."""
    honest["train"].check(update=np.array(honest["train"].answer.update)[:-1])


@pytest.mark.parametrize("name", [name for name in ASKED if name != "train"])
def test_no_update_where_none_was_asked_for(honest: dict[str, Told], name: str) -> None:
    honest[name].refused(update=np.zeros(3, dtype=np.float32))


def test_plan_and_policy_both_bound_an_update(honest: dict[str, Told]) -> None:
    told = honest["train"]
    norm = float(np.linalg.norm(np.asarray(told.answer.update, dtype=np.float64)))
    assert norm > 0
    tight = parse_policy({"answers": {"max_update_norm": norm / 2}})
    assert "larger than plan and policy" in told.refused(tight)
    strict = told.config.model_copy(
        update={"strategy": told.config.strategy.model_copy(update={"max_update_norm": norm / 2})}
    )
    dataclasses.replace(told, config=strict).refused()
    size = answer_bytes(told.answer)
    told.check(parse_policy({"answers": {"max_bytes": size}}))
    assert "max_bytes" in told.refused(parse_policy({"answers": {"max_bytes": size - 1}}))
    assert "number format" in told.refused(parse_policy({"answers": {"codecs": ("fp16",)}}))


# ---------------------------------------------------------------------- sums to calibrate by


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


def test_the_default_policy_sends_no_sums(honest: dict[str, Told]) -> None:
    assert "calibrate" in honest["calibrate"].refused(Policy())
    plain = honest["calibrate"].config.evaluate.model_copy(update={"calibrate": "none"})
    none = honest["calibrate"].config.model_copy(update={"evaluate": plain})
    assert "may not hold" in dataclasses.replace(honest["calibrate"], config=none).refused()


# ---------------------------------------------------------------------- the site's own model

LETS = parse_policy({"answers": {"local_adapter": True}})
MATRIX = {"evaluate": {"matrix": True}}


@pytest.fixture(scope="module")
def own(ask: Callable[..., Told]) -> Told:
    """The site's own model, as a plan with evaluate.matrix asks for it."""
    return ask("local", **MATRIX)


def test_a_site_s_own_model_leaves_where_policy_and_plan_both_say_so(own: Told) -> None:
    assert own.answer.update is not None and own.instruction.adapter is not None
    assert own.answer.update.size == own.instruction.adapter.size
    own.check(LETS)
    assert release(own.answer, own.instruction, own.config, LETS, own.site) == own.answer
    own.refused()
    plain = own.config.model_copy(
        update={"evaluate": own.config.evaluate.model_copy(update={"matrix": False})}
    )
    bare = {k: v for k, v in own.answer.metrics.items() if k != "num-examples"}
    assert "holds an update" in own.refused(metrics=bare)
    assert "holds an update" in dataclasses.replace(own, config=plain).refused(LETS, metrics=bare)


def test_where_policy_keeps_it_the_rest_is_answered(own: Told, honest: dict[str, Told]) -> None:
    out = release(own.answer, own.instruction, own.config, POLICY, own.site)
    assert out == honest["local"].answer and out.update is None and out.metrics["steps"]
    assert withhold(own.answer, own.instruction, own.config, POLICY) == out
    large = dataclasses.replace(own.answer, update=np.full_like(own.answer.update, 100.0))
    assert release(large, own.instruction, own.config, POLICY, own.site) == out


def test_a_site_s_own_model_is_bounded_as_an_update_is(own: Told) -> None:
    update = np.array(own.answer.update)
    for spoil in [*UPDATES.values(), lambda u: u[:-1]]:
        if spoil(update) is not None:
            own.refused(LETS, update=spoil(update))
    bare = {k: v for k, v in own.answer.metrics.items() if k != "num-examples"}
    assert "number of studies behind it" in own.refused(LETS, metrics=bare)
    few = own.with_metrics(**{"num-examples": 10})
    assert "not within 11" in own.refused(LETS, metrics=few)
    own.check(LETS, update=None)


# ---------------------------------------------------------------------- site, code, stage, groups


def test_an_answer_is_this_sites(honest: dict[str, Told]) -> None:
    for name in ASKED:
        honest[name].refused(site="south")
    honest["enrol"].refused(site="north\x00Doe^Jane")


def test_a_code_stands_alone_and_is_one_of_ours(honest: dict[str, Told]) -> None:
    told = honest["train"]
    alone: dict[str, Any] = {"metrics": {}, "update": None}
    for code in ("E_POLICY", "E_INTERNAL", "E_TABLE", "E_WORKER", "E_EGRESS"):
        assert code in CODES
        told.check(code=code, **alone)
    for code in ("E_DOE_JANE", "e_policy", "Doe", " ", "E_POLICY\n"):
        told.refused(code=code, **alone)
    told.refused(code="E_POLICY", metrics={}, update=told.answer.update)
    told.refused(code="E_POLICY", metrics=told.answer.metrics, update=None)


def test_a_stage_that_policy_forbids_is_not_answered(honest: dict[str, Told]) -> None:
    policy = parse_policy({"asked": {"stages": ("enrol",)}})
    honest["enrol"].check(policy)
    assert "train" in honest["train"].refused(policy)


MEANS = {"studies", "macro-auroc", "macro-interval", "macro-se", "pooled-ece", "gain.macro", "gain-se.macro"}
WITHHELD: dict[str, set[str]] = {
    "enrol": {"quarantined.not-an-image"},
    "train": {"loss", "seconds", "validation-auroc"}
    | {
        f"validation.{finding}.{name}"
        for finding in ("effusion", "cardiomegaly")
        for name in ("auroc", "pr-auc", "ece", "positives", "negatives")
    },
    "local": set(),
    "calibrate": {
        f"{f}.{n}" for f in ("effusion", "cardiomegaly") for n in ("positives", "negatives", "platt")
    },
}


def test_what_policy_withholds_does_not_leave(honest: dict[str, Told]) -> None:
    policy = parse_policy({"answers": {"metrics": ()}, "asked": {"stages": tuple(MESSAGE_TYPES)}})
    for name, told in honest.items():
        out = release(told.answer, told.instruction, told.config, policy, told.site)
        gone = set(told.answer.metrics) - set(out.metrics)
        told.check(policy, metrics=out.metrics)
        if told.instruction.stage == "evaluate":
            assert set(out.metrics) <= MEANS
            assert "macro-auroc" in out.metrics
        else:
            assert gone == WITHHELD[name]
        if gone:
            told.refused(policy)


def test_what_is_withheld_is_checked_first(honest: dict[str, Told]) -> None:
    """A mean over cells that are too small is refused although the cells themselves would stay here."""
    told, policy = honest["federated"], parse_policy({"answers": {"metrics": ()}})
    small = dataclasses.replace(told.answer, metrics=told.with_metrics(**{"effusion.positives": 3}))
    with pytest.raises(EgressError):
        release(small, told.instruction, told.config, policy, told.site)
    odd = dataclasses.replace(told.answer, metrics=told.with_metrics(accession=ACCESSION))
    assert "accession" in withhold(odd, told.instruction, told.config, policy).metrics
    with pytest.raises(EgressError):
        release(odd, told.instruction, told.config, policy, told.site)


# ---------------------------------------------------------------------- the audit's line


def test_an_answer_is_described_by_what_it_holds(honest: dict[str, Told]) -> None:
    import hashlib
    import json

    answer = honest["train"].answer
    told = describe(answer)
    assert answer.update is not None
    assert told["update"] == {
        "shape": [answer.update.size],
        "dtype": "float32",
        "bytes": answer.update.nbytes,
        "sha256": hashlib.sha256(answer.update.tobytes()).hexdigest(),
    }
    assert told["site"] == {"name": "north", "code": ""} and told["metrics"] == answer.metrics
    assert set(describe(Answer("north", code="E_POLICY"))) == {"site"}
    json.dumps([describe(t.answer) for t in honest.values()], allow_nan=False)


def test_the_gate_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, client.gate.audit_commands, client.gate.commands, client.gate.egress, "
        "client.gate.incoming, client.gate.words\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'flwr', 'pandas', 'rich.table')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
