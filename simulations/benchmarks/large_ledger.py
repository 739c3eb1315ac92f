"""Write the ledger of a long run of many sites that never took place, to see how fast it is read.

    python -m simulations.benchmarks.large_ledger OUT --rounds 500 --sites 50 --findings 14

The numbers are drawn so that they look like a run's: sites differ, learning slows down, an update
is rejected and a site is missing now and then.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.config import RunConfig
from common.findings import FINDINGS
from server.ledger import Ledger
from server.measures import Measure, from_record, of_validation
from server.plan import write_plan

_NAMES = ("north", "east", "south", "west", "harbour", "hill", "lake", "forest")
_USUAL = (
    "cardiomegaly", "effusion", "edema", "consolidation", "atelectasis", "pneumonia", "pneumothorax",
    "nodule", "mass", "infiltration", "emphysema", "fibrosis", "pleural_thickening", "hernia",
)  # fmt: skip
"""Those of the NIH data set, which most people have met."""
_BEGAN = 1_780_000_000.0
_BLOCKS = 12
_TRAINED = 592_515
_BASE = "b" * 64
_CODE = "c" * 64


@dataclass
class _Scene:
    """The run that is made up: its ledger, clock, dice, and how good each site is at what."""

    rounds: int
    sites: list[str]
    findings: list[str]
    dice: np.random.Generator
    now: float = _BEGAN
    level: dict[str, np.ndarray] = field(default_factory=dict)
    """Site -> ``[F]`` AUROC it ends at; NaN: a finding it does not annotate."""

    def validation(self, site: str, after: int) -> dict[str, float]:
        """A site's validation figures of the adapter after a round, as they come over the wire."""
        learnt = 1 - math.exp(-4 * after / self.rounds)
        noise = self.dice.normal(0, 0.012, len(self.findings))
        area = np.clip(0.52 + (self.level[site] - 0.52) * learnt + noise, 0.05, 0.99)
        flat: dict[str, float] = {"validation-auroc": round(float(np.nanmean(area)), 3)}
        for finding, value in self.annotated(site, area):
            flat[f"validation.{finding}.auroc"] = round(float(value), 3)
            flat[f"validation.{finding}.pr-auc"] = round(float(0.15 + 0.6 * (value - 0.5)), 3)
            flat[f"validation.{finding}.ece"] = round(float(0.03 + 0.2 * (1 - learnt) * value), 3)
        return flat

    def annotated(self, site: str, values: np.ndarray) -> list[tuple[str, float]]:
        """The findings a site annotates, each with its value of ``[F]``."""
        known = ~np.isnan(self.level[site])
        return [(f, float(v)) for f, v, k in zip(self.findings, values, known, strict=True) if k]


def write_large_ledger(folder: Path, rounds: int, sites: int, findings: int, seed: int = 0) -> Path:
    """Write ``plan.toml`` and ``ledger.sqlite`` of a finished run into ``folder``; returns the ledger."""
    dice = np.random.default_rng(seed)
    names = [_NAMES[k] if k < len(_NAMES) else f"site-{k:02d}" for k in range(sites)]
    known = [*_USUAL, *(finding for finding in FINDINGS if finding not in _USUAL)]
    scene = _Scene(rounds, sorted(names), known[:findings], dice)
    for place, site in enumerate(scene.sites):
        scene.level[site] = dice.normal(0.8, 0.05, findings).clip(0.55, 0.97)
        if place % 4 == 3 and findings > 1:
            scene.level[site][place % findings] = np.nan
    config = RunConfig.build(
        {"data": {"findings": tuple(scene.findings)}, "rounds": {"count": rounds, "sites": sites}}
    )
    digest = write_plan(config, _BASE, folder, _CODE)
    ledger = Ledger(folder / "ledger.sqlite", clock=lambda: scene.now)
    try:
        with ledger.together():
            _begin(ledger, scene, config, digest)
        for number in range(1, rounds + 1):
            with ledger.together():
                _round(ledger, scene, number)
        with ledger.together():
            _end(ledger, scene)
    finally:
        ledger.close()
    return folder / "ledger.sqlite"


