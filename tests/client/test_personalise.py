"""What a site makes of the released adapter: kept only if it is better there, and never sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from client import personalise as own_part
from client.data.dataset import SiteData, load_site_data
from client.evaluate import predict
from client.gate.cells import check_evaluation
from client.gate.egress import check_answer
from client.gate.policy import parse_policy
from client.personalise import Personal, load_personal, personal_scores, personalise
from client.prefix_cache import StudyInputs
from client.site import SiteConfig, load_site
from client.worker import SiteWorker
from common.adapter import AdapterState
from common.code import code_digest
from common.config import RunConfig
from common.errors import EgressError
from common.model.build import CxrModel, build_model
from common.model.dual import PRIVATE_A
from common.overrides import merge
from common.protocol import Answer, Instruction
from simulations.make_site import make_site

FINDINGS = ("effusion", "cardiomegaly", "edema")
PLAN: dict[str, Any] = {
    "data": {"findings": FINDINGS, "image_size": 32},
    "model": {"backbone": "timm:test_vit"},
    "pet": {"rank": 2, "scope": "last-2"},
    "train": {"lr": 0.01, "batch_size": 16},
    "rounds": {"count": 1},
    "evaluate": {"replicates": 20, "local": False},
    "personalise": {"epochs": 3},
}
METHODS = ("fine-tune", "ditto", "dual", "private-head")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    file = make_site(tmp_path_factory.mktemp("sites") / "north", "north", 150, 1, 32, prevalence=0.5)
    text = file.read_text().replace("[data]\n", "[data]\nsplit = [0.5, 0.25, 0.25]\n", 1)
    file.write_text(text + "\n[evaluate]\nmin_cell = 3\n[device]\nthreads = 1\n")
    return load_site(file)


@dataclasses.dataclass(frozen=True)
class Desk:
    """A site with a released adapter in front of it."""

    model: CxrModel
    data: SiteData
    inputs: StudyInputs
    start: AdapterState
    asked: Instruction
    config: RunConfig

    def make(self, file: Path, **how: Any) -> Personal:
        start = how.pop("start", self.start)
        return personalise(self.model, self.data, self.inputs, start, "north", file, self.asked, **how)

    def scores(self, state: AdapterState, split: str = "validation") -> np.ndarray:
        indices = self.data.split[split]
        args = (state, self.model, self.inputs, self.start, "north", indices)
        return personal_scores(*args)

    def released(self, split: str = "validation") -> np.ndarray:
        self.model.load(self.start)
        return predict(self.model, self.inputs, self.data.split[split])

    def area(self, scores: np.ndarray, split: str = "validation") -> float:
        labels = self.data.labels[self.data.split[split]]
        return float(np.mean([roc_auc_score(labels[:, j], scores[:, j]) for j in range(len(FINDINGS))]))


@pytest.fixture(scope="module")
def desk(site: SiteConfig) -> Callable[..., Desk]:
    def make(**over: Any) -> Desk:
        config = RunConfig.build(merge(PLAN, over))
        model, data = build_model(config), load_site_data(site, config.data, config.seed)
        generator = torch.Generator().manual_seed(1)
        start = {
            n: t + 0.02 * torch.randn(t.shape, generator=generator)
            for n, t in model.initial_state().tensors.items()
        }
        plan = config.plan_digest(model.base_digest, code_digest())
        asked = Instruction(
            "personalise", plan, code_digest(), model.base_digest, adapter=model.schema.pack(start)
        )
        inputs = StudyInputs(model, data, config.train)
        return Desk(model, data, inputs, AdapterState(start, {}), asked, config)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_it_is_kept_exactly_where_validation_is_better(
    desk: Callable[..., Desk], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways round, on scikit-learn's AUROC: with the two models changing places one must be kept."""
    here = desk(personalise={"method": method})
    made = here.make(tmp_path / "one.safetensors")
    trained, steps = own_part._train(here.model, here.data, here.inputs, here.start, "north", None)
    before, after = here.area(here.released()), here.area(here.scores(trained))
    assert before != after, "the test says nothing about a tie"
    assert made.kept == (after > before)
    assert made.steps == steps == 3 * -(-len(here.data.labelled("train")) // 16)
    assert (made.before, made.after) == (pytest.approx(before), pytest.approx(after))
    assert made.metrics() == {
        "kept": int(made.kept),
        "steps": steps,
        "validation-before": round(before, 3),
        "validation-auroc": round(after, 3),
    }
    if made.kept:
        assert made.state.digest() == trained.digest()
        worse = here.start
    else:
        assert not made.state.tensors
        assert np.array_equal(here.scores(made.state, "test"), here.released("test"))
        worse = None
    if method != "dual" and worse is not None:
        monkeypatch.setattr(own_part, "_train", lambda *args: (worse, steps))
        back = here.make(tmp_path / "two.safetensors", start=trained)
        assert not back.kept and not back.state.tensors


@pytest.mark.parametrize("method", METHODS)
def test_a_tie_goes_back_to_the_released_adapter(
    desk: Callable[..., Desk], tmp_path: Path, method: str
) -> None:
    here = desk(personalise={"method": method, "lr": 1e-12})
    made = here.make(tmp_path / "own.safetensors")
    assert not made.kept and made.before == made.after and not made.state.tensors


def test_a_score_that_is_not_defined_is_a_loss(desk: Callable[..., Desk], tmp_path: Path) -> None:
    here = desk(personalise={"method": "fine-tune"})
    none = {**here.data.split, "validation": np.zeros(0, dtype=np.int64)}
    blind = dataclasses.replace(here, data=dataclasses.replace(here.data, split=none))
    made = blind.make(tmp_path / "own.safetensors")
    assert not made.kept and made.metrics() == {"kept": 0, "steps": made.steps}


def test_small_cells_are_not_told(desk: Callable[..., Desk], tmp_path: Path) -> None:
    here = desk(personalise={"method": "fine-tune"})
    told = here.make(tmp_path / "all.safetensors")
    quiet = here.make(tmp_path / "few.safetensors", min_cell=10_000)
    assert quiet.kept == told.kept, "what stays here decides"
    assert quiet.metrics() == {"kept": int(told.kept), "steps": told.steps}


def kept_here(desk: Callable[..., Desk], file: Path, method: str) -> tuple[Desk, Personal]:
    """A desk at which the method wins, so that there is something to keep: the start is a worse one."""
    here = desk(personalise={"method": method, "epochs": 6}, seed=4)
    made = here.make(file)
    if not made.kept:
        pytest.fail("choose another seed: this one keeps nothing")
    return here, made


@pytest.mark.parametrize("method", METHODS)
def test_what_is_finished_is_found_and_what_is_damaged_made_again_to_the_same_bits(
    desk: Callable[..., Desk], tmp_path: Path, method: str
) -> None:
    file = tmp_path / "own.safetensors"
    here, made = kept_here(desk, file, method)
    at = file.stat().st_mtime_ns
    restarted, again = kept_here(desk, file, method)
    assert file.stat().st_mtime_ns == at and again.state.digest() == made.state.digest()
    assert dataclasses.replace(again, state=made.state) == made
    assert np.array_equal(restarted.scores(again.state, "test"), here.scores(made.state, "test"))
    file.write_bytes(file.read_bytes()[:100])
    assert load_personal(file, here.asked.plan_digest, here.start.digest()) is None
    anew = here.make(file)
    assert anew.state.digest() == made.state.digest() and anew.metrics() == made.metrics()
    assert oct(file.stat().st_mode & 0o777) == "0o600", "nobody else reads it"


def test_another_adapter_or_plan_is_begun_anew(desk: Callable[..., Desk], tmp_path: Path) -> None:
    here, file = desk(personalise={"method": "fine-tune"}), tmp_path / "own.safetensors"
    here.make(file)
    plan, start = here.asked.plan_digest, here.start.digest()
    assert load_personal(file, plan, start) is not None
    other = here.start.plus({n: t * 0 + 1e-3 for n, t in here.start.tensors.items()})
    assert load_personal(file, plan, other.digest()) is None
    assert load_personal(file, "0" * 64, start) is None
    here.make(file, start=other)
    assert load_personal(file, plan, start) is None
    assert load_personal(file, plan, other.digest()) is not None


def trained(here: Desk) -> AdapterState:
    return own_part._train(here.model, here.data, here.inputs, here.start, "north", None)[0]


def distance(a: AdapterState, b: AdapterState) -> float:
    return float(sum((a.tensors[n] - b.tensors[n]).square().sum() for n in a.tensors)) ** 0.5


def test_ditto_is_fine_tuning_that_is_held_back(desk: Callable[..., Desk]) -> None:
    """mu = 0 is fine-tuning to the bit; the larger mu, the nearer it stays (Li et al. 2021, eq. 2)."""

    def ditto(mu: float) -> Desk:
        return desk(personalise={"method": "ditto", "proximal_mu": mu})

    free = trained(desk(personalise={"method": "fine-tune"}))
    assert trained(ditto(0.0)).digest() == free.digest()
    start = ditto(0.0).start
    away = [distance(trained(ditto(mu)), start) for mu in (0.0, 0.3, 10.0)]
    assert away[0] > 1.1 * away[1] > 1.1**2 * away[2] > 0


def test_a_private_head_is_all_that_moves(desk: Callable[..., Desk]) -> None:
    here = desk(personalise={"method": "private-head"})
    own = trained(here)
    moved = {name for name in own if not torch.equal(own.tensors[name], here.start.tensors[name])}
    assert moved == set(here.model.schema.head)


@pytest.mark.parametrize("aggregation", ["fedit", "rolora", "ffa"])
def test_all_of_lora_moves_whatever_the_federation_averages(
    desk: Callable[..., Desk], aggregation: str
) -> None:
    here = desk(personalise={"method": "fine-tune"}, lora={"aggregation": aggregation})
    own = trained(here)
    assert all(not torch.equal(own.tensors[name], here.start.tensors[name]) for name in own)


def test_a_dual_adapter_leaves_released_one_and_base_as_they_were(desk: Callable[..., Desk]) -> None:
    here = desk(personalise={"method": "dual"})
    own = trained(here)
    assert all(name.startswith(here.model.arch.last(2)) for name in own)
    assert here.model.state().digest() == here.start.digest()
    assert here.model.current_base_digest() == here.model.base_digest
    before = here.released("test")
    mine = here.scores(own, "test")
    assert not np.allclose(mine, before) and np.array_equal(here.released("test"), before)


@pytest.mark.parametrize("method", ["head", "bitfit", "adapter", "ia3", "norm", "full"])
def test_a_dual_adapter_lies_beside_any_method(desk: Callable[..., Desk], method: str) -> None:
    """Also beside one that leaves nothing trained in the blocks, whose activations are cached."""
    scope = "all" if method == "full" else "last-2"
    exact = {"cache_dtype": "fp32"}
    here = desk(personalise={"method": "dual"}, pet={"method": method, "scope": scope}, train=exact)
    own = trained(here)
    assert any(not torch.equal(own.tensors[n], torch.zeros(())) for n in own if PRIVATE_A not in n)
    plain = here.config.train.model_copy(update={"prefix_cache": False})
    slow = dataclasses.replace(here, inputs=StudyInputs(here.model, here.data, plain))
    assert np.allclose(here.scores(own), slow.scores(own), atol=1e-6)
    assert not np.allclose(here.scores(own), here.released())


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_that_only_probed_is_personalised_like_any_other(
    desk: Callable[..., Desk], method: str
) -> None:
    """Its rounds read features alone; what is personalised lies before them."""
    probed = {"train": {"cache_dtype": "fp32"}, "rounds": {"count": 1, "probe": 1}, "pet": {"scope": "all"}}
    here = desk(personalise={"method": method}, **probed)
    plain = here.config.train.model_copy(update={"prefix_cache": False})
    slow = dataclasses.replace(here, inputs=StudyInputs(here.model, here.data, plain))
    assert here.inputs.blocks and not slow.inputs.blocks
    own, expected = (trained(desk_of) for desk_of in (here, slow))
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(own.tensors[name], tensor, atol=2e-4, rtol=1e-3)
    assert np.allclose(here.scores(own), slow.scores(own), atol=1e-5)
    assert not np.allclose(here.scores(own), here.released())


def test_the_model_is_the_plan_s_again_afterwards(desk: Callable[..., Desk], tmp_path: Path) -> None:
    for method in METHODS:
        here = desk(personalise={"method": method})
        here.make(tmp_path / method)
        assert here.model.config == here.config


# ---------------------------------------------------------------- through the worker and the gate


def ask(worker: SiteWorker, here: Desk, **changes: Any) -> tuple[Answer, Instruction]:
    asked = dataclasses.replace(here.asked, **changes)
    return worker.handle(asked, here.config.to_flat()), asked


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_it_leaves(
    desk: Callable[..., Desk], site: SiteConfig, tmp_path: Path, method: str
) -> None:
    here = desk(personalise={"method": method, "epochs": 6}, seed=4)
    place = site.data.model_copy(update={"state": tmp_path})
    apart = site.model_copy(update={"data": place})
    policy = parse_policy({"answers": {"min_cell": 3}})
    answer, asked = ask(SiteWorker(apart), here)
    assert answer.update is None and set(answer.metrics) == {
        "kept", "steps", "validation-auroc", "validation-before",
    }  # fmt: skip
    check_answer(answer, asked, here.config, policy, site)
    for change, words in (
        ({"update": here.asked.adapter}, "holds an update"),
        ({"metrics": {**answer.metrics, "state": [0.5]}}, "a figure that it may not hold"),
        ({"metrics": {**answer.metrics, "kept": 2}}, "kept"),
        ({"metrics": {**answer.metrics, "validation-auroc": 0.12345}}, "decimals"),
        ({"metrics": {"steps": 3}}, "is missing"),
    ):
        spoilt = dataclasses.replace(answer, **change)
        with pytest.raises(EgressError, match=words):
            check_answer(spoilt, asked, here.config, policy, site)
    # After a restart the site's own file is measured, and compared with the adapter it received.
    measured, evaluated = ask(SiteWorker(apart), here, stage="evaluate", arm="personalised")
    assert not measured.code and measured.update is None
    check_answer(measured, evaluated, here.config, policy, site)
    own = load_personal(next(tmp_path.glob("personal-*")), asked.plan_digest, here.start.digest())
    assert own is not None
    mine, released = (
        here.area(scores, "test") for scores in (here.scores(own.state, "test"), here.released("test"))
    )
    assert measured.metrics["macro-auroc"] == pytest.approx(mine, abs=6e-4)
    assert measured.metrics["gain.released"][0] == pytest.approx(mine - released, abs=6e-4)
    assert own.kept == bool(answer.metrics["kept"])


def test_a_site_that_made_nothing_measures_nothing(
    desk: Callable[..., Desk], site: SiteConfig, tmp_path: Path
) -> None:
    here = desk(personalise={"method": "fine-tune"})
    place = site.data.model_copy(update={"state": tmp_path})
    worker = SiteWorker(site.model_copy(update={"data": place}))
    answer, _ = ask(worker, here, stage="evaluate", arm="personalised")
    assert answer.code == "E_RUN" and not answer.metrics
    assert "made nothing of its own" in (tmp_path / "site.log").read_text()


def test_a_difference_over_suppressed_findings_is_a_leak() -> None:
    told: dict[str, Any] = {"studies": 40, "gain.released": [0.1, 0.0, 0.2], "gain-se.released": 0.05}
    counts = {f"{finding}.{side}": 0 for finding in FINDINGS for side in ("positives", "negatives")}
    for key in ("gain.released", "gain-se.released"):
        with pytest.raises(EgressError, match=key):
            check_evaluation({"studies": 40, key: told[key], **counts}, FINDINGS, 11)
    large = {**counts, "edema.positives": 20, "edema.negatives": 20}
    check_evaluation({**told, **large}, FINDINGS, 11)
