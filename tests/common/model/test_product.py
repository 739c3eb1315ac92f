"""Products by oneDNN against torch's own, in value, in gradient and in what counts and transforms them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from common.model import product
from common.model.product import QuickLinear, linear, onednn_is_faster, plain_products, quicken


@pytest.fixture
def chosen(monkeypatch):
    """As on a processor for which oneDNN is chosen, whatever this one is."""
    if not torch.backends.mkldnn.is_available() or product._onednn_linear() is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(product, "onednn_is_faster", lambda: True)


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def by_onednn(call):
    """Whether a call ran oneDNN's operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        call()
    return any(event.key == "mkldnn::_linear_pointwise" for event in record.key_averages())


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(130, 96), (2, 65, 96)])
def test_value_and_gradients_are_torch_s(shape, bias):
    x, w, b = draw(shape, (160, 96), (160,))
    inputs = [t.requires_grad_(True) for t in ((x, w, b) if bias else (x, w))]
    layer = QuickLinear(96, 160, bias=bias)
    given = dict(zip(("weight", "bias"), inputs[1:], strict=False))
    (grad,) = draw((*shape[:-1], 160), seed=1)
    ours = torch.func.functional_call(layer, given, (x,))
    theirs = functional.linear(*inputs)
    assert "_Linear" in type(ours.grad_fn).__name__
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True
    ):
        assert (mine - other).norm() <= 1e-6 * other.norm()


@pytest.mark.usefixtures("chosen")
def test_it_is_single_precision_and_not_less():
    """Against float64 both err by a few units of 2^-24, not by the 2^-9 of bf16 or the 2^-11 of TF32."""
    x, w = draw((1040, 384), (384, 384))
    exact = functional.linear(x.double(), w.double())
    error = (linear(x, w) - exact).norm() / exact.norm()
    assert 0 < error < 1e-6


@pytest.mark.usefixtures("chosen")
def test_what_is_small_double_or_under_autocast_is_torch_s():
    large, w, small = draw((1040, 96), (160, 96), (2, 96))
    assert by_onednn(lambda: linear(large, w))
    assert not by_onednn(lambda: linear(small, w))
    assert not by_onednn(lambda: linear(large.double(), w.double()))
    with plain_products():
        assert not by_onednn(lambda: linear(large, w))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(large, w).dtype == torch.bfloat16


@pytest.mark.usefixtures("chosen")
def test_torch_counts_its_operations():
    x, w = draw((4, 260, 96), (160, 96))
    with FlopCounterMode(display=False) as ours:
        linear(x, w)
    with FlopCounterMode(display=False) as theirs:
        functional.linear(x, w)
    assert ours.get_total_flops() == theirs.get_total_flops() == 2 * 4 * 260 * 96 * 160


@pytest.mark.usefixtures("chosen")
def test_only_plain_layers_are_quickened():
    class Own(nn.Linear):
        """A layer with a forward of its own."""

    net = nn.Sequential(nn.Linear(8, 8), Own(8, 8), nn.ReLU())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert quicken(net) == 1
    assert [type(module) for module in net] == [QuickLinear, Own, nn.ReLU]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert quicken(net) == 0


def test_on_other_processors_nothing_changes(monkeypatch):
    monkeypatch.setattr(product, "processor_maker", lambda: "GenuineIntel")
    onednn_is_faster.cache_clear()
    net = nn.Sequential(nn.Linear(8, 8))
    assert quicken(net) == 0
    assert type(net[0]) is nn.Linear
    onednn_is_faster.cache_clear()
