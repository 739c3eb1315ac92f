"""A budget's answer is what a model built with it trains."""

from __future__ import annotations

import pytest

from common.config import RunConfig
from common.errors import ConfigError
from common.pet.budget import KNOBS, TOLERANCE, parse_count, solve, trained_parameters
from common.pet.registry import METHODS

FOURTEEN = (
    "atelectasis, cardiomegaly, consolidation, edema, effusion, emphysema, fibrosis, hernia, "
    "infiltration, mass, nodule, pleural_thickening, pneumonia, pneumothorax"
)


def vit_b16(**over):
    flat = {"model.backbone": "timm:vit_base_patch16_224", "data.image-size": 224, "data.findings": FOURTEEN}
    return RunConfig.from_flat(flat | {key.replace("__", "."): value for key, value in over.items()})


def test_the_papers_budget_on_vit_b16_is_rank_16():
    (fit,) = solve(vit_b16(), 2_370_000, ["lora"])
    assert fit.fits
    assert dict(fit.settings) == {"pet.rank": 16}
    assert fit.parameters == 2_370_062


@pytest.mark.parametrize(("rank", "count"), [(4, 159_758), (8, 307_214), (32, 1_191_950)])
def test_med_peft_s_counts(rank, count):
    config = vit_b16(model__backbone="vit-b16-mrm", pet__targets="q, v", pet__final_norm=True)
    (fit,) = solve(config, count, ["lora"])
    assert dict(fit.settings) == {"pet.rank": rank}
    assert fit.parameters == count


def test_the_smaller_budget_of_the_multimodal_paper():
    """1.06 M (arXiv 2512.21508): r = 7 in all blocks trains 1.6 % too few, so fewer blocks get more."""
    lora, bottleneck = solve(vit_b16(), 1_060_000, ["lora", "adapter"])
    assert trained_parameters(vit_b16(pet__rank=7)) == 1_042_958
    assert lora.fits and bottleneck.fits
    assert "pet.scope" in lora.settings
    assert "pet.scope" not in bottleneck.settings


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["all", "last-1", "last-4"])
@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:test_resnet"])
def test_the_count_is_the_built_model_s(make_config, make_model, method, scope, backbone):
    if backbone == "timm:test_resnet" and method in ("vera", "ia3"):
        pytest.skip("has no place in a CNN")
    for extra in ({}, {"pet__final_norm": True, "data__clinical": "age, male"}):
        over = {"model__backbone": backbone, "pet__method": method, "pet__scope": scope, **extra}
        assert trained_parameters(make_config(**over)) == make_model(**over).schema.numel


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [700, 3_000, 20_000, 123_457])
def test_every_answer_is_what_a_model_with_it_trains(make_config, make_model, method, target):
    (fit,) = solve(make_config(), target, [method])
    settings = {key.replace(".", "__"): value for key, value in fit.settings.items()}
    built = make_model(pet__method=method, **settings).schema.numel
    assert fit.parameters == built
    assert fit.fits == (abs(built - target) <= TOLERANCE * target)


@pytest.mark.parametrize("method", ["lora", "bitfit", "norm", "full", "ia3"])
def test_a_refusal_is_the_nearest_of_all_settings(make_config, method):
    """Against every size and scope there is, one by one."""
    config, target = make_config(), 4_321
    (fit,) = solve(config, target, [method])
    scopes = ["all", *(f"last-{k}" for k in range(1, 7))]
    sizes = range(1, 6) if method in KNOBS else [1]
    counts = [
        trained_parameters(
            make_config(pet__method=method, pet__scope=scope, **{f"pet__{KNOBS.get(method, 'rank')}": size})
        )
        for scope in scopes
        for size in sizes
    ]
    best = min(abs(count - target) for count in counts)
    if fit.fits:
        assert abs(fit.parameters - target) <= TOLERANCE * target
    else:
        assert abs(fit.parameters - target) == best
        assert best > TOLERANCE * target


def test_the_plan_s_scope_comes_first_then_the_widest(make_config):
    narrow = make_config(pet__scope="last-2")
    (fit,) = solve(narrow, trained_parameters(make_config(pet__scope="last-2", pet__rank=5)), ["lora"])
    assert dict(fit.settings) == {"pet.rank": 5}
    # one rank-1 pair in five blocks is less than a rank in all six allows
    target = trained_parameters(make_config(pet__scope="last-5", pet__rank=1))
    (fit,) = solve(make_config(), target, ["lora"])
    assert dict(fit.settings) == {"pet.rank": 1, "pet.scope": "last-5"}


def test_a_rank_beyond_the_layer_is_never_an_answer(make_config):
    (fit,) = solve(make_config(), 50_000_000, ["lora"])
    assert not fit.fits
    assert fit.settings["pet.rank"] == 64


def test_a_method_without_a_place_says_why(make_config):
    fits = {fit.method: fit for fit in solve(make_config(model__backbone="timm:test_resnet"), 50_000)}
    assert "attention" in fits["ia3"].problem
    assert not fits["ia3"].fits
    assert fits["lora"].fits


@pytest.mark.parametrize(("method", "knob"), [("lora", "rank"), ("adapter", "bottleneck")])
def test_both_towers_of_a_model_that_reads_text_count(make_config, make_model, method, knob):
    text = {"data__text": True, "pet__method": method}
    wanted = make_model(**text, **{f"pet__{knob}": 3}).schema.numel
    assert wanted > make_model(pet__method=method, **{f"pet__{knob}": 3}).schema.numel
    (fit,) = solve(make_config(data__text=True), wanted, [method])
    assert dict(fit.settings) == {f"pet.{knob}": 3}
    assert fit.parameters == wanted


def test_a_narrower_scope_of_both_towers(make_config, make_model):
    """The image tower has six blocks, the text tower four: last-5 is none of the answers."""
    text = {"data__text": True, "pet__method": "lora"}
    wanted = make_model(**text, pet__scope="last-2", pet__rank=1).schema.numel
    (fit,) = solve(make_config(data__text=True), wanted, ["lora"])
    assert dict(fit.settings) == {"pet.rank": 1, "pet.scope": "last-2"}


@pytest.mark.parametrize("text", ["", "0", "-5", "2.37X", "NaN", "1e6", "9" * 30])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfigError, match="number of parameters"):
        parse_count(text)


def test_an_unknown_method_is_refused(make_config):
    with pytest.raises(ConfigError, match="dora"):
        solve(make_config(), 1000, ["dora"])