def _begin(ledger: Ledger, scene: _Scene, config: RunConfig, digest: str) -> None:
    facts: dict[str, object] = {
        "config": config.to_flat(),
        "plan_digest": digest,
        "code_digest": _CODE,
        "base_digest": _BASE,
        "versions": {"fedcxr": "0.1.0", "torch": "2.13.0"},
        "trained_parameters": _TRAINED,
        "base_parameters": 21_000_000,
        "report": {"title": f"A run of {len(scene.sites)} sites that never took place", "notes": []},
        "local_steps": dict.fromkeys(scene.sites, 40),
    }
    for key, value in facts.items():
        ledger.put(key, value)
    ledger.event("plan", f"plan {digest[:12]}: lora on embedded", digest=digest, started=scene.now)
    for site in scene.sites:
        scene.now += 0.2
        counts = {"train-studies": int(scene.dice.integers(200, 9000)), "quarantined.E_IMAGE": 3}
        counts |= dict.fromkeys(("validation-studies", "test-studies"), counts["train-studies"] // 8)
        counts["patients"] = counts["train-studies"]
        owned = [finding for finding, _ in scene.annotated(site, scene.level[site])]
        ledger.put_site(site, {**counts, "findings": owned})
        text = f"{site}: {counts['train-studies']} training studies"
        ledger.event("enrolled", text, site=site, **counts)
    ledger.event("stage", f"each of {len(scene.sites)} sites trains alone, to compare with")
    for site in scene.sites:
        scene.now += 3.0
        ledger.event("local", f"{site} trained alone: 40 steps", site=site)


def _round(ledger: Ledger, scene: _Scene, number: int) -> None:
    dice, cohort = scene.dice, scene.sites
    began = scene.now
    ledger.event(
        "asked", f"Round {number}: asking {len(cohort)} sites", round=number, cohort=cohort, deadline=600.0
    )
    rejected: dict[str, str] = {}
    missing: list[str] = []
    several = len(cohort) > 1  # of one site alone somebody must return
    if several and number % 5 == 3:
        rejected = {cohort[number % len(cohort)]: "E_NORM"}
    if several and number % 7 == 4:
        missing = [cohort[(number + 1) % len(cohort)]]
    returned = [site for site in cohort if site not in rejected and site not in missing]
    seconds = {site: float(dice.uniform(4, 40)) for site in cohort if site not in missing}
    up = {site: int(dice.integers(2_370_000, 2_371_000)) for site in seconds}
    for site in sorted(seconds, key=seconds.__getitem__):
        scene.now = began + seconds[site]
        if site in rejected:
            reason = "the update is larger than strategy.max_update_norm (found 312, at most 100)"
            text = f"Round {number}: {site} left out, E_NORM: {reason}"
            ledger.event("rejected", text, round=number, site=site, code="E_NORM", reason=reason, up=up[site])
        else:
            text = f"Round {number}: {site} returned 2.4 MB, {800} studies"
            ledger.event("returned", text, round=number, site=site, up=up[site])
    rows = [
        row
        for site in returned
        for row in of_validation(site, number - 1, scene.validation(site, number - 1))
    ]
    record = _record(scene, number, cohort, returned, missing, rejected)
    record |= {"up": sum(up.values()), "down": 2_371_000 * len(cohort), "seconds": max(seconds.values())}
    record["validation_before"] = {r.site: r.value for r in rows if r.name == "auroc" and not r.finding}
    rows += from_record(record)
    for site in seconds:
        rows.append(Measure("seconds", "", site, number, round(seconds[site], 3)))
        rows.append(Measure("up", "", site, number, up[site]))
    rows += [Measure("down", "", site, number, 2_371_000) for site in cohort]
    cosines = np.clip(0.4 + 0.3 * dice.normal(size=len(returned)), -1, 1)
    rows += [Measure("cosine", "", s, number, float(c)) for s, c in zip(returned, cosines, strict=True)]
    rows.append(Measure("aggregate-norm", "", "", number, 1.5 / (1 + number / 40)))
    ledger.put_round(record, rows, _details(scene, number, returned))
    ledger.event("round", f"Round {number}: {len(returned)} of {len(cohort)} sites", round=number, **{
        key: value for key, value in record.items() if key != "round"
    })  # fmt: skip


def _record(
    scene: _Scene,
    number: int,
    cohort: list[str],
    returned: list[str],
    missing: list[str],
    rejected: dict[str, str],
) -> dict[str, Any]:
    decay = 1 / (1 + number / 40)
    return {
        "round": number,
        "cohort": cohort,
        "returned": returned,
        "missing": missing,
        "rejected": rejected,
        "payload": dict.fromkeys(returned, 4 * _TRAINED),
        "loss": {s: round(0.3 + 0.35 * decay + float(scene.dice.normal(0, 0.01)), 4) for s in returned},
        "steps": dict.fromkeys(returned, 40),
        "examples": {s: 400 + 97 * k for k, s in enumerate(returned)},
        "update_norm": {s: float(scene.dice.uniform(1, 3)) * decay for s in returned},
        "lora_error": 0.1 * decay,
        "status": "committed",
    }


def _details(scene: _Scene, number: int, returned: list[str]) -> dict[str, Any]:
    towards = scene.dice.normal(size=(len(returned), 8)) + 0.8
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    blocks = [*(f"blocks.{k}" for k in range(_BLOCKS)), "head"]
    drift = [(1 + k / 6) * math.sqrt(number) / 10 for k in range(len(blocks))]
    return {
        "pairs": {"sites": returned, "cosines": (towards @ towards.T).round(3).tolist()},
        "drift": {"blocks": blocks, "values": [round(value, 6) for value in drift]},
    }


def _end(ledger: Ledger, scene: _Scene) -> None:
    for site in scene.sites:
        ledger.put_evaluation("federated", "validation", site, _tested(scene, site, 0.0, False))
    ledger.event(
        "chosen", f"releasing the adapter of round {scene.rounds} (best-validation)", round=scene.rounds
    )
    arms = {"local": -0.03, "federated": 0.0, "calibrated": 0.0, "personalised": 0.005, "pooled": 0.02}
    for arm, gain in arms.items():
        for site in scene.sites:
            scene.now += 0.05
            tested = _tested(scene, site, gain, arm in ("federated", "calibrated"), arm == "calibrated")
            ledger.put_evaluation(arm, "test", site, tested)
        ledger.event("tested", f"{arm}: mean test AUROC over {len(scene.sites)} sites", arm=arm)
    for model in scene.sites:
        for site in scene.sites:
            if site != model:
                ledger.put_evaluation(f"local:{model}", "test", site, _tested(scene, site, -0.08, False))
    ledger.put("released", {"round": scene.rounds, "sha256": "a" * 64})
    ledger.event("released", f"adapter {'a' * 12} written to release/", sha256="a" * 64)
    ledger.event("finished", "run finished")


def _tested(scene: _Scene, site: str, gain: float, bins: bool, sound: bool = False) -> dict[str, Any]:
    area = np.clip(scene.level[site] + gain + scene.dice.normal(0, 0.01, len(scene.findings)), 0.05, 0.99)
    macro = float(np.nanmean(area))
    flat: dict[str, Any] = {
        "studies": 400,
        "macro-auroc": round(macro, 3),
        "macro-interval": [round(macro - 0.02, 3), round(macro + 0.02, 3)],
        "macro-se": 0.0102,
    }
    if gain >= 0:
        middle = float(scene.dice.normal(0.02, 0.025))
        flat["gain.macro"] = [round(middle, 3), round(middle - 0.02, 3), round(middle + 0.02, 3)]
        flat["gain-se.macro"] = 0.0102
    for finding, value in scene.annotated(site, area):
        positives = int(scene.dice.integers(30, 120))
        flat |= {
            f"{finding}.positives": positives,
            f"{finding}.negatives": 400 - positives,
            f"{finding}.auroc": round(float(value), 3),
            f"{finding}.interval": [round(float(value) - 0.04, 3), round(min(1.0, float(value) + 0.04), 3)],
            f"{finding}.pr-auc": round(float(0.15 + 0.6 * (value - 0.5)), 3),
            f"{finding}.prevalence": round(positives / 400, 3),
            f"{finding}.ece": 0.02 if sound else 0.11,
            f"{finding}.brier": 0.12,
        }
        if bins:
            flat |= _bins(finding, sound)
    return flat


def _bins(finding: str, sound: bool) -> dict[str, Any]:
    means = [0.05, 0.15, 0.25, 0.45, 0.7]
    shares = [mean if sound else mean**1.6 for mean in means]
    studies = [150, 100, 70, 50, 30]
    return {
        f"{finding}.bins-studies": studies,
        f"{finding}.bins-positives": [max(1, round(s * n)) for s, n in zip(shares, studies, strict=True)],
        f"{finding}.bins-mean": means,
    }


def main() -> None:
    """Write one from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--findings", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_large_ledger(given.out, given.rounds, given.sites, given.findings, given.seed)


if __name__ == "__main__":
    main()
