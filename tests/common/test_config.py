"""One typed tree: what it refuses and in which words, and that flat and nested are the same thing."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import RunConfig, known_keys
from common.errors import ConfigError
from common.findings import FINDINGS
from common.overrides import merge, parse_assignment, read_toml, set_key

finite = st.floats(0, 1e6, allow_nan=False)
words = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
trees = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "findings": st.lists(st.sampled_from(FINDINGS), min_size=1, unique=True),
                "image_size": st.integers(16, 1024),
                "fit": st.sampled_from(["crop", "pad"]),
            },
        ),
        "model": st.fixed_dictionaries({}, optional={"backbone": words, "weights": st.text(max_size=20)}),
        "pet": st.fixed_dictionaries(
            {},
            optional={
                "method": st.sampled_from(["head", "lora", "vera", "full"]),
                "scope": st.one_of(st.just("all"), st.integers(1, 99).map("last-{}".format)),
                "targets": st.lists(words, max_size=4),
                "rank": st.integers(1, 10**6),
                "final_norm": st.booleans(),
            },
        ),
        "train": st.fixed_dictionaries(
            {}, optional={"lr": st.floats(1e-9, 1e3), "weight_decay": finite, "augment": st.floats(0, 1)}
        ),
        "strategy": st.fixed_dictionaries({}, optional={"proximal_mu": finite, "tau": st.floats(1e-9, 1.0)}),
    },
)


@settings(deadline=None)
@given(trees)
def test_flat_and_back_is_the_identity(tree):
    config = RunConfig.build(tree)
    flat = config.to_flat()
    assert RunConfig.from_flat(flat) == config
    assert RunConfig.from_flat(flat).digest() == config.digest()
    assert all(type(value) in (bool, int, float, str) for value in flat.values())
    assert not any("_" in key for key in flat)


def test_flat_spells_every_key_once():
    assert set(RunConfig().to_flat()) == {key.replace("_", "-") for key in known_keys()}
    assert len(list(known_keys())) == len(set(known_keys()))


def test_snake_and_kebab_keys_mean_the_same():
    assert RunConfig.from_flat({"strategy.proximal_mu": 0.5}) == RunConfig.from_flat(
        {"strategy.proximal-mu": 0.5}
    )


@pytest.mark.parametrize(
    ("key", "value", "problem", "found", "fix"),
    [
        ("pet.rnak", 4, "unknown key 'pet.rnak'", "", "did you mean 'pet.rank'?"),
        ("pett.rank", 4, "unknown key 'pett'", "", "did you mean 'pet'?"),
        ("zzzzzz", 4, "unknown key 'zzzzzz'", "", ""),
        ("pet.method", "lroa", "pet.method: input should be", "'lroa'", "did you mean 'lora'?"),
        ("pet.method", "xyzzy", "pet.method: input should be", "'xyzzy'", ""),
        ("pet.method", 3, "pet.method: input should be", "3", ""),
        ("pet.rank", 0, "pet.rank: input should be greater than 0", "0", ""),
        ("pet.rank", "8", "pet.rank: input should be a valid integer", "'8'", ""),
        ("pet.rank", 8.0, "pet.rank: input should be a valid integer", "8.0", ""),
        ("pet.rank", True, "pet.rank: input should be a valid integer", "True", ""),
        ("pet.final-norm", 1, "pet.final_norm: input should be a valid boolean", "1", ""),
        ("train.lr", 0.0, "train.lr: input should be greater than 0", "0.0", ""),
        ("train.lr", "1e-3", "train.lr: input should be a valid number", "'1e-3'", ""),
        ("train.lr", True, "train.lr: input should be a valid number", "True", ""),
        ("lora.dropout", 1.0, "lora.dropout: input should be less than 1", "1.0", ""),
        ("data.image-size", 8, "data.image_size: input should be greater than or equal to 16", "8", ""),
        ("seed", 2**31, "seed: input should be less than", str(2**31), ""),
        ("pet", 3, "pet: input should be", "3", ""),
        ("pet.scope", "last-0", "pet.scope: expected 'all' or 'last-K' with K at least 1", "'last-0'", ""),
        ("pet.scope", "first-2", "pet.scope: expected 'all' or 'last-K'", "'first-2'", ""),
        ("pet.scope", "last-²", "pet.scope: expected 'all' or 'last-K'", "'last-²'", ""),
        ("data.findings", "", "data.findings: value should have at least 1 item", "", ""),
        ("data.findings", "edema, oedema", "data.findings: a name stands there twice", "'edema, oedema'", ""),
        ("data.findings", "effusoin", "did you mean 'effusion'?", "'effusoin'", ""),
        ("data.findings", "edema, No Finding", "'No Finding' is not a finding", "No Finding", ""),
    ],
)
def test_what_is_wrong_is_said_with_key_value_and_remedy(key, value, problem, found, fix):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat({key: value})
    error = caught.value
    assert problem in error.problem
    assert found in error.found
    assert error.fix == fix
    assert "\n" not in error.problem + error.found + error.fix


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["train.lr", "strategy.max_update_norm", "pet.rank", "rounds.deadline"])
def test_nan_and_infinity_are_no_numbers_for_a_config(key, value):
    with pytest.raises(ConfigError, match=rf"{key} must be a finite number"):
        RunConfig.from_flat({key: value})


def test_a_whole_number_serves_as_a_float():
    assert RunConfig.from_flat({"train.lr": 1}).train.lr == 1.0


def test_the_tree_cannot_be_changed():
    with pytest.raises(ValidationError):
        RunConfig().pet.rank = 3  # type: ignore[misc]


def test_a_value_where_a_section_belongs_is_said():
    with pytest.raises(ConfigError, match="'pet' is a value, not a section"):
        RunConfig.from_flat({"pet": 3, "pet.rank": 4})


def test_a_long_wrong_value_is_cut():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat({"pet.method": "x" * 5000})
    assert len(caught.value.found) == 80


def test_findings_go_by_their_vocabulary_names():
    config = RunConfig.from_flat({"data.findings": "Pleural_Effusion,Enlarged Heart"})
    assert config.data.findings == ("effusion", "cardiomegaly")
    assert config == RunConfig.build({"data": {"findings": ["effusion", "cardiomegaly"]}})


def test_the_digest_follows_values_not_spelling():
    assert RunConfig().digest() == RunConfig.build({"pet": {"rank": 8}}).digest()
    assert RunConfig().digest() != RunConfig.build({"pet": {"rank": 9}}).digest()
    assert RunConfig.build({"train": {"lr": 1}}).digest() == RunConfig.build({"train": {"lr": 1.0}}).digest()


# ---------------------------------------------------------------------- command line and files


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("pet.rank=4", "pet.rank", 4),
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("pet.final_norm=true", "pet.final_norm", True),
        ("pet.method=lora", "pet.method", "lora"),
        ('pet.method="lora"', "pet.method", "lora"),
        (" pet.rank = 4 ", "pet.rank", 4),
        ("pet.targets=q, v", "pet.targets", "q, v"),
        ('pet.targets=["q", "v"]', "pet.targets", ["q", "v"]),
        ("model.weights=/a=b.safetensors", "model.weights", "/a=b.safetensors"),
        ("model.weights=", "model.weights", ""),
        ("pet.scope=last-4", "pet.scope", "last-4"),
        ("a=2024-01-01", "a", datetime.date(2024, 1, 1)),
    ],
)
def test_an_assignment_is_toml_or_else_text(text, key, value):
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["pet.rank", "=4", "", "  =x"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignment(text)


def test_an_assignment_cannot_smuggle_a_second_key():
    key, value = parse_assignment("pet.rank=4\nseed=3")
    assert (key, value) != ("pet.rank", 4)


@given(trees, trees)
@settings(deadline=None, max_examples=30)
def test_merging_is_setting_key_by_key(base, over):
    kept = RunConfig.build(base)
    tree = RunConfig.build(base).model_dump()
    merged = RunConfig.build(merge(tree, over))
    by_key = RunConfig.build(base).model_dump()
    for section, values in over.items():
        for leaf, value in values.items() if isinstance(values, dict) else ():
            set_key(by_key, f"{section}.{leaf}", value)
        if not isinstance(values, dict):
            set_key(by_key, section, values)
    assert merged == RunConfig.build(by_key)
    assert RunConfig.build(tree) == kept


def test_a_file_is_read_or_named(tmp_path):
    file = tmp_path / "plan.toml"
    with pytest.raises(ConfigError, match=r"plan\.toml: cannot be read"):
        read_toml(file)
    file.write_text("pet = {")
    with pytest.raises(ConfigError, match=r"plan\.toml: not valid TOML"):
        read_toml(file)
    file.write_bytes(b'a = "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_toml(file)
    file.write_text("[pet]\nrank = 4\n")
    assert read_toml(file) == {"pet": {"rank": 4}}
