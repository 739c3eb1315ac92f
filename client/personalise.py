"""What a site makes of the released adapter for itself: trained here, kept only if it is better here.

The gate is the site's own validation studies. A personal adapter that does not beat the released one on
them is thrown away, and the site goes on with what all trained together. Whatever is kept lies in one
file at the site and never leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from client.data.dataset import SiteData
from client.evaluate import macro_auroc, predict
from client.prefix_cache import StudyInputs
from client.train import train_round
from common.adapter import AdapterState
from common.config import RunConfig
from common.files import write_atomic
from common.metrics.summary import Difference, compare_scores
from common.model.build import CxrModel
from common.model.dual import DualModel
from common.protocol import Instruction, Value
from common.seeds import derive, numpy_generator

_NOTHING = AdapterState({}, {})


@dataclass(frozen=True)
class Personal:
    """Where personalisation ended."""

    state: AdapterState
    """The site's own adapter, or its private update alone where the method is ``dual``; empty where the
    site went back to the released adapter."""
    kept: bool
    steps: int
    before: float | None
    """Macro AUROC of the released adapter on the validation studies, over findings that may be told."""
    after: float | None
    """The same of what was trained, kept or not."""

    def metrics(self) -> dict[str, Value]:
        """Return what may leave."""
        told: dict[str, Value] = {"kept": int(self.kept), "steps": self.steps}
        for name, score in (("validation-before", self.before), ("validation-auroc", self.after)):
            if score is not None:
                told[name] = round(score, 3)
        return told


def personalise(
    model: CxrModel,
    data: SiteData,
    inputs: StudyInputs,
    start: AdapterState,
    site: str,
    file: Path,
    instruction: Instruction,
    min_cell: int = 1,
) -> Personal:
    """Make the released adapter ``start`` this site's own, and keep the result in ``file``.

    What an earlier call made of the same adapter under the same plan is found there, not made again.
    It is kept only if its macro AUROC on the site's validation studies is above that of ``start``: a tie,
    or a score that is not defined, counts as a loss. ``min_cell`` bounds the findings in the figures
    that are told, not the decision, which stays here.

    Raises:
        DataError: if the site has no training study with a label of this run.
        TargetError: if the method is ``dual`` and the backbone has no linear layer.
    """
    plan, of = instruction.plan_digest, start.digest()
    if (known := load_personal(file, plan, of)) is not None:
        return known
    indices = data.split["validation"]
    labels = data.labels[indices]
    model.load(start)
    scores = predict(model, inputs, indices)
    state, steps = _train(model, data, inputs, start, site, instruction.class_weights)
    own = personal_scores(state, model, inputs, start, site, indices)
    before, after = macro_auroc(scores, labels), macro_auroc(own, labels)
    kept = before is not None and after is not None and after > before
    personal = Personal(
        state if kept else _NOTHING,
        kept,
        steps,
        macro_auroc(scores, labels, min_cell),
        macro_auroc(own, labels, min_cell),
    )
    facts = json.dumps([kept, steps, personal.before, personal.after])
    write_atomic(file, personal.state.to_bytes({"plan": plan, "start": of, "facts": facts}))
    return personal


def personal_file(state: Path, plan: str) -> Path:
    """Return where a site keeps what it made of a plan's adapter, given its folder of state."""
    return state / f"personal-{plan[:16]}.safetensors"


def load_personal(file: Path, plan: str, start: str) -> Personal | None:
    """Return what is on disk if it was made under this plan of the adapter with the digest ``start``.

    A file that cannot be read is as good as none: what was in it can be made again.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata() or {}
        if (told.get("plan"), told.get("start")) != (plan, start):
            return None
        kept, steps, before, after = json.loads(told["facts"])
        return Personal(AdapterState.from_bytes(file.read_bytes()), kept, steps, before, after)
    except (SafetensorError, KeyError, ValueError):
        return None


def personal_scores(
    state: AdapterState,
    model: CxrModel,
    inputs: StudyInputs,
    start: AdapterState,
    site: str,
    indices: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return probabilities ``[studies, F]`` of what the site made of ``start``; of ``start``, if nothing."""
    if not state.tensors:
        model.load(start)
    elif model.config.personalise.method == "dual":
        model.load(start)
        dual = DualModel(model, site)
        dual.load(state)
        with dual.laid():
            return predict(dual, inputs.of(dual), indices)
    else:
        model.load(state)
    return predict(model, inputs, indices)


def gain_over_released(
    own: NDArray[Any],
    released: NDArray[Any],
    data: SiteData,
    indices: NDArray[np.int64],
    config: RunConfig,
    site: str,
    min_cell: int,
) -> Difference | None:
    """Return the paired difference in macro AUROC of two models' probabilities ``[studies, F]``.

    The resampled patients are those behind every other interval of this site.
    """
    patients = [str(patient) for patient in data.patients[indices]]
    macro, _ = compare_scores(
        own,
        released,
        data.labels[indices],
        patients,
        data.findings,
        replicates=config.evaluate.replicates,
        generator=numpy_generator(config.seed, "bootstrap", site),
        min_cell=min_cell,
    )
    return macro


def _train(
    model: CxrModel,
    data: SiteData,
    inputs: StudyInputs,
    start: AdapterState,
    site: str,
    class_weights: NDArray[np.float64] | None,
) -> tuple[AdapterState, int]:
    """Train on from ``start``; returns what the method makes of it, and the steps taken.

    ``ditto`` minimises F(v) + mu / 2 ||v - w||^2 with w the released adapter (Li et al. 2021, eq. 2).
    """
    own = model.config.personalise
    plan = _own_plan(model.config)
    if own.method == "dual":
        model.load(start)
        for parameter in model.parameters.values():
            parameter.requires_grad_(False)
        dual = DualModel(model, site)
        with dual.laid(), _under(dual, plan):
            first = dual.initial_state()
            result = train_round(dual, data, inputs.of(dual), first, 1, site, class_weights=class_weights)
        return result.state, result.steps
    mu = own.proximal_mu if own.method == "ditto" else 0.0
    with _under(model, plan):
        result = train_round(model, data, inputs.of_round(1), start, 1, site, mu, class_weights)
    return result.state, result.steps


def _own_plan(config: RunConfig) -> RunConfig:
    """Return the plan of a single round of a site's own: its epochs and learning rate, all of LoRA.

    ``private-head`` is a round of probing: it trains the head, and what joins the towers before it.
    Factors that take turns or stay frozen do so for the sake of an exact mean, which nobody takes here.
    """
    own = config.personalise
    train = config.train.model_copy(update={"epochs": own.epochs, "steps": 0})
    if own.lr:
        train = train.model_copy(update={"lr": own.lr, "head_lr": 0.0})
    probe = int(own.method == "private-head")
    return config.model_copy(
        update={
            "seed": derive(config.seed, "personalise"),
            "train": train,
            "rounds": config.rounds.model_copy(update={"count": 1, "probe": probe}),
            "pretrain": config.pretrain.model_copy(update={"rounds": 0}),
            "lora": config.lora.model_copy(update={"aggregation": "fedit"}),
        }
    )


@contextmanager
def _under(model: CxrModel, plan: RunConfig) -> Iterator[None]:
    """Let a model train by another plan than it was built for, until the block ends."""
    before, model.config = model.config, plan
    try:
        yield
    finally:
        model.config = before
