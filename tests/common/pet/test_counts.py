"""How many parameters each method trains, from the architecture's dimensions and the paper's definition."""

from __future__ import annotations

from itertools import pairwise

import pytest

WIDTH, HIDDEN, BLOCKS = 64, 192, 6
"""timm's test_vit: D, the MLP's inner width, L."""
PATCH, CHANNELS, TOKENS = 16, 3, 2 * 2 + 1
FINDINGS = 4
HEAD = FINDINGS * (WIDTH + 1)
R, M = 8, 16
LAYERS = {
    "qkv": (WIDTH, 3 * WIDTH),
    "proj": (WIDTH, WIDTH),
    "fc1": (WIDTH, HIDDEN),
    "fc2": (HIDDEN, WIDTH),
}
"""Linear layers of a block: (in, out)."""
BIASES = sum(out for _, out in LAYERS.values()) + 2 * WIDTH
WHOLE_BLOCK = sum(i * o + o for i, o in LAYERS.values()) + 2 * 2 * WIDTH
STEM_BIAS = WIDTH
STEM = CHANNELS * PATCH**2 * WIDTH + STEM_BIAS + WIDTH + TOKENS * WIDTH
"""Patch embedding, class token, positions."""


def expected(method: str, blocks: int, everywhere: bool) -> int:
    per_block, outside = {
        "head": (0, 0),
        "lora": (sum(R * (i + o) for i, o in LAYERS.values()), 0),
        "bitfit": (BIASES, WIDTH + everywhere * STEM_BIAS),
        "adapter": (2 * WIDTH * M + M + WIDTH, 0),
        "vera": (sum(R + o for _, o in LAYERS.values()), 0),
        "ia3": (WIDTH + WIDTH + HIDDEN, 0),
        "norm": (2 * 2 * WIDTH, 2 * WIDTH),
        "full": (WHOLE_BLOCK, 2 * WIDTH + everywhere * STEM),
    }[method]
    return HEAD + blocks * per_block + outside


METHODS = ("head", "lora", "bitfit", "adapter", "vera", "ia3", "norm", "full")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scope", "blocks"), [("all", BLOCKS), ("last-1", 1), ("last-4", 4)])
def test_count_is_the_closed_form(make_model, method, scope, blocks):
    model = make_model(pet__method=method, pet__scope=scope)
    assert model.schema.numel == expected(method, blocks, scope == "all")
    live = sum(p.numel() for p in model.net.parameters() if p.requires_grad)
    assert live == model.schema.numel


@pytest.mark.parametrize("method", ["head", "lora", "adapter", "vera", "ia3"])
def test_final_norm_adds_its_gain_and_bias(make_model, method):
    plain = make_model(pet__method=method, pet__scope="last-1")
    more = make_model(pet__method=method, pet__scope="last-1", pet__final_norm=True)
    assert more.schema.numel - plain.schema.numel == 2 * WIDTH
    assert set(more.schema.names) - set(plain.schema.names) == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_lora_grows_by_r_times_in_plus_out(make_model, rank):
    model = make_model(pet__rank=rank, pet__targets="q, v, fc2")
    assert model.schema.numel == HEAD + BLOCKS * rank * (2 * (WIDTH + WIDTH) + HIDDEN + WIDTH)


def test_lora_on_resnet18_counts_kernels(make_model):
    """A has the layer's kernel, B is 1 x 1: r (9 in + out) for a 3 x 3 convolution."""
    widths = [64, 128, 256, 512]
    pairs = [(64, 64, 9)] * 4
    for before, width in pairwise(widths):
        pairs += [(before, width, 9), (before, width, 1)] + [(width, width, 9)] * 3
    model = make_model(model__backbone="timm:resnet18")
    assert model.schema.numel == FINDINGS * 513 + sum(R * (i * k + o) for i, o, k in pairs)


def test_base_numel_does_not_depend_on_the_method(make_model):
    base = STEM + BLOCKS * WHOLE_BLOCK + 2 * WIDTH
    for method in METHODS:
        assert make_model(pet__method=method, pet__scope="last-2").base_numel == base
    assert make_model(pet__targets="q, k, v").base_numel == base


FOURTEEN = (
    "atelectasis, cardiomegaly, consolidation, edema, effusion, emphysema, fibrosis, hernia, "
    "infiltration, mass, nodule, pleural_thickening, pneumonia, pneumothorax"
)


@pytest.fixture
def _uninitialised(monkeypatch):
    """Skip timm's slow draw of 86 M values; a count does not read them."""
    monkeypatch.setattr("timm.models.vision_transformer.init_weights_vit_timm", lambda *a, **k: None)
    monkeypatch.setattr("torch.nn.Linear.reset_parameters", lambda self: self.weight.data.zero_())


@pytest.mark.usefixtures("_uninitialised")
def test_vit_b16_rank_16_with_fourteen_findings_is_the_known_answer(make_model):
    model = make_model(
        model__backbone="timm:vit_base_patch16_224",
        data__image_size=224,
        data__findings=FOURTEEN,
        pet__rank=16,
    )
    assert model.schema.numel == 2_370_062


@pytest.mark.usefixtures("_uninitialised")
@pytest.mark.parametrize(("rank", "count"), [(4, 159_758), (8, 307_214), (32, 1_191_950)])
def test_vit_b16_queries_and_values_norm_and_head_are_the_published_counts(make_model, rank, count):
    model = make_model(
        model__backbone="timm:vit_base_patch16_224",
        model__pool="avg",
        data__image_size=224,
        data__findings=FOURTEEN,
        pet__rank=rank,
        pet__targets="q, v",
        pet__final_norm=True,
    )
    assert model.schema.numel == count
