"""FedAvg, partial labels and FedAdam, against sums written out and against Flower's own strategy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import AdapterSchema, AdapterState
from common.config import RunConfig
from common.errors import ConfigError, SchemaError
from server.strategies.strategy import STEPS, check_strategy
from server.update import SiteUpdate, named
from tests.server.folding import fold, mean_of

FINDINGS = 4
SCHEMA = AdapterSchema(
    (("body.weight", (3, 2)), ("gain", (5,)), ("head.bias", (FINDINGS,)), ("head.weight", (FINDINGS, 2))),
    ("head.bias", "head.weight"),
)
CONFIGS = {name: RunConfig.from_flat({"pet.method": "norm", "strategy.name": name}) for name in STEPS}


def draw(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=generator) for n, s in SCHEMA.shapes}


def site(name, examples, seed, labelled=None):
    counts = np.full(FINDINGS, examples) if labelled is None else np.array(labelled)
    return SiteUpdate(name, examples, counts, draw(seed, 0.1))


def bits(state):
    return {n: t.numpy().tobytes() for n, t in state.tensors.items()}


START = AdapterState(draw(0), {})


# ---------------------------------------------------------------------- the mean


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.lists(st.integers(0, 50), min_size=4, max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_each_row_is_averaged_over_the_sites_that_label_it(sites):
    updates = [site(f"s{i}", n, i, labelled) for i, (n, labelled) in enumerate(sites)]
    mean = mean_of(iter(updates), SCHEMA)
    examples = np.array([u.num_examples for u in updates], dtype=float)
    for name, _ in SCHEMA.shapes:
        deltas = np.stack([u.delta[name].double().numpy() for u in updates])
        if name not in SCHEMA.head:
            expected = np.tensordot(examples / examples.sum(), deltas, axes=1)
            np.testing.assert_allclose(mean[name].numpy(), expected, rtol=1e-12, atol=1e-15)
            continue
        for row in range(FINDINGS):
            counts = np.array([u.labelled[row] for u in updates], dtype=float)
            if not counts.any():
                assert not mean[name][row].any()
                continue
            expected = np.tensordot(counts / counts.sum(), deltas[:, row], axes=1)
            np.testing.assert_allclose(mean[name][row].numpy(), expected, rtol=1e-12, atol=1e-15)


def test_nothing_to_average_is_an_error():
    with pytest.raises(SchemaError, match="no update"):
        mean_of([], SCHEMA)


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape"])
def test_an_update_that_does_not_fit_is_refused(spoil):
    delta = draw(1)
    if spoil == "missing":
        del delta["gain"]
    elif spoil == "extra":
        delta["backbone"] = torch.zeros(1)
    else:
        delta["gain"] = torch.zeros(1)
    with pytest.raises(SchemaError):
        mean_of([SiteUpdate("a", 1, np.ones(FINDINGS, dtype=int), delta)], SCHEMA)


def test_a_mean_in_fp32_would_have_lost_the_small_site():
    """10^6 studies against one: the sums are kept in float64."""
    big = SiteUpdate("a", 10**6, np.array([1]), {"w": torch.tensor([1.0])})
    small = SiteUpdate("b", 1, np.array([1]), {"w": torch.tensor([-1e-7])})
    mean = mean_of([big, small], AdapterSchema((("w", (1,)),)))
    assert mean["w"].item() == pytest.approx((1e6 - 1e-7) / (1e6 + 1), rel=1e-15)


@pytest.mark.parametrize("name", [*STEPS])
def test_an_aggregate_tells_the_mean_it_was_made_of(name):
    updates = [site("b", 3, 2), site("a", 1, 1)]
    outcome = fold(START, updates, SCHEMA, {}, CONFIGS[name])
    expected, mean = mean_of(updates, SCHEMA), named(outcome.mean, SCHEMA)
    assert all(torch.equal(mean[n], expected[n]) for n in SCHEMA.names)
    if name != "fedadam":
        assert all(
            torch.equal((START.tensors[n].double() + mean[n]).float(), outcome.state.tensors[n])
            for n in SCHEMA.names
        )


# ---------------------------------------------------------------------- laws of aggregate()


@pytest.mark.parametrize("strategy", sorted(STEPS))
def test_who_answers_first_changes_no_bit(strategy):
    """Sizes differ by orders of magnitude, so that float64 sums round, and round by order."""
    updates = []
    for i, (name, n) in enumerate((("b", 7), ("a", 1001), ("d", 3), ("c", 31))):
        delta = {k: d * 10.0 ** (-4 * i) for k, d in draw(i).items()}
        updates.append(SiteUpdate(name, n, np.full(FINDINGS, n), delta))
    results = set()
    for order in itertools.permutations(updates):
        outcome = fold(START, order, SCHEMA, {}, CONFIGS[strategy])
        memory = {n: t.numpy().tobytes() for n, t in outcome.memory.items()}
        results.add(str((bits(outcome.state), memory)))
    assert len(results) == 1


@settings(max_examples=40)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(0, 1000))
def test_sites_that_agree_are_a_fixed_point_of_the_mean(weights, seed):
    delta = draw(seed)
    updates = [SiteUpdate(f"s{i}", n, np.full(FINDINGS, n), delta) for i, n in enumerate(weights)]
    outcome = fold(START, updates, SCHEMA, {}, CONFIGS["fedavg"])
    assert bits(outcome.state) == bits(START.plus(delta))


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
@pytest.mark.parametrize("examples", [1, 3, 999_983])
def test_one_site_federated_is_that_site_trained_alone(strategy, examples):
    update = site("a", examples, 5)
    outcome = fold(START, [update], SCHEMA, {}, CONFIGS[strategy])
    assert bits(outcome.state) == bits(START.plus(update.delta))
    assert outcome.memory == {}


@pytest.mark.parametrize("strategy", sorted(STEPS))
def test_a_zero_update_moves_nothing(strategy):
    zero = {n: torch.zeros(s) for n, s in SCHEMA.shapes}
    update = SiteUpdate("a", 3, np.full(FINDINGS, 3), zero)
    outcome = fold(START, [update], SCHEMA, {}, CONFIGS[strategy])
    assert bits(outcome.state) == bits(START)


@pytest.mark.parametrize("strategy", sorted(STEPS))
def test_the_received_state_is_not_touched_and_the_result_is_fp32(strategy):
    before = bits(START)
    memory: dict[str, torch.Tensor] = {}
    outcome = fold(START, [site("a", 3, 1)], SCHEMA, memory, CONFIGS[strategy])
    assert bits(START) == before
    assert memory == {}
    assert all(t.dtype == torch.float32 for t in outcome.state.tensors.values())
    assert outcome.lora_error is None


@pytest.mark.parametrize("strategy", sorted(STEPS))
def test_a_row_nobody_labels_keeps_its_bits_also_under_momentum(strategy):
    """Row 2 is trained in rounds 1 and 2 and by nobody after; its update is not zero, its weight is."""
    state, memory = START, {}
    for number in range(1, 6):
        counts = [5, 5, 5 if number <= 2 else 0, 0]
        before = state
        updates = [site("a", 5, 10 + number, counts), site("b", 9, 20 + number, [9, 0, 0, 0])]
        outcome = fold(state, updates, SCHEMA, memory, CONFIGS[strategy])
        state, memory = outcome.state, outcome.memory
        for name in SCHEMA.head:
            moved = [
                not torch.equal(state.tensors[name][i], before.tensors[name][i]) for i in range(FINDINGS)
            ]
            assert moved == [True, True, number <= 2, False]
    for name in SCHEMA.head:
        assert state.tensors[name][3].numpy().tobytes() == START.tensors[name][3].numpy().tobytes()


@pytest.mark.parametrize("strategy", sorted(STEPS))
def test_tensors_out_of_turn_keep_their_bits(strategy):
    part = SCHEMA.select(["gain", "head.bias", "head.weight"])
    full = site("a", 5, 1)
    first = fold(START, [full], SCHEMA, {}, CONFIGS[strategy])
    update = SiteUpdate("a", 5, full.labelled, {n: full.delta[n] for n in part.names})
    outcome = fold(first.state, [update], part, first.memory, CONFIGS[strategy])
    assert torch.equal(outcome.state.tensors["body.weight"], first.state.tensors["body.weight"])
    assert not torch.equal(outcome.state.tensors["gain"], first.state.tensors["gain"])
    for name, tensor in first.memory.items():
        if "body" in name:
            assert torch.equal(outcome.memory[name], tensor)


# ---------------------------------------------------------------------- FedAdam

ADAM = RunConfig.from_flat(
    {
        "pet.method": "norm",
        "strategy.name": "fedadam",
        "strategy.server-lr": 0.03,
        "strategy.beta1": 0.8,
        "strategy.beta2": 0.95,
        "strategy.tau": 0.02,
    }
)


def rounds(count=5):
    for number in range(count):
        yield [site("a", 30, 2 * number + 1), site("b", 10, 2 * number + 2)]


def test_fedadam_is_algorithm_2_of_reddi_et_al():
    """m <- b1 m + (1 - b1) D; v <- b2 v + (1 - b2) D^2, v_0 = tau^2; x <- x + eta m / (sqrt(v) + tau)."""
    x = {n: t.double().numpy() for n, t in START.tensors.items()}
    m = {n: np.zeros_like(t) for n, t in x.items()}
    v = {n: np.full_like(t, 0.02**2) for n, t in x.items()}
    state, memory = START, {}
    for updates in rounds():
        outcome = fold(state, updates, SCHEMA, memory, ADAM)
        state, memory = outcome.state, outcome.memory
        for n in x:
            delta = 0.75 * updates[0].delta[n].double().numpy() + 0.25 * updates[1].delta[n].double().numpy()
            m[n] = 0.8 * m[n] + 0.2 * delta
            v[n] = 0.95 * v[n] + 0.05 * delta**2
            x[n] = x[n] + 0.03 * m[n] / (np.sqrt(v[n]) + 0.02)
            np.testing.assert_allclose(state.tensors[n].numpy(), x[n], rtol=1e-6, atol=1e-7)


def test_fedadam_is_flower_s_up_to_its_start_and_its_bias_correction():
    """Flower starts v at 0 and multiplies eta by sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)), t from 1.

    Neither is in algorithm 2. With v set to tau^2 and eta divided by that factor it does what ours does.
    """
    theirs = FedAdam(beta_1=0.8, beta_2=0.95, tau=0.02, eta=0.03)
    theirs.current_arrays = {n: t.double().numpy() for n, t in START.tensors.items()}
    theirs.v_t = {n: np.full(s, 0.02**2) for n, s in SCHEMA.shapes}
    state, memory = START, {}
    for number, updates in enumerate(rounds(), start=1):
        outcome = fold(state, updates, SCHEMA, memory, ADAM)
        state, memory = outcome.state, outcome.memory
        theirs.eta = 0.03 * (1 - 0.8 ** (number + 1)) / np.sqrt(1 - 0.95 ** (number + 1))
        arrays, _ = theirs.aggregate_train(number, [reply(theirs.current_arrays, u) for u in updates])
        theirs.current_arrays = {n: arrays[n].numpy() for n in arrays}
        for n, tensor in state.tensors.items():
            np.testing.assert_allclose(tensor.numpy(), theirs.current_arrays[n], rtol=1e-5, atol=1e-6)


def reply(current, update):
    """What a site of Flower's own strategy returns: its whole arrays."""
    arrays = ArrayRecord({n: Array(current[n] + update.delta[n].double().numpy()) for n in current})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": update.num_examples})})
    metadata = Metadata(
        run_id=1, message_id="m", src_node_id=1, dst_node_id=2, reply_to_message_id="", group_id="",
        created_at=0.0, ttl=1.0, message_type="train", src_task_id=1, dst_task_id=1,
    )  # fmt: skip
    return Message(content=content, metadata=metadata)


