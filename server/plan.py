"""A run's stages: enrol, local baselines, rounds, calibration, personalisation, evaluation, release."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w
from flwr.serverapp import Grid

from common.code import code_digest
from common.config import RunConfig
from common.errors import CheckpointError
from common.files import write_atomic
from common.model.build import CxrModel
from common.overrides import read_toml
from common.phase import phase_of, trained_count
from server.calibration_stage import calibration_stage, keep_calibration
from server.checkpoint import Checkpoint, committed
from server.class_weights import class_weights
from server.disk import with_room
from server.evaluation_stage import evaluate_arm, evaluation_stage
from server.federation import Federation
from server.ledger import Ledger
from server.line import Line
from server.local_models import local_stage
from server.personalise_stage import personalise_stage
from server.plan_model import model_of
from server.release import write_release
from server.rounds import train_rounds

PACKAGES = ("fedcxr", "flwr", "numpy", "peft", "timm", "torch", "transformers")


def run_plan(
    grid: Grid,
    config: RunConfig,
    folder: Path,
    reach: Callable[[Grid, Ledger], Line] = lambda grid, ledger: Line(grid),
    patience: float = 0.0,
) -> None:
    """Carry out a run in ``folder``, from wherever it was left.

    Writes plan.toml, ledger.sqlite, checkpoints/ and release/, and locals/ where ``evaluate.matrix``
    is on. Every model found in ``folder/arms/NAME.safetensors`` is measured at every site too.
    ``reach`` makes the line to the sites; ``patience`` is how many seconds a write waits for room on a
    full disk.

    Raises:
        FedcxrError: as `server.plan_model.model_of`.
        CheckpointError: if the folder was started with another plan.
        QuorumError: if too few sites take part.
        RunError: if there is no room on the disk, or the line to the sites is dead.
    """
    model = model_of(config)
    plan_digest = with_room(lambda: write_plan(config, model.base_digest, folder), "the plan", patience)
    ledger = Ledger(folder / "ledger.sqlite", patience)
    try:
        _describe(ledger, config, model, plan_digest)
        line = reach(grid, ledger)
        federation = Federation(line, config, plan_digest, model.base_digest, model.schema, ledger)
        federation.committed = len(committed(folder / "checkpoints"))
        federation.enrol()
        federation.class_weights = class_weights(federation)
        initial = model.initial_state()
        if config.evaluate.local:
            local_stage(federation, initial, folder)
        rounds = train_rounds(federation, initial, folder / "checkpoints")
        if config.evaluate.local and not line.steady:
            local_stage(federation, initial, folder)  # for sites that joined since
        final = evaluate_arm(federation, "federated", rounds[-1].state, "validation")
        chosen = choose_round(config, rounds, final, _validation_studies(federation))
        text = f"releasing the adapter of round {chosen.round} ({config.rounds.select})"
        ledger.event("chosen", text, round=chosen.round)
        scaling = None
        if config.evaluate.calibrate == "platt":
            scaling = calibration_stage(federation, chosen.state)
        if config.personalise.method != "none":
            personalise_stage(federation, chosen.state)
        evaluation_stage(federation, chosen.state, folder, scaling)
        digest = with_room(
            lambda: write_release(model, chosen.state, folder / "release", plan_digest),
            "the release",
            patience,
        )
        if scaling is not None:
            keep_calibration(federation, scaling, digest, folder)
        ledger.put("released", {"round": chosen.round, "sha256": digest})
        ledger.event("released", f"adapter {digest[:12]} written to release/", sha256=digest)
        ledger.event("finished", "run finished")
    finally:
        ledger.close()


def _validation_studies(federation: Federation) -> dict[str, int]:
    """Site -> validation studies, of every site that ever took part in the run."""
    earlier = {name: int(facts["validation-studies"]) for name, facts in federation.ledger.sites().items()}
    return earlier | {site.name: site.validation_studies for site in federation.sites.values()}


def write_plan(config: RunConfig, base_digest: str, folder: Path, code: str | None = None) -> str:
    """Write ``plan.toml``: every resolved value, digests, versions. Returns the plan's digest.

    ``code`` is the digest of the code that will run; None: the code that is running.

    Raises:
        CheckpointError: if the folder holds another plan, naming the first value that differs.
    """
    code = code or code_digest()
    digest = config.plan_digest(base_digest, code)
    file = folder / "plan.toml"
    if file.is_file():
        _same_plan(read_toml(file), config, digest)
    plan = {
        "digests": {"plan": digest, "base": base_digest, "code": code},
        "versions": versions(),
        "config": config.to_flat(),
    }
    write_atomic(file, tomli_w.dumps(plan).encode())
    return digest


def _same_plan(found: Mapping[str, Any], config: RunConfig, digest: str) -> None:
    if found["digests"]["plan"] == digest:
        return
    mine, theirs = config.to_flat(), found["config"]
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    what = f"{differing[0]} = {theirs.get(differing[0])!r}" if differing else "other code or base"
    wanted = f", now {mine[differing[0]]!r}" if differing else ""
    raise CheckpointError(
        "this folder holds a run of another plan",
        found=what + wanted,
        fix="use another --out folder, or the settings and code it was started with",
    )


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _describe(ledger: Ledger, config: RunConfig, model: CxrModel, plan_digest: str) -> None:
    ledger.put("config", config.to_flat())
    ledger.put("plan_digest", plan_digest)
    ledger.put("code_digest", code_digest())
    ledger.put("base_digest", model.base_digest)
    ledger.put("versions", versions())
    trained = trained_count(model.schema, config)
    ledger.put("trained_parameters", trained)
    ledger.put("base_parameters", model.base_numel - _trained_of_base(model))
    text = f"plan {plan_digest[:12]}: {config.pet.method} on {config.model.backbone}"
    ledger.event("plan", text, digest=plan_digest, started=time.time())


def _trained_of_base(model: CxrModel) -> int:
    """Parameters of the base that the method itself trains (bitfit, norm, full)."""
    return sum(p.numel() for n, p in model.parameters.items() if n in model.base_names)


def choose_round(
    config: RunConfig,
    rounds: list[Checkpoint],
    final: Mapping[str, Mapping[str, Any]],
    studies: Mapping[str, int],
) -> Checkpoint:
    """Return the round whose adapter is released.

    ``best-validation`` takes the round with the highest mean validation AUROC, each site weighted
    by its validation ``studies`` (a site with a handful would decide by chance), the earlier one
    on a tie; an abandoned round brought no adapter of its own. Sites report the adapter they
    *received*, so round r's figure arrives in round r + 1; the last round's is ``final``.
    """
    figures = [dict(r.record["validation_before"]) for r in rounds[1:]]
    figures.append({s: m["macro-auroc"] for s, m in final.items() if "macro-auroc" in m})
    scored = [
        (_weighted(scores, studies), checkpoint)
        for scores, checkpoint in zip(figures, rounds, strict=True)
        if checkpoint.record["status"] == "committed"
        and phase_of(config, checkpoint.round).kind != "pretrain"
    ]
    best, chosen = max(scored, key=lambda pair: pair[0])
    return rounds[-1] if config.rounds.select == "last" or best < 0 else chosen


def _weighted(scores: Mapping[str, float], studies: Mapping[str, int]) -> float:
    """Mean of the sites' scores by their studies; -1 where there is none."""
    total = sum(studies[site] for site in scores)
    return sum(studies[site] * score for site, score in scores.items()) / total if total else -1.0
