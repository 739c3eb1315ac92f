"""SiteData: everything a training loop needs from a site, from `site.toml` to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.data.assess import assess_site
from client.data.draw import draw_fraction, draw_shots
from client.data.split import SPLITS
from client.data.texts import read_texts
from client.data.unlabelled import Unlabelled, load_unlabelled
from client.site import SiteConfig
from common.errors import DataError
from common.sections import DataConfig, PretrainConfig


@dataclass(frozen=True)
class SiteData:
    """The images of a site, one row each, in the order of its table.

    Rows that cannot be used (unreadable, a duplicate, a view not asked for) stay in the arrays,
    without labels, and are in no split: read through `split`.
    """

    findings: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """``[n, S, S]``, read-only, mapped from disk; ``pixels[rows]`` copies just those rows."""
    labels: NDArray[np.float32]
    """``[n, F]``: 1 present, 0 absent, NaN not annotated."""
    patients: NDArray[np.str_]
    """Never leaves the site."""
    clinical: NDArray[np.float32]
    """``[n, V]``: the plan's clinical variables in the vocabulary's units; NaN missing."""
    split: Mapping[str, NDArray[np.int64]]
    """train, validation and test -> rows; no patient is in two."""
    owned: NDArray[np.bool_]
    """``[F]``: findings annotated on at least one training image."""
    texts: tuple[str, ...] = ()
    """Each row's report as the plan's redaction leaves it, '' where there is none; empty unless the plan
    reads text. Never leaves the site."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Reason -> images that cannot be used."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Filter -> rows that were not asked for."""
    pool: Unlabelled | None = None
    """What pretraining may use; None where the plan does not pretrain."""

    def labelled(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split on which at least one of the findings is annotated."""
        rows = self.split[split]
        return rows[~np.isnan(self.labels[rows]).all(axis=1)]

    def count_labels(self, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count the images of a split with each finding present, and absent: ``[F]``, ``[F]``."""
        labels = self.labels[self.split[split]]
        return (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)


def load_site_data(
    site: SiteConfig, plan: DataConfig, seed: int = 0, pretrain: PretrainConfig | None = None
) -> SiteData:
    """Read a site's table, decode its images (once), split its patients and draw what the plan asks.

    Where ``pretrain`` has rounds, the images that they may use come along.

    Raises:
        DataError: as `assess_site`, or if a draw leaves no label to train on.
    """
    assessed = assess_site(site, plan.findings, plan.clinical, plan.image_size, plan.fit)
    rows = assessed.cached
    table = assessed.table.take(rows)
    split = {name: np.flatnonzero(assessed.split[rows] == name) for name in SPLITS}
    labels = np.where((table.code == "")[:, None], table.labels, np.float32(np.nan))
    pool = None
    if pretrain is not None and pretrain.rounds:
        pool = load_unlabelled(site, plan, pretrain, assessed)
    if plan.fraction < 1:
        split["train"] = draw_fraction(table.patient, split["train"], plan.fraction, seed)
    if plan.shots:
        labels = draw_shots(table.patient, table.path, split["train"], labels, plan.shots, seed)
        split["train"] = split["train"][~np.isnan(labels[split["train"]]).all(axis=1)]
        if not len(split["train"]):
            raise DataError(
                f"no finding has {plan.shots} training patients with it and as many without",
                fix="lower data.shots, or leave this site out",
            )
    return SiteData(
        findings=table.findings,
        pixels=assessed.cache.pixels,
        labels=labels,
        patients=table.patient,
        clinical=table.clinical,
        split=split,
        owned=np.asarray((~np.isnan(labels[split["train"]])).any(axis=0)),
        quarantined=assessed.quarantined,
        removed=assessed.not_asked_for,
        texts=read_texts(site, table.path, plan.redaction) if plan.text else (),
        pool=pool,
    )
