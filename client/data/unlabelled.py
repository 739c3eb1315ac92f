"""What pretraining may use of a site: images without labels, and their reports where the task reads them.

They are every image of the training patients, annotated or not, drawn by ``data.fraction`` or not; or,
where site.toml has ``[unlabelled]``, the images named there. Neither a patient nor a file of the validation
and test studies is ever among them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.assess import Assessed, assess_site
from client.data.texts import read_texts
from client.site import SiteConfig, UnlabelledConfig
from common.sections import DataConfig, PretrainConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images of a site for pretraining; patient data, stays here."""

    pixels: NDArray[np.uint8]
    """``[n, S, S]``, read-only, mapped from disk."""
    rows: NDArray[np.int64]
    """Rows of ``pixels`` that may be used."""
    texts: tuple[str, ...]
    """Of each of ``rows`` its report, redacted; empty where the task reads none."""
    paths: NDArray[np.str_]
    """Of each of ``rows`` its file, relative to ``root``."""
    root: Path

    def __len__(self) -> int:
        return len(self.rows)


def load_unlabelled(
    site: SiteConfig, plan: DataConfig, pretrain: PretrainConfig, own: Assessed
) -> Unlabelled:
    """Choose the images; ``own`` is what the site's labelled table was found to be.

    Where the task reads reports, an image without one is left out. A site may end up with none: it then
    takes part in everything but pretraining.

    Raises:
        DataError: if ``[unlabelled]`` cannot be read, or too much of it is of no use; as `assess_site`.
    """
    if site.unlabelled is None:
        place, chosen = site, own
        rows = np.flatnonzero(own.split[own.cached] == "train")
    else:
        place = _apart(site, site.unlabelled)
        chosen = assess_site(place, (), (), plan.image_size, plan.fit)
        rows = _not_held_out(chosen, own)
    paths = chosen.table.path[chosen.cached][rows]
    texts: tuple[str, ...] = ()
    if pretrain.task == "image-text":
        texts = read_texts(place, paths, pretrain.redaction)
        told = np.array([bool(text) for text in texts], dtype=bool)
        rows, paths, texts = rows[told], paths[told], tuple(filter(None, texts))
    if not len(rows):
        _log.warning("no image can be used to pretrain by %s", pretrain.task)
    return Unlabelled(chosen.cache.pixels, rows, texts, paths, place.data.root)


def _apart(site: SiteConfig, own: UnlabelledConfig) -> SiteConfig:
    """Return the site as if the images apart were all it had: no labels, filters or other columns."""
    data = site.data.model_copy(
        update={
            "layout": "folder" if own.table is None else "table",
            "table": own.table,
            "root": own.root or site.data.root,
            "views": site.data.views if own.views is None else own.views,
            "cache": site.data.cache / "unlabelled",
        }
    )
    columns = site.columns.model_copy()
    columns.model_fields_set.clear()  # a column that only the labelled table has is not asked for
    nothing: dict[str, object] = {"labels": {}, "filter": {}, "clinical": {}, "unlabelled": None}
    text = site.text.model_copy(update={"label": ()})
    return site.model_copy(update={"data": data, "columns": columns, "text": text, **nothing})


def _not_held_out(chosen: Assessed, own: Assessed) -> NDArray[np.int64]:
    """Return the usable rows that share neither patient nor file with validation and test.

    A table that says itself which rows are for training is believed.
    """
    if chosen.table.split is None:
        usable = chosen.split[chosen.cached] != ""
    else:
        usable = chosen.split[chosen.cached] == "train"
    held = np.isin(own.split[own.cached], ["validation", "test"])
    files = {own.cache.facts[i].sha256 for i in np.flatnonzero(held)}
    patients = own.table.patient[own.cached][held]
    shared = np.isin(chosen.table.patient[chosen.cached], patients)
    shared |= _among([fact.sha256 for fact in chosen.cache.facts], files)
    if count := int((shared & usable).sum()):
        _log.info("%d unlabelled images belong to studies held out and are not used", count)
    return np.flatnonzero(usable & ~shared)


def _among(values: Sequence[str], known: set[str]) -> NDArray[np.bool_]:
    return np.array([value in known for value in values], dtype=bool)
