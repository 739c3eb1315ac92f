"""policy.toml: the file, the model and the check of a plan say the same; what is new is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from client.gate import plan_check as module
from client.gate.plan_check import BOUNDED, HARMLESS, check_plan
from client.gate.policy import Policy, load_policy, parse_policy, policy_text
from client.gate.words import leaving_sentences, policy_sentences, staying_sentences
from client.site import SiteConfig, load_site
from common.config import RunConfig, known_keys
from common.errors import ConfigError, PolicyError
from common.overrides import merge, set_key
from common.protocol import MESSAGE_TYPES

STAGES = tuple(MESSAGE_TYPES)


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    text = 'name = "north"\n[data]\ntable = "t.csv"\n[labels]\neffusion = "E"\nedema = "D"\n'
    (tmp_path / "site.toml").write_text(text)
    return load_site(tmp_path / "site.toml")


def build(**keys: Any) -> RunConfig:
    """A plan the default policy allows, but for some keys (``train__epochs=11``)."""
    tree: dict[str, Any] = {"rounds": {"quorum": 2}}
    for key, value in keys.items():
        set_key(tree, key.replace("__", "."), value)
    return RunConfig.build(tree)


def allowing(**keys: Any) -> Policy:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        set_key(tree, key.replace("__", "."), value)
    return parse_policy(tree)


def test_the_file_and_the_model_are_one(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(policy_text())
    assert load_policy(file) == Policy()
    flat = {f"{s}.{k}" for s, keys in tomllib.loads(policy_text()).items() for k in keys}
    assert flat == set(known_keys(Policy))


def test_every_key_is_explained_above_it() -> None:
    lines = policy_text().splitlines()
    for i, line in enumerate(lines):
        if re.match(r"\w+ = ", line):
            assert lines[i - 1].startswith("# "), line
    assert all(len(line) <= 102 for line in lines)
    assert "—" not in policy_text()


def test_every_key_of_a_plan_is_bounded_or_harmless() -> None:
    keys = set(known_keys(RunConfig))
    assert not BOUNDED & HARMLESS
    new = keys - BOUNDED - HARMLESS
    assert not new, f"decide in client/gate/plan_check.py whether {new} must be bounded"
    assert keys == BOUNDED | HARMLESS


def test_a_key_that_policies_do_not_know_is_refused(
    site: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HARMLESS", HARMLESS - {"train.lr"})
    with pytest.raises(PolicyError, match=r"train\.lr"):
        check_plan(Policy(), build(), site, "train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[answers]\nmax_byte = 5", ["answers.max_byte", "max_bytes"]),
        ("[answers]\nmax_bytes = 0", ["answers.max_bytes", "0"]),
        ("[answers]\nmax_bytes = 1.5", ["answers.max_bytes"]),
        ("[answers]\nmax_update_norm = inf", ["answers.max_update_norm"]),
        ("[answers]\nmin_cell = true", ["answers.min_cell"]),
        ('[asked]\nstages = ["enrol", "sell"]', ["asked.stages", "sell"]),
        ("[asked]\nstages = []", ["asked.stages"]),
        ('[asked]\nfindings = ["efusion"]', ["asked.findings", "effusion"]),
        ('[training]\nmethods = ["lora", "magic"]', ["training.methods", "magic"]),
        ("asked = 5", ["asked"]),
        ("[asked", ["not valid TOML"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(file)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no policy file"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize("stage", STAGES)
def test_an_ordinary_plan_passes(site: SiteConfig, stage: str) -> None:
    check_plan(allowing(asked__stages=STAGES), build(), site, stage)


def test_a_site_calibrates_only_where_it_says_so(site: SiteConfig) -> None:
    assert set(STAGES) - set(Policy().asked.stages) == {"calibrate"}
    with pytest.raises(PolicyError, match="calibrate"):
        check_plan(Policy(), build(), site, "calibrate")
    said = "sums over the validation studies"
    assert said not in " ".join(leaving_sentences(Policy()))
    assert said in " ".join(leaving_sentences(allowing(asked__stages=STAGES)))


BEYOND: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"data__findings": "effusion, edema"}, {"asked__findings": ("effusion",)}),
    ({"data__clinical": "age"}, {"asked__clinical": False}),
    ({"data__image_size": 513}, {}),
    ({"model__weights": "/etc/anything.safetensors"}, {}),
    ({"pet__method": "full"}, {}),
    ({"pet__rank": 65}, {}),
    ({"pet__bottleneck": 65}, {}),
    ({"train__batch_size": 257}, {}),
    ({"train__epochs": 11}, {}),
    ({"train__steps": 2001}, {}),
    ({"train__steps": 2, "train__batch_size": 5}, {}),
    ({"rounds__quorum": 1}, {}),
    ({"rounds__quorum": 2}, {"federation__min_sites": 3}),
    ({"rounds__cohort": 1}, {}),
    ({"strategy__mean": "median", "rounds__quorum": 3}, {}),
    ({"strategy__mean": "trimmed"}, {"federation__means": ("weighted",)}),
    ({"rounds__count": 101}, {}),
    ({"data__text": True}, {"asked__text": False}),
    ({"data__redaction": "word", "data__text": True}, {}),
    ({"model__text_weights": "/etc/anything"}, {}),
    ({"pretrain__rounds": 93, "rounds__count": 8}, {}),
    ({"pretrain__parameters": "encoder", "pretrain__rounds": 2}, {}),
    ({"pretrain__redaction": "none", "pretrain__rounds": 2, "pretrain__task": "image-text"}, {}),
    ({"pretrain__batch_size": 257}, {}),
    ({"pretrain__epochs": 11}, {}),
    ({"pretrain__steps": 2001}, {}),
    ({"pretrain__steps": 1, "pretrain__batch_size": 10}, {}),
    ({"personalise__epochs": 11}, {}),
    ({"personalise__rank": 65}, {}),
    ({"wire__codec": "fp16"}, {"answers__codecs": ("fp32",)}),
    ({"evaluate__replicates": 2001}, {}),
]


@pytest.mark.parametrize(("keys", "limits"), BEYOND)
def test_a_plan_beyond_is_refused_by_key_value_and_limit(
    site: SiteConfig, keys: dict[str, Any], limits: dict[str, Any]
) -> None:
    with pytest.raises(PolicyError) as caught:
        check_plan(allowing(**limits), build(**keys), site, "train")
    key = next(iter(keys)).replace("__", ".")
    assert key in caught.value.problem and key in caught.value.found
    assert re.search(r"(asked|training|federation|answers)\.\w+|site\.toml", caught.value.found)
    assert caught.value.fix


def test_everything_bounded_here_has_a_case() -> None:
    elsewhere = {
        "data.fraction",
        "data.shots",
        "model.backbone",
        "strategy.max_update_norm",
        "evaluate.local",
        "evaluate.matrix",
        "evaluate.calibrate",
        "evaluate.compare_calibration",
        "evaluate.pooled",
        "model.text_encoder",
        "personalise.method",
    }
    cases = {key.replace("__", ".") for keys, _ in BEYOND for key in keys}
    assert cases == BOUNDED - elsewhere


@pytest.mark.parametrize(
    "keys",
    [
        {"data__image_size": 512},
        {"pet__rank": 64},
        {"train__epochs": 10},
        {"train__steps": 1, "train__batch_size": 11},
        {"rounds__count": 100},
        {"rounds__count": 90, "pretrain__rounds": 10},
        {"data__text": True},
        {"pretrain__rounds": 2, "pretrain__task": "image-text", "pretrain__redaction": "indication"},
        {"evaluate__replicates": 2000},
    ],
)
def test_a_plan_at_the_limit_passes(site: SiteConfig, keys: dict[str, Any]) -> None:
    check_plan(Policy(), build(**keys), site, "train")


def test_only_the_stages_allowed(site: SiteConfig) -> None:
    policy = allowing(asked__stages=("enrol", "train"))
    check_plan(policy, build(), site, "train")
    for stage in ("local", "evaluate", "anything"):
        with pytest.raises(PolicyError, match=stage):
            check_plan(policy, build(), site, stage)


def test_findings_that_the_site_does_not_label_need_no_permission(site: SiteConfig) -> None:
    policy = allowing(asked__findings=("Pleural Effusion",))
    check_plan(policy, build(data__findings="effusion, pneumothorax"), site, "train")
    everything = site.model_copy(update={"data": site.data.model_copy(update={"layout": "nih"})})
    with pytest.raises(PolicyError, match=r"data\.findings"):
        check_plan(policy, build(data__findings="effusion, pneumothorax"), everything, "train")


def test_weights_of_a_plan_lie_where_the_site_says(site: SiteConfig, tmp_path: Path) -> None:
    own = site.model_copy(
        update={"model": site.model.model_copy(update={"weights": tmp_path / "w.safetensors"})}
    )
    check_plan(Policy(), build(model__weights="anywhere"), own, "train")
    with pytest.raises(PolicyError, match=r"model\.weights"):
        check_plan(allowing(training__own_weights=False), build(model__weights="anywhere"), own, "train")


def test_the_smaller_cell_of_site_toml_is_refused(site: SiteConfig) -> None:
    small = site.model_copy(update={"evaluate": site.evaluate.model_copy(update={"min_cell": 10})})
    with pytest.raises(PolicyError, match="smaller numbers"):
        check_plan(Policy(), build(), small, "enrol")


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_the_sentences_tell_the_limits(sites: int) -> None:
    limits = {"federation": {"min_sites": sites}, "asked": {"stages": ("enrol",)}, "answers": {"metrics": ()}}
    policy = parse_policy(merge(limits, {"training": {"max_epochs": 7, "own_weights": False}}))
    told = " ".join([*policy_sentences(policy), *leaving_sentences(policy)])
    others = ("no other site", "1 other site;", "2 other sites;")[sites - 1]
    assert others in told and "7 epochs" in told and "come with the software only" in told
    assert "finding by finding" not in told


def test_the_site_s_own_model_stays_or_leaves() -> None:
    own = "model this site trains for itself"
    assert not Policy().answers.local_adapter
    assert own in " ".join(staying_sentences(Policy())) and own not in " ".join(leaving_sentences(Policy()))
    lets = allowing(answers__local_adapter=True)
    assert own in " ".join(leaving_sentences(lets)) and own not in " ".join(staying_sentences(lets))
    open_ = allowing(answers__local_adapter=True, training__methods=("full",))
    assert len(staying_sentences(open_)) == len(staying_sentences(lets)) - 1


def test_the_sentences_tell_how_changes_become_one() -> None:
    assert "by their mean or trimmed mean." in " ".join(policy_sentences(Policy()))
    assert "by their median." in " ".join(policy_sentences(allowing(federation__means=("median",))))


def test_what_stays_depends_on_the_methods() -> None:
    assert "whole network" in " ".join(staying_sentences(Policy()))
    assert "whole network" not in " ".join(staying_sentences(allowing(training__methods=("full",))))
