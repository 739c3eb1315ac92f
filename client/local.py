"""A site's own baseline: the same training, rounds and selection, without any other site."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from client.data.dataset import SiteData
from client.evaluate import macro_auroc, predict
from client.prefix_cache import StudyInputs
from client.pretrain.rounds import pretrain_round
from client.train import trained_by
from common.adapter import AdapterState
from common.files import write_atomic
from common.model.build import CxrModel
from common.pace import Pace, is_over, keep_pace


@dataclass(frozen=True)
class Baseline:
    """The adapter a site reaches alone."""

    state: AdapterState
    steps: int
    rounds_kept: int
    """Rounds of training in the adapter that was kept."""


def train_local(
    model: CxrModel,
    data: SiteData,
    inputs: StudyInputs,
    site: str,
    file: Path,
    plan: str,
    pretext: Path,
    class_weights: NDArray[np.float64] | None = None,
) -> Baseline:
    """Train alone for as many rounds, epochs and steps as in the federation, and keep the result.

    Where the plan pretrains and the site can, it pretrains alone too; ``pretext`` is where what
    pretraining throws away lies meanwhile. The learning rate and the end follow the site's own validation
    as they follow that of all sites in the federation.

    With ``rounds.select = "best-validation"`` the best round on the site's validation studies is
    kept, as the federation does. A baseline of the same plan found on disk is used as it is.
    """
    if (known := load_local(file, plan)) is not None:
        return known
    config, indices = model.config, data.split["validation"]
    state, steps, pace, before = model.initial_state(), 0, Pace(), config.pretrain.rounds
    best: tuple[float, AdapterState, int] | None = None
    for round_number in range(1, before + 1) if data.pool else ():
        result = pretrain_round(model, data, state, round_number, site, pretext)
        state, steps = result.state, steps + result.steps
    round_number = before
    while round_number < config.last_round and not is_over(pace, config):
        round_number += 1
        result = trained_by.get()(
            model,
            data,
            inputs.of_round(round_number),
            state,
            round_number,
            site,
            class_weights=class_weights,
            learning_rate=pace.learning_rate,
        )
        state, steps = result.state, steps + result.steps
        model.load(state)
        scores = predict(model, inputs.of_round(round_number), indices)
        score = macro_auroc(scores, data.labels[indices])
        if score is not None and (best is None or score > best[0]):
            best = (score, state, round_number - before)
        pace = keep_pace(pace, config, round_number + 1, {} if score is None else {site: score})
    kept = Baseline(state, steps, round_number - before)
    if best and config.rounds.select == "best-validation":
        kept = Baseline(best[1], steps, best[2])
    facts = {"plan": plan, "facts": json.dumps([kept.steps, kept.rounds_kept])}
    write_atomic(file, kept.state.to_bytes(facts))
    return kept


def baseline_file(state: Path, plan: str) -> Path:
    """Return where a site keeps its baseline of a plan, given its folder of state."""
    return state / f"local-{plan[:16]}.safetensors"


def load_local(file: Path, plan: str) -> Baseline | None:
    """Return the baseline on disk if it is this plan's."""
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        facts = opened.metadata() or {}
    if facts.get("plan") != plan:
        return None
    steps, rounds_kept = json.loads(facts["facts"])
    return Baseline(AdapterState.from_bytes(file.read_bytes()), steps, rounds_kept)
