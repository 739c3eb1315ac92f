"""Turn a run's ledger into its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.errors import RunError
from common.metrics.summary import Difference, SiteMetrics
from common.protocol import (
    FEDERATED,
    LOCAL,
    OWN_BIAS,
    OWN_MODEL,
    PERSONALISED,
    RELEASED,
    SAME_RANKING,
    TEMPERATURE,
    WITHOUT,
    metrics_from_wire,
)
from server.facts.aggregation import aggregation
from server.facts.records import Aggregation
from server.facts.view import LedgerView
from server.ledger import Ledger
from server.report_arms import build_arm, build_comparison, build_left_out, build_matrix, find_worse
from server.report_facts import aggregation_part
from server.report_further import PAIRS
from server.report_held_out import ALL_BUT, HELD_OUT
from server.report_personal import PERSONAL, personal_part
from server.report_pooled import pooled_part
from server.report_schema import (
    Arm,
    BytesPart,
    Comparison,
    Loss,
    ModelPart,
    PetPart,
    Report,
    RoundPart,
    SitePart,
)
from server.report_text import text_part
from server.report_worse import MACRO, find_losses

Gains = Mapping[str, Mapping[str, Mapping[str, Difference]]]
"""Arm -> site -> paired differences: over the local model by finding or ``macro``, and ``released``."""

DESCRIPTIONS = {
    "local": "Each site trained alone on its own studies, with the same rounds, epochs and steps.",
    "federated": "All sites trained one adapter together; images stayed where they were.",
    "calibrated": "The federated model, each finding's probabilities scaled by what all sites' validation "
    "studies say; its ranking, hence AUROC, is the same.",
    TEMPERATURE: "The federated model, all logits divided by one temperature fitted on all sites' validation "
    "studies.",
    OWN_BIAS: "The calibrated model with each site's own bias on top, fitted on its own validation studies.",
    PERSONALISED: "What each site made of the federated model, where its own validation studies preferred "
    "that; else the federated model.",
    WITHOUT["text"]: "The federated model, which gets no report: the learnt stand-in is read instead.",
    WITHOUT["image"]: "The federated model, which gets no image: the learnt stand-in is seen instead.",
    HELD_OUT: "At each site, the model that all the others trained without it, in a federation of their own.",
}


def summarise(folder: Path) -> Report:
    """Read ``folder/ledger.sqlite`` and lay its facts out as a report.

    Raises:
        RunError: if the folder holds no run, or a run that has not reached its first round.
    """
    if not (folder / "ledger.sqlite").is_file():
        raise RunError(f"{folder} holds no run", fix="name the folder given to --out")
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        config, rounds = RunConfig.from_flat(ledger.get("config") or {}), ledger.rounds()
        if not rounds:
            raise RunError(f"{folder} holds no committed round yet")
        told = ledger.get("report") or {}
        results, gains = _results(ledger, config)
        arms = _arms(results, rounds, ledger.get("local_steps") or {}, folder / "arms")
        personal = ledger.get(PERSONAL)
        if PERSONALISED in arms:
            arms[PERSONALISED] = _with_own_steps(arms[PERSONALISED], personal)
        over_local = gains.get(FEDERATED, {})
        macro = {site: g.get(MACRO) for site, g in over_local.items()}
        findings = {
            site: {name: gap for name, gap in g.items() if name != MACRO} for site, g in over_local.items()
        }
        compared = "local" in arms and "federated" in arms
        worse = find_worse(arms["local"], arms["federated"], macro, findings) if compared else ()
        further, losses = _further(arms, gains)
        trained = ledger.get("trained_parameters")
        total = ledger.get("base_parameters") + trained
        released = ledger.get("released") or {}
        return Report(
            title=told.get("title", "A federated run"),
            created=datetime.now(UTC),
            plan_digest=ledger.get("plan_digest"),
            code_digest=ledger.get("code_digest"),
            base_digest=ledger.get("base_digest"),
            versions=ledger.get("versions"),
            model=ModelPart(
                backbone=config.model.backbone,
                image_size=config.data.image_size,
                parameters=total,
            ),
            pet=PetPart(
                method=config.pet.method,
                trained_parameters=trained,
                trained_share=trained / total,
                aggregation=_aggregation(config),
            ),
            bytes=_bytes(rounds, told.get("images")),
            rounds=_rounds(rounds, ledger),
            sites={name: _site(facts) for name, facts in ledger.sites().items()},
            arms=arms,
            comparison=build_comparison(macro) if compared else None,
            worse_sites=worse,
            thumbnail_baseline=told.get("thumbnail"),
            adapter_sha256=released.get("sha256"),
            notes=tuple(told.get("notes", ())),
            matrix=build_matrix(results),
            aggregation=aggregation_part(_last_mean(folder)),
            further=further,
            losses=losses,
            personal=personal_part(personal),
            pooled=pooled_part(results, config.data.findings),
            text=text_part(config, told.get("text_probe")),
            left_out=build_left_out(results),
        )
    finally:
        ledger.close()


def _last_mean(folder: Path) -> Aggregation | None:
    view = LedgerView(folder / "ledger.sqlite")
    try:
        return aggregation(view)
    finally:
        view.close()


def _aggregation(config: RunConfig) -> str:
    if config.pet.method == "lora":
        return f"{config.strategy.name}, {config.lora.aggregation}"
    return config.strategy.name


def _results(ledger: Ledger, config: RunConfig) -> tuple[dict[str, dict[str, SiteMetrics]], Gains]:
    """Arm -> site -> metrics, and arm -> site -> its paired differences."""
    results: dict[str, dict[str, SiteMetrics]] = {}
    gains: dict[str, dict[str, dict[str, Difference]]] = {}
    for arm, sites in ledger.evaluations("test").items():
        for site, flat in sites.items():
            metrics, gain = metrics_from_wire(flat, config.data.findings)
            results.setdefault(arm, {})[site] = metrics
            gains.setdefault(arm, {})[site] = gain
    return results, gains


def _further(arms: Mapping[str, Arm], gains: Gains) -> tuple[tuple[Comparison, ...], tuple[Loss, ...]]:
    """Compare what was personalised, and what was left out, with what a site has without that."""
    comparisons: list[Comparison] = []
    losses: list[Loss] = []
    for candidate, reference in PAIRS:
        if candidate not in arms or reference not in arms:
            continue
        told = gains.get(candidate, {}).items()
        at: dict[str, dict[str, Difference]] = {
            site: {name: gap for name, gap in of.items() if name != RELEASED} for site, of in told
        }
        if reference != LOCAL:
            at = {site: {MACRO: of[RELEASED]} for site, of in told if RELEASED in of}
        against = build_comparison({site: of.get(MACRO) for site, of in at.items()}, candidate, reference)
        if against is not None:
            comparisons.append(against)
            losses += find_losses(arms, candidate, reference, at)
    return tuple(comparisons), tuple(losses)


def _with_own_steps(arm: Arm, personal: Mapping[str, Any] | None) -> Arm:
    """Add the steps each site took for itself to those it took with all."""
    own = {site: of["steps"] for site, of in (personal or {"sites": {}})["sites"].items()}
    steps = {site: arm.local_steps.get(site, 0) + taken for site, taken in own.items()}
    return arm.model_copy(update={"local_steps": {**arm.local_steps, **steps}})


def _arms(
    results: Mapping[str, Mapping[str, SiteMetrics]],
    rounds: Sequence[Mapping[str, Any]],
    local_steps: Mapping[str, int],
    folder: Path,
) -> dict[str, Arm]:
    federated: dict[str, int] = {}
    for record in rounds:
        for site, steps in record["steps"].items():
            federated[site] = federated.get(site, 0) + int(steps)
    arms: dict[str, Arm] = {}
    for name, sites in results.items():
        if name.startswith((OWN_MODEL, ALL_BUT)):
            continue
        description, steps = DESCRIPTIONS.get(name, ""), {}
        if name == "local":
            steps = dict(local_steps)
        elif name in (FEDERATED, PERSONALISED, *SAME_RANKING):
            steps = federated
        elif (facts := folder / f"{name}.json").is_file():
            told = json.loads(facts.read_text())
            description, steps = told["description"], told["local_steps"]
        arms[name] = build_arm(description, steps, sites)
    return arms


def _bytes(rounds: Sequence[Mapping[str, Any]], images: int | None) -> BytesPart:
    replies = sum(len(r["returned"]) + len(r["rejected"]) for r in rounds)
    payloads = [size for r in rounds for size in r["payload"].values()]
    up = sum(r["up"] for r in rounds)
    return BytesPart(
        up=up,
        down=sum(r["down"] for r in rounds),
        up_per_site_round=round(up / replies) if replies else 0,
        payload_per_site_round=round(sum(payloads) / len(payloads)) if payloads else 0,
        images=images,
    )


def _rounds(rounds: Sequence[Mapping[str, Any]], ledger: Ledger) -> tuple[RoundPart, ...]:
    """Sites report the validation AUROC of the adapter they receive: round r's comes with r + 1."""
    final = {
        site: flat.get("macro-auroc")
        for site, flat in ledger.evaluations("validation").get("federated", {}).items()
    }
    after = [r["validation_before"] for r in rounds[1:]] + [final]
    return tuple(
        RoundPart(
            round=r["round"],
            status=r["status"],
            cohort=tuple(r["cohort"]),
            returned=tuple(r["returned"]),
            missing=tuple(r["missing"]),
            rejected=r["rejected"],
            lora_error=r["lora_error"],
            loss=r["loss"],
            validation_auroc=scores,
            seconds=r["seconds"],
            up=r["up"],
            down=r["down"],
        )
        for r, scores in zip(rounds, after, strict=True)
    )


def _site(facts: Mapping[str, Any]) -> SitePart:
    return SitePart(
        train_studies=facts["train-studies"],
        validation_studies=facts["validation-studies"],
        test_studies=facts["test-studies"],
        patients=facts["patients"],
        findings=tuple(facts["findings"]),
        quarantined={
            key.removeprefix("quarantined."): value
            for key, value in facts.items()
            if key.startswith("quarantined.")
        },
    )
