"""A realistic report: four simulated sites, three arms, twelve rounds, one rejection, one loser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from common.metrics import compare_scores, evaluate_scores
from server.report_arms import build_arm, build_comparison, find_worse
from server.report_schema import (
    BaselineResult,
    BytesPart,
    ModelPart,
    PetPart,
    Report,
    RoundPart,
    SitePart,
)

SITES = {"north": 520, "east": 340, "south": 410, "west": 150}
FINDINGS = {
    "atelectasis": 0.20,
    "cardiomegaly": 0.16,
    "consolidation": 0.09,
    "edema": 0.11,
    "effusion": 0.24,
    "nodule": 0.07,
    "pneumothorax": 0.05,
    "hernia": 0.004,
}
EASE = dict(zip(FINDINGS, (0.7, 1.3, 0.9, 1.4, 1.6, 0.3, 1.1, 1.0), strict=True))
GAIN = {"north": 0.16, "east": 0.5, "south": -0.24, "west": 0.75}
NOT_ANNOTATED = {"east": {"nodule"}, "west": {"edema", "hernia"}}
ROUNDS = 12


def scores(labels, strength, noise):
    """Probabilities of a model that lifts present findings by ``strength`` per finding."""
    logits = np.array(list(EASE.values())) * strength * labels + noise
    return expit(logits - 2.2).astype(np.float32)


def measured(seed=7):
    """Per arm and site `SiteMetrics`, paired differences, and a thumbnail baseline."""
    generator = np.random.default_rng(seed)
    arms, macro, findings, thumbnail = {"local": {}, "federated": {}, "pooled": {}}, {}, {}, {}
    for site, n in SITES.items():
        labels = (generator.random((n, len(FINDINGS))) < list(FINDINGS.values())).astype(float)
        patients = [f"{site}-{i // 2}" for i in range(n)]
        noise, other = generator.normal(size=(2, *labels.shape))
        models = {
            "local": scores(labels, 0.9, noise),
            "federated": scores(labels, 0.9 + GAIN[site], 0.8 * noise + 0.6 * other),
            "pooled": scores(labels, 1.1 + max(GAIN[site], 0.2), 0.9 * noise + 0.43 * other),
        }
        small = scores(labels, 0.35, other)
        for j, finding in enumerate(FINDINGS):
            if finding in NOT_ANNOTATED.get(site, ()):
                labels[:, j] = np.nan
        options = {"generator": generator, "min_cell": 5}
        for arm, probabilities in models.items():
            arms[arm][site] = evaluate_scores(probabilities, labels, patients, FINDINGS, **options)
        macro[site], findings[site] = compare_scores(
            models["federated"], models["local"], labels, patients, FINDINGS,
            replicates=200, **options,
        )  # fmt: skip
        baseline = evaluate_scores(small, labels, patients, FINDINGS, **options).findings
        thumbnail[site] = {
            finding: BaselineResult(
                auroc=m.auroc, interval=m.interval, positives=m.positives, negatives=m.negatives
            )
            for finding, m in baseline.items()
        }
    return arms, macro, findings, thumbnail


def training_rounds(sites=tuple(SITES), rounds=ROUNDS):
    """Rounds that learn, with a rejection in round 5, a late site in 8 and an abandoned round 9."""
    generator = np.random.default_rng(3)
    parts = []
    for number in range(1, rounds + 1):
        rejected = {"south": "E_NORM"} if number == 5 and "south" in sites else {}
        missing = ("west",) if number == 8 and "west" in sites else ()
        status = "committed"
        if number == 9 and len(sites) > 1:
            rejected, missing, status = {}, tuple(sites[1:]), "abandoned"
        returned = tuple(s for s in sites if s not in rejected and s not in missing)
        level = {site: 0.68 + 0.02 * (i % 5) for i, site in enumerate(sites)}
        parts.append(
            RoundPart(
                round=number, status=status, cohort=sites, returned=returned, missing=missing,
                rejected=rejected, lora_error=0.012 + 0.03 * np.exp(-number / 3),
                loss={s: 0.28 + 0.3 * np.exp(-number / 4) + 0.01 * generator.normal()
                      for s in returned},
                validation_auroc={
                    s: level[s] + 0.12 * (1 - np.exp(-number / 4)) + 0.006 * generator.normal()
                    for s in returned
                },
                seconds=41.0 + 3 * generator.random(),
                up=1_190_000 * len(returned), down=1_190_000 * len(sites),
            )
        )  # fmt: skip
    return tuple(parts)


def build_report(**changes):
    """The sample report, with any top-level field replaced."""
    arms, macro, findings, thumbnail = measured()
    steps = dict.fromkeys(SITES, 480)
    local = build_arm("Each site alone, no exchange", steps, arms["local"])
    federated = build_arm("Adapters averaged every 40 local steps", steps, arms["federated"])
    pooled = build_arm("All studies in one place (simulation only)", {}, arms["pooled"])
    rounds = training_rounds()
    parts = {
        "title": "Eight findings at four sites, LoRA rank 8",
        "created": "2026-03-02T14:05:00+00:00",
        "plan_digest": "3f9a" * 16,
        "code_digest": "b07c" * 16,
        "base_digest": "91de" * 16,
        "versions": {"fedcxr": "0.1.0", "torch": "2.9.1", "flwr": "1.41.0", "timm": "1.0.22"},
        "model": ModelPart(backbone="vit_small_patch16_224", image_size=224, parameters=21_700_000),
        "pet": PetPart(
            method="lora", trained_parameters=297_992, trained_share=297_992 / 21_700_000,
            aggregation="fedit",
        ),
        "bytes": BytesPart(
            up=sum(r.up for r in rounds), down=sum(r.down for r in rounds),
            up_per_site_round=1_196_800, payload_per_site_round=1_191_968, images=9_400_000_000,
        ),
        "rounds": rounds,
        "sites": {
            site: SitePart(
                train_studies=4 * n, validation_studies=n // 2, test_studies=n, patients=3 * n,
                findings=tuple(f for f in FINDINGS if f not in NOT_ANNOTATED.get(site, ())),
                quarantined={"E_IMAGE": 3} if site == "east" else {},
            )
            for site, n in SITES.items()
        },
        "arms": {"pooled": pooled, "federated": federated, "local": local},
        "comparison": build_comparison(macro),
        "worse_sites": find_worse(local, federated, macro, findings),
        "thumbnail_baseline": thumbnail,
        "adapter_sha256": "5ad0" * 16,
        "notes": ("Simulated sites: scores here say nothing about any published benchmark.",),
    }  # fmt: skip
    return Report(**{**parts, **changes})


@pytest.fixture(scope="session")
def report():
    return build_report()


@pytest.fixture(scope="session")
def make_report():
    return build_report
