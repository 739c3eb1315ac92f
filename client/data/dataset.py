"""SiteData: everything a training loop needs from a site, from `site.toml` to arrays."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.data.pixel_cache import PixelCache
from client.data.split import SPLITS, split_by_patient
from client.data.table import StudyTable, is_view, read_studies
from client.data.transforms import Fit
from client.site import SiteConfig
from common.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteData:
    """The images of a site, one row each, in the order of its table.

    Rows that cannot be used (unreadable, or of a view not asked for) stay in the arrays, black
    and without labels, and are in no split: read through `split`.
    """

    findings: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """``[n, S, S]``, read-only, mapped from disk; ``pixels[rows]`` copies just those rows."""
    labels: NDArray[np.float32]
    """``[n, F]``: 1 present, 0 absent, NaN not annotated."""
    patients: NDArray[np.str_]
    """Never leaves the site."""
    view: NDArray[np.str_]
    age: NDArray[np.float32]
    sex: NDArray[np.str_]
    split: Mapping[str, NDArray[np.int64]]
    """train, validation and test -> rows; no patient is in two."""
    owned: NDArray[np.bool_]
    """``[F]``: findings annotated on at least one training image."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Reason -> images that cannot be used."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Filter -> rows that were not asked for."""

    def labelled(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split on which at least one of the findings is annotated."""
        rows = self.split[split]
        return rows[~np.isnan(self.labels[rows]).all(axis=1)]

    def count_labels(self, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count the images of a split with each finding present, and absent: ``[F]``, ``[F]``."""
        labels = self.labels[self.split[split]]
        return (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)


def load_site_data(site: SiteConfig, findings: Sequence[str], image_size: int, fit: Fit = "crop") -> SiteData:
    """Read a site's table, decode its images (once) and split its patients.

    The split depends on the site's patients, its own labels and ``data.split_seed``: not on the
    findings asked for, nor on which images could be read.

    Raises:
        DataError: if more than ``data.max_quarantined`` of the images cannot be used, or none
            can; counted by reason. TableError, LabelError and SplitError as `read_studies`.
    """
    table = read_studies(site, findings)
    cache = PixelCache.open(site.data.cache, list(table.path), site.data.root, image_size, fit)
    quarantined = Counter(table.quarantined) + Counter(reason for reason in cache.reasons if reason)
    _check_share(quarantined, len(table) + sum(table.quarantined.values()), site.data.max_quarantined)
    view = np.where(table.view == "", cache.views, table.view).astype(np.str_)
    # An unreadable image without a view in the table keeps its place in the split.
    wanted = (is_view(view, site.data.views) | ~cache.ok) if site.data.views else np.ones(len(table), bool)
    removed = dict(table.removed)
    if not wanted.all():
        removed["views"] = removed.get("views", 0) + int((~wanted).sum())
    usable = wanted & cache.ok
    if not usable.any():
        raise DataError("no image of the site is of the views asked for", fix="see data.views in site.toml")
    split = _splits(table, wanted, usable, site)
    labels = np.where(usable[:, None], table.labels, np.float32(np.nan))
    _log.info(
        "%s: %s images, %d quarantined",
        site.name,
        {k: len(v) for k, v in split.items()},
        quarantined.total(),
    )
    return SiteData(
        findings=table.findings,
        pixels=cache.pixels,
        labels=labels,
        patients=table.patient,
        view=view,
        age=table.age,
        sex=table.sex,
        split=split,
        owned=np.asarray((~np.isnan(labels[split["train"]])).any(axis=0)),
        quarantined=dict(quarantined),
        removed=removed,
    )


def _splits(
    table: StudyTable, wanted: NDArray[np.bool_], usable: NDArray[np.bool_], site: SiteConfig
) -> dict[str, NDArray[np.int64]]:
    if table.split is None:
        split = np.full(len(table), "", dtype="U10")
        split[wanted] = split_by_patient(
            table.patient[wanted], site.data.split, site.data.split_seed, table.strata[wanted]
        )
    else:
        split = table.split
    return {name: np.flatnonzero((split == name) & usable) for name in SPLITS}


def _check_share(quarantined: Mapping[str, int], total: int, allowed: float) -> None:
    count = sum(quarantined.values())
    if count and (count > allowed * total or count == total):
        raise DataError(
            f"{count} of {total} images cannot be used, more than data.max_quarantined = {allowed:g} allows",
            found=", ".join(f"{reason}: {n}" for reason, n in sorted(quarantined.items())),
            fix="mend these files, or raise data.max_quarantined in site.toml",
        )
