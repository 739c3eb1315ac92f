"""Nothing a site can answer touches the model unless it is what the round asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import AdapterSchema
from common.config import RunConfig
from common.errors import (
    NonFiniteError,
    NormError,
    SchemaError,
    SiteError,
    UpdateError,
    WeightError,
)
from common.protocol import Answer, metrics_from_wire
from server.admission import admit, admit_results
from server.report_arms import build_arm, build_comparison

SCHEMA = AdapterSchema((("b", (2,)), ("head", (2, 1))), ("head",))
REGISTERED = 50


def config(**flat):
    return RunConfig.from_flat(
        {"data.findings": "edema, mass", **{k.replace("__", "."): v for k, v in flat.items()}}
    )


PLAN = config()


def answer(update=(1.0, 2.0, 3.0, 4.0), dtype=np.float32, **metrics):
    values = None if update is None else np.array(update, dtype=dtype)
    sound = {"num-examples": 20, "labelled": [20, 0], "loss": 0.5, "steps": 3, "seconds": 1.5}
    merged = sound | {k.replace("_", "-"): v for k, v in metrics.items()}
    return Answer("north", update=values, metrics={k: v for k, v in merged.items() if v is not None})


def take(reply, plan=PLAN, registered=REGISTERED):
    return admit(reply, "north", SCHEMA, plan, registered)


def test_a_sound_answer_becomes_an_update():
    update = take(answer())
    assert (update.site, update.num_examples) == ("north", 20)
    assert update.labelled.tolist() == [20, 0]
    assert update.labelled.dtype == np.int64
    assert update.delta["b"].tolist() == [1.0, 2.0]
    assert update.delta["head"].tolist() == [[3.0], [4.0]]
    assert all(t.dtype == torch.float32 for t in update.delta.values())


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        pytest.param(answer(update=None), SchemaError, id="no update"),
        pytest.param(answer(update=()), SchemaError, id="empty"),
        pytest.param(answer(update=(1, 2, 3)), SchemaError, id="short"),
        pytest.param(answer(update=(1, 2, 3, 4, 5)), SchemaError, id="long"),
        pytest.param(answer(update=((1, 2), (3, 4))), SchemaError, id="square"),
        pytest.param(answer(dtype=np.float64), SchemaError, id="float64"),
        pytest.param(answer(dtype=np.float16), SchemaError, id="float16 under fp32"),
        pytest.param(answer(dtype=np.int32), SchemaError, id="integers"),
        pytest.param(answer(dtype=">f4"), SchemaError, id="big-endian"),
        pytest.param(answer(update=(1, math.nan, 3, 4)), NonFiniteError, id="NaN"),
        pytest.param(answer(update=(1, 2, math.inf, 4)), NonFiniteError, id="infinity"),
        pytest.param(answer(update=(1, 2, -math.inf, 4)), NonFiniteError, id="minus infinity"),
        pytest.param(answer(update=(100.1, 0, 0, 0)), NormError, id="too large"),
        pytest.param(answer(update=(60, 60, 60, 0)), NormError, id="too large together"),
        pytest.param(answer(update=(3e38, 3e38, 3e38, 3e38)), NormError, id="square beyond fp32"),
        pytest.param(answer(num_examples=None), WeightError, id="no weight"),
        pytest.param(answer(num_examples=0), WeightError, id="weight 0"),
        pytest.param(answer(num_examples=-5), WeightError, id="negative"),
        pytest.param(answer(num_examples=10**15), WeightError, id="1e15"),
        pytest.param(answer(num_examples=20.0), WeightError, id="float"),
        pytest.param(answer(num_examples=math.nan), WeightError, id="NaN weight"),
        pytest.param(answer(num_examples=True, labelled=[1, 0]), WeightError, id="a truth value"),
        pytest.param(answer(num_examples=[20]), WeightError, id="a list"),
        pytest.param(answer(num_examples=REGISTERED + 1), WeightError, id="more than registered"),
        pytest.param(answer(labelled=None), WeightError, id="no label counts"),
        pytest.param(answer(labelled=20), WeightError, id="one label count"),
        pytest.param(answer(labelled=[20]), WeightError, id="too few counts"),
        pytest.param(answer(labelled=[20, 0, 0]), WeightError, id="too many counts"),
        pytest.param(answer(labelled=[]), WeightError, id="no counts"),
        pytest.param(answer(labelled=[-1, 5]), WeightError, id="negative count"),
        pytest.param(answer(labelled=[21, 0]), WeightError, id="more labels than examples"),
        pytest.param(answer(labelled=[1.5, 0.0]), WeightError, id="half a label"),
        pytest.param(answer(labelled=[math.nan, 1.0]), WeightError, id="NaN count"),
        pytest.param(answer(labelled=[math.inf, 1.0]), WeightError, id="infinite count"),
        pytest.param(answer(loss=math.nan), NonFiniteError, id="NaN loss"),
        pytest.param(answer(validation_auroc=math.inf), NonFiniteError, id="infinite metric"),
        pytest.param(answer(steps=math.nan), NonFiniteError, id="NaN steps"),
        pytest.param(answer(loss=[0.5]), NonFiniteError, id="a list for a loss"),
        pytest.param(answer(invented=[1.0, math.nan]), NonFiniteError, id="NaN in a list"),
        pytest.param(answer(invented=1.0), SchemaError, id="a figure nobody asked for"),
        pytest.param(answer(invented=[1.0, 2.0]), SchemaError, id="figures nobody asked for"),
        pytest.param(answer(seconds=[1.5]), NonFiniteError, id="a list of seconds"),
        pytest.param(answer(validation_auroc=1.001), SchemaError, id="an AUROC above 1"),
        pytest.param(answer(**{"validation.edema.auroc": -0.1}), SchemaError, id="an AUROC below 0"),
        pytest.param(answer(**{"validation.edema.ece": math.nan}), NonFiniteError, id="NaN for an ECE"),
        pytest.param(answer(**{"validation.edema.pr-auc": [0.5]}), NonFiniteError, id="a list for a figure"),
        pytest.param(answer(**{"validation.edema.positives": 1.5}), SchemaError, id="half a study"),
        pytest.param(answer(**{"validation.edema.negatives": -1}), SchemaError, id="a negative count"),
        pytest.param(answer(**{"validation.hernia.auroc": 0.5}), SchemaError, id="a finding not asked for"),
        pytest.param(answer(**{"validation.edema.brier": 0.5}), SchemaError, id="a figure of no round"),
    ],
)
def test_what_may_not_touch_the_model(reply, error):
    with pytest.raises(error) as caught:
        take(reply)
    assert issubclass(error, UpdateError)
    assert type(caught.value) is error


def test_figures_by_finding_are_taken():
    figures = {"auroc": 0.8, "pr-auc": 0.4, "ece": 0.05, "positives": 12, "negatives": 30}
    told = {f"validation.{finding}.{name}": v for finding in ("edema", "mass") for name, v in figures.items()}
    assert take(answer(validation_auroc=0.8, **told)).num_examples == 20


def test_another_site_s_answer_is_refused():
    with pytest.raises(SiteError):
        admit(answer(), "south", SCHEMA, PLAN, REGISTERED)


def test_the_norm_s_bound_is_inclusive():
    plan = config(strategy__max_update_norm=5.0)
    assert take(answer(update=(3, 4, 0, 0)), plan).num_examples == 20
    with pytest.raises(NormError) as caught:
        take(answer(update=(3, 4, 0.01, 0)), plan)
    assert caught.value.found == "5, at most 5"


def test_the_plan_caps_the_weight_too():
    with pytest.raises(WeightError) as caught:
        take(answer(), config(strategy__max_examples=19))
    assert "1 to 19" in caught.value.found
    assert take(answer(num_examples=REGISTERED)).num_examples == REGISTERED


def test_half_precision_where_the_plan_says_so():
    plan = config(wire__codec="fp16")
    update = take(answer(dtype=np.float16), plan)
    assert update.delta["b"].dtype == torch.float32
    with pytest.raises(SchemaError):
        take(answer(dtype=np.float32), plan)
    with pytest.raises(NonFiniteError), np.errstate(over="ignore"):
        take(answer(update=(1e6, 0, 0, 0), dtype=np.float16), plan)


def test_an_admitted_update_shares_no_memory_with_the_answer():
    reply = answer()
    update = take(reply)
    reply.update[:] = math.nan
    assert update.delta["b"].isfinite().all()


values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.lists(st.floats(), max_size=4),
    st.lists(st.integers(-3, 60), max_size=4),
)


NAMES = ["num-examples", "labelled", "loss", "steps", "validation-auroc", "validation.edema.positives", "x"]


@given(
    st.lists(st.floats(width=32), min_size=4, max_size=4),
    st.dictionaries(st.sampled_from(NAMES), values),
)
def test_whatever_comes_it_is_a_coded_error_or_a_sound_update(update, metrics):
    reply = Answer("north", update=np.array(update, dtype=np.float32), metrics=answer().metrics | metrics)
    try:
        got = take(reply)
    except UpdateError:
        return
    assert 0 < got.num_examples <= REGISTERED
    assert got.labelled.min() >= 0 and got.labelled.max() <= got.num_examples
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in got.delta.values()))
    assert norm <= 100.0 * (1 + 1e-9)


RESULTS = {
    "studies": 60,
    "macro-auroc": 0.8,
    "macro-interval": [0.7, 0.9],
    "macro-se": 0.0412,
    "pooled-ece": 0.1,
    "gain.macro": [0.01, -0.02, 0.03],
    "gain-se.macro": 0.0112,
    "edema.positives": 20,
    "edema.negatives": 40,
    "edema.auroc": 0.8,
    "edema.pr-auc": 0.5,
    "edema.interval": [0.7, 0.9],
    "edema.prevalence": 0.333,
    "edema.ece": 0.1,
    "edema.brier": 0.2,
    "edema.bins-studies": [30, 30],
    "edema.bins-positives": [5, 15],
    "edema.bins-mean": [0.2, 0.6],
    "edema.bins-from": [0, 512],
    "edema.bins-to": [512, 1024],
    "edema.mcc": -0.2,
}


def test_sound_results_are_taken_as_they_are():
    assert admit_results(RESULTS, PLAN.data.findings) == RESULTS
    means = {key: RESULTS[key] for key in ("studies", "macro-auroc", "gain.macro", "gain-se.macro")}
    assert admit_results(means, PLAN.data.findings) == means


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("macro-auroc", math.nan, NonFiniteError),
        ("edema.bins-mean", [0.2, math.inf], NonFiniteError),
        ("macro-auroc", 1.2, SchemaError),
        ("macro-auroc", [0.8], SchemaError),
        ("macro-interval", [0.5], SchemaError),
        ("macro-interval", [0.9, 0.1], SchemaError),
        ("edema.auroc", -0.5, SchemaError),
        ("edema.positives", -3, SchemaError),
        ("edema.brier", 7.0, SchemaError),
        ("edema.bins-studies", [30], SchemaError),
        ("edema.bins-studies", [30, 0], SchemaError),
        ("edema.bins-positives", [5, 31], SchemaError),
        ("edema.bins-mean", 0.5, SchemaError),
        ("edema.bins-positives", [20, 31], SchemaError),
        ("edema.bins-studies", [30, 29], SchemaError),
        ("edema.bins-from", [0], SchemaError),
        ("edema.bins-from", [0, 511], SchemaError),
        ("edema.bins-from", [-1, 512], SchemaError),
        ("edema.bins-to", [512, 1025], SchemaError),
        ("edema.bins-to", [512, 512], SchemaError),
        ("edema.bins-to", 1024, SchemaError),
        ("edema.mcc", -1.5, SchemaError),
        ("gain.macro", [0.1], SchemaError),
        ("gain.macro", [0.1, 0.3, 0.2], SchemaError),
        ("gain.macro", [3.0, 3.0, 3.0], SchemaError),
        ("gain-se.macro", 1e300, SchemaError),
        ("macro-se", -0.1, SchemaError),
        ("studies", -1, SchemaError),
        ("invented", 1.0, SchemaError),
        ("hernia.auroc", 0.5, SchemaError),
    ],
)
def test_results_that_the_report_cannot_hold_are_refused(key, value, error):
    with pytest.raises(error):
        admit_results({**RESULTS, key: value}, PLAN.data.findings)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(RESULTS)), values))
def test_whatever_is_measured_is_refused_or_fits_the_report(changes):
    try:
        taken = admit_results({**RESULTS, **changes}, PLAN.data.findings)
    except UpdateError:
        return
    measured, gains = metrics_from_wire(taken, PLAN.data.findings)
    build_arm("", {}, {"north": measured, "south": measured})
    build_comparison({"north": gains.get("macro"), "south": gains.get("macro")})


def pretrained(**metrics):
    told = {"num-examples": 20, "loss": 0.5, "steps": 3, "seconds": 1.5} | metrics
    return Answer("north", update=np.ones(4, dtype=np.float32), metrics=told)


def test_a_round_of_pretraining_tells_nothing_of_labels():
    update = admit(pretrained(), "north", SCHEMA, PLAN, REGISTERED, pretraining=True)
    assert update.num_examples == 20
    assert update.labelled.tolist() == [0, 0]
    with pytest.raises(WeightError):  # a round of training does
        take(pretrained())


@pytest.mark.parametrize(
    ("metrics", "error"),
    [
        ({"num-examples": REGISTERED + 1}, WeightError),
        ({"labelled": [20, 0]}, NonFiniteError),
        ({"validation-auroc": 0.9}, SchemaError),
        ({"loss": math.nan}, NonFiniteError),
        ({"loss": [0.5]}, NonFiniteError),
        ({"invented": 1}, SchemaError),
    ],
)
def test_what_no_round_of_pretraining_tells(metrics, error):
    with pytest.raises(error):
        admit(pretrained(**metrics), "north", SCHEMA, PLAN, REGISTERED, pretraining=True)