def test_fedadam_resumed_from_its_memory_ends_in_the_same_bits():
    def run(state, memory, batches):
        for updates in batches:
            outcome = fold(state, updates, SCHEMA, memory, ADAM)
            state, memory = outcome.state, outcome.memory
        return state, memory

    whole, _ = run(START, {}, rounds())
    batches = list(rounds())
    state, memory = run(START, {}, batches[:2])
    again, _ = run(state, {n: t.clone() for n, t in memory.items()}, batches[2:])
    assert bits(again) == bits(whole)


# ---------------------------------------------------------------------- what has no meaning


@pytest.mark.parametrize("aggregation", ["fedit", "fedex"])
def test_fedadam_on_both_factors_is_refused(make_config, aggregation):
    with pytest.raises(ConfigError, match="fedadam") as caught:
        check_strategy(make_config(strategy__name="fedadam", lora__aggregation=aggregation))
    assert aggregation in caught.value.found
    assert "ffa" in caught.value.fix and "rolora" in caught.value.fix


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy__name": "fedadam", "lora__aggregation": "ffa"},
        {"strategy__name": "fedadam", "lora__aggregation": "rolora"},
        {"strategy__name": "fedadam", "pet__method": "norm"},
        {"strategy__name": "fedprox", "lora__aggregation": "fedex"},
        {},
    ],
)
def test_the_others_are_allowed(make_config, settings):
    check_strategy(make_config(**settings))
