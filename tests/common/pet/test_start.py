"""A freshly inserted adapter says what the plain backbone and head say, and always the same."""

from __future__ import annotations

import pytest
import torch

FRESH = ("lora", "adapter", "vera", "ia3", "bitfit", "norm", "full")


@pytest.mark.parametrize("method", FRESH)
@pytest.mark.parametrize("scope", ["all", "last-2"])
def test_a_fresh_adapter_changes_nothing(make_model, logits, method, scope):
    plain = logits(make_model(pet__method="head"))
    fresh = logits(make_model(pet__method=method, pet__scope=scope))
    torch.testing.assert_close(fresh, plain, atol=1e-6, rtol=1e-5)
    assert plain.std() > 0


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit2"])
@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "norm"])
def test_a_fresh_adapter_changes_nothing_on_other_families(make_model, logits, backbone, method):
    plain = logits(make_model(model__backbone=f"timm:{backbone}", pet__method="head"))
    fresh = logits(make_model(model__backbone=f"timm:{backbone}", pet__method=method))
    torch.testing.assert_close(fresh, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["head", *FRESH])
def test_a_moved_adapter_changes_the_logits(make_model, logits, moved, method):
    model = make_model(pet__method=method)
    before = logits(model)
    assert not torch.allclose(logits(model, moved(model)), before, atol=1e-3)
    torch.testing.assert_close(logits(model, model.initial_state()), before, atol=0, rtol=0)


@pytest.mark.parametrize("method", ["head", *FRESH])
def test_what_is_built_depends_on_the_seed_and_on_no_global_one(make_model, method):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = make_model(pet__method=method)
        torch.manual_seed(2)
        again = make_model(pet__method=method)
    other = make_model(pet__method=method, seed=1)
    assert first.initial_state().digest() == again.initial_state().digest()
    assert first.base_digest == again.base_digest
    assert first.initial_state().digest() != other.initial_state().digest()
    assert first.base_digest != other.base_digest


def test_every_site_draws_the_same_a_whatever_else_is_random(make_model):
    """ffa rests on it: A is trained nowhere and must be the same everywhere."""
    one, two = make_model(lora__dropout=0.5), make_model(lora__alpha=1.0)
    for name, tensor in one.initial_state().tensors.items():
        assert torch.equal(tensor, two.initial_state().tensors[name])


def test_kaiming_a_and_zero_b(make_model):
    """Kaiming-uniform with a = sqrt(5) draws within 1 / sqrt(in) (Hu et al. 2021, section 4.1)."""
    for name, tensor in make_model().initial_state().tensors.items():
        if ".lora_A." in name:
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound
        elif ".lora_B." in name:
            assert not tensor.any()


def test_dropout_rests_outside_training(make_model, logits, moved):
    model = make_model(lora__dropout=0.5)
    state = moved(model)
    torch.testing.assert_close(logits(model, state), logits(make_model(), state), atol=1e-6, rtol=1e-5)
