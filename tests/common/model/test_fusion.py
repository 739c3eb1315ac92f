"""How image and report meet: against the formulas of the papers, and what stands in for what is missing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from common.config import RunConfig
from common.model.fusion import (
    ATTENTION_HEADS,
    ATTENTION_WIDTH,
    Concatenation,
    CrossAttention,
    GatedUnit,
    TextInput,
    build_fusion,
)

IMAGE, TEXT, LENGTH, FINDINGS = 12, 8, 5, 3
KINDS = {"concatenate": Concatenation, "gated": GatedUnit, "cross-attention": CrossAttention}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def head():
    layer = torch.nn.Linear(IMAGE, FINDINGS)
    with torch.no_grad():
        layer.weight.copy_(draw(FINDINGS, IMAGE, seed=1))
        layer.bias.copy_(draw(FINDINGS, seed=2))
    return layer.requires_grad_(False)


def make(kind, seed=0, moved=True):
    config = RunConfig.from_flat(
        {"model.fusion": kind, "seed": seed, "data.text": True, "data.findings": "effusion, edema, mass"}
    )
    fusion = build_fusion(config, IMAGE, TEXT).requires_grad_(False)
    if moved:
        for i, parameter in enumerate(fusion.parameters()):
            parameter += 0.3 * draw(*parameter.shape, seed=50 + i)
    return fusion


def batch(fusion, missing=(), no_image=None):
    """Four studies with 5, 3, 1 and 4 tokens; those in ``missing`` have none."""
    mask = torch.arange(LENGTH) < torch.tensor([5, 3, 1, 4])[:, None]
    mask[list(missing)] = False
    tokens = draw(4, LENGTH, TEXT, seed=3)
    read = tokens if fusion.reads_tokens else tokens.mean(dim=1)
    without = None if no_image is None else torch.tensor([i in no_image for i in range(4)])
    return draw(4, IMAGE, seed=4), TextInput(read, mask, without)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_s_name_makes_it_and_the_seed_alone_draws_it(kind):
    fusion, again, other = make(kind, moved=False), make(kind, moved=False), make(kind, seed=1, moved=False)
    assert type(fusion) is KINDS[kind]
    drawn = {name: tensor for name, tensor in fusion.state_dict().items() if tensor.any()}
    for name, tensor in fusion.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], atol=0, rtol=0)
    for name, tensor in drawn.items():
        assert not torch.equal(tensor, other.state_dict()[name]), name
    assert not fusion.missing_image.any() and not fusion.missing_text.any()


@pytest.mark.parametrize("kind", ["concatenate", "cross-attention"])
def test_it_starts_as_the_image_model(kind, head):
    fusion = make(kind, moved=False)
    image, text = batch(fusion, missing=[1])
    torch.testing.assert_close(fusion(image, text, head), head(image), atol=0, rtol=0)


def test_concatenation_is_one_linear_head_over_both(head):
    fusion = make("concatenate")
    image, text = batch(fusion)
    together = torch.nn.Linear(IMAGE + TEXT, FINDINGS)
    with torch.no_grad():
        together.weight.copy_(torch.cat([head.weight, fusion.text_head.weight], dim=1))
        together.bias.copy_(head.bias)
        expected = together(torch.cat([image, text.read], dim=1))
    torch.testing.assert_close(fusion(image, text, head), expected, atol=1e-5, rtol=1e-5)


def test_the_gated_unit_is_arevalo_s(head):
    """Section 3.1: h_v = tanh(W_v x_v), h_t = tanh(W_t x_t), z = s(W_z [x_v, x_t]), z h_v + (1 - z) h_t."""
    fusion = make("gated")
    image, text = batch(fusion)
    w = {name: tensor.double().numpy() for name, tensor in fusion.state_dict().items()}
    v, t = image.double().numpy(), text.read.double().numpy()
    expected = []
    for x_v, x_t in zip(v, t, strict=True):
        both = [*x_v, *x_t]
        z = [1 / (1 + torch.tensor(-(row @ both)).exp().item()) for row in w["gate.weight"]]
        h_v, h_t = w["image.weight"] @ x_v, w["text.weight"] @ x_t
        expected.append(
            [
                g * torch.tensor(a).tanh().item() + (1 - g) * torch.tensor(b).tanh().item()
                for g, a, b in zip(z, h_v, h_t, strict=True)
            ]
        )
    wanted = functional.linear(torch.tensor(expected).float(), head.weight, head.bias)
    torch.testing.assert_close(fusion(image, text, head), wanted, atol=1e-5, rtol=1e-5)


def test_cross_attention_is_torch_s_own(head):
    """One query a study, against torch's scaled dot-product attention, study by study without padding."""
    fusion = make("cross-attention")
    image, text = batch(fusion)
    width = ATTENTION_WIDTH // ATTENTION_HEADS

    def heads(x):
        return x.reshape(-1, ATTENTION_HEADS, width).transpose(0, 1)  # [H, tokens, w]

    for i in range(len(image)):
        tokens = text.read[i, text.mask[i]]
        heard = functional.scaled_dot_product_attention(
            heads(fusion.query(image[i : i + 1])), heads(fusion.key(tokens)), heads(fusion.value(tokens))
        )
        expected = head(image[i] + fusion.out(heard.transpose(0, 1).reshape(-1)))
        torch.testing.assert_close(fusion(image, text, head)[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_not_read_and_its_stand_in_is(kind, head):
    fusion = make(kind)
    image, text = batch(fusion, missing=[2], no_image=[3])
    said = fusion(image, text, head)
    nonsense = image.clone()
    nonsense[3] = 1e6
    read = text.read.clone()
    read[2] = -1e6
    torch.testing.assert_close(fusion(nonsense, text._replace(read=read), head), said, atol=0, rtol=0)
    whole = fusion(*batch(fusion), head)
    torch.testing.assert_close(said[:2], whole[:2], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(said[2], whole[2]) and not torch.allclose(said[3], whole[3])
    for stand_in, study in ((fusion.missing_text, 2), (fusion.missing_image, 3)):
        kept = stand_in.clone()
        stand_in += 1.0
        other = fusion(image, text, head)
        stand_in.copy_(kept)
        changed = (other - said).abs().amax(dim=1) > 1e-4
        assert changed.nonzero().flatten().tolist() == [study]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stand_in_is_what_it_stands_for(kind, head):
    """A study without a report is one whose report reads as the stand-in: one token, or one vector."""
    fusion = make(kind)
    image, text = batch(fusion, missing=range(4))
    shape = (4, LENGTH, TEXT) if fusion.reads_tokens else (4, TEXT)
    one = torch.zeros(4, LENGTH, dtype=torch.bool)
    one[:, 0] = True
    explicit = TextInput(fusion.missing_text.expand(shape), one)
    torch.testing.assert_close(fusion(image, text, head), fusion(image, explicit, head))
    torch.testing.assert_close(fusion(image, fusion.no_text(4), head), fusion(image, text, head))


def test_padding_changes_nothing(head):
    fusion = make("cross-attention")
    image, text = batch(fusion)
    longer = TextInput(functional.pad(text.read, (0, 0, 0, 7), value=9.0), functional.pad(text.mask, (0, 7)))
    torch.testing.assert_close(fusion(image, longer, head), fusion(image, text, head), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_where_nothing_is_there(kind, head):
    fusion = make(kind).requires_grad_(True)
    image, text = batch(fusion, missing=[0, 2], no_image=[0, 3])
    fusion(image, text, head).square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
