"""Which of a site's rows can be used, and in which split: the judgement that index and training share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, years
from client.data.duplicates import find_duplicates
from client.data.labels import person
from client.data.pixel_cache import PixelCache, Progress
from client.data.reasons import CAUSES
from client.data.split import check_split, split_by_patient
from client.data.table import StudyTable, is_view, read_studies
from client.data.transforms import Fit
from client.site import SiteConfig
from common.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessed:
    """Every row of a site with its final code, its picture where one was read, and its split."""

    table: StudyTable
    split: Text
    """``[rows]``: train, validation, test, or '' for a row that is not used."""
    cache: PixelCache
    cached: NDArray[np.int64]
    """Row of the table that each row of the cache belongs to."""

    @property
    def quarantined(self) -> dict[str, int]:
        """Code -> rows with a fault."""
        return {code: n for code, n in self._codes().items() if CAUSES[code].fault}

    @property
    def not_asked_for(self) -> dict[str, int]:
        """Filter or code -> rows that are in order and not used."""
        codes = {code: n for code, n in self._codes().items() if not CAUSES[code].fault}
        return dict(self.table.removed) | codes

    def _codes(self) -> Counter[str]:
        return Counter(code for code in self.table.code.tolist() if code)


def assess_site(
    site: SiteConfig,
    findings: Sequence[str] | None,
    clinical: Sequence[str] | None,
    size: int,
    fit: Fit = "crop",
    progress: Progress | None = None,
) -> Assessed:
    """Read the table, decode the images (once), look for duplicates and split the patients.

    The split depends on the site's patients, its own labels and ``data.split_seed``: not on the
    findings asked for, nor on which images could be read.

    Raises:
        DataError: if more than ``data.max_quarantined`` of the rows have a fault, or none can be
            used; counted by code. TableError, LabelError and SplitError as `read_studies`.
    """
    table = read_studies(site, findings, clinical, progress)
    cached = np.flatnonzero(table.code == "")
    paths = [str(path) for path in table.path[cached]]
    data = site.data
    cache = PixelCache.open(data.cache, paths, data.root, size, fit, data.burned_in, progress)
    table = _with_facts(table, cached, cache)
    code = table.code.copy()
    code[cached] = cache.reasons
    read = cached[cache.ok]
    code[read[table.patient[read] == ""]] = "no-patient"
    read = read[table.patient[read] != ""]
    if data.views:
        seen, wanted = table.view[read] != "", is_view(table.view[read], data.views)
        code[read[~seen]] = "unknown-view"
        code[read[seen & ~wanted]] = "view"
    fine = np.flatnonzero(code[cached] == "")
    code[cached[fine]] = find_duplicates(
        [cache.facts[i] for i in fine],
        table.patient[cached[fine]],
        table.strata[cached[fine]],
        _Rows(cache.pixels, fine),  # type: ignore[arg-type]
    )
    assessed = Assessed(replace(table, code=code), _splits(table, code, site), cache, cached)
    _check_share(assessed, data.max_quarantined)
    _log.info("%s: %d of %d rows usable", site.name, int((code == "").sum()), len(code))
    return assessed


class _Rows:
    """Some rows of a mapped array, read one at a time."""

    def __init__(self, array: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return self._array[self._rows[i]]


def _with_facts(table: StudyTable, cached: NDArray[np.int64], cache: PixelCache) -> StudyTable:
    """Fill what the table leaves empty from the files' headers."""
    filled = {}
    for name in ("patient", "study", "view", "sex"):
        own = getattr(table, name)
        told = np.array([getattr(fact, name) for fact in cache.facts], dtype=np.str_)
        width = max(own.dtype.itemsize, told.dtype.itemsize) // 4
        cells = own.astype(f"U{max(width, 1)}")
        cells[cached] = np.where(own[cached] == "", told, own[cached])
        filled[name] = cells
    age = table.age.copy()
    told_age = years(np.array([fact.age for fact in cache.facts], dtype=np.str_))
    age[cached] = np.where(np.isnan(age[cached]), told_age, age[cached])
    clinical = table.clinical.copy()
    for j, name in enumerate(table.variables):
        if name in ("age", "male"):
            clinical[:, j] = np.where(
                np.isnan(clinical[:, j]), person(name, age, filled["sex"]), clinical[:, j]
            )
    return replace(table, age=age, clinical=clinical, **filled)


def _splits(table: StudyTable, code: Text, site: SiteConfig) -> Text:
    usable = code == ""
    split = np.full(len(table), "", dtype="U10")
    if table.split is not None:
        split[usable] = table.split[usable]
        check_split(table.patient[usable], split[usable])
        return split
    # An unreadable image, or a picture used once already, keeps its patient's place in the split.
    drawn = (table.code == "") & (table.patient != "") & ~np.isin(code, ["view", "unknown-view"])
    if drawn.any():
        split[drawn] = split_by_patient(
            table.patient[drawn], site.data.split, site.data.split_seed, table.strata[drawn]
        )
    split[~usable] = ""
    return split


def _check_share(assessed: Assessed, allowed: float) -> None:
    total, count = len(assessed.table), sum(assessed.quarantined.values())
    if count and (count > allowed * total or count == total):
        raise DataError(
            f"{count} of {total} studies cannot be used, more than data.max_quarantined = {allowed:g} allows",
            found=", ".join(f"{code}: {n}" for code, n in sorted(assessed.quarantined.items())),
            fix="mend these files, or raise data.max_quarantined in site.toml",
        )
    if not (assessed.table.code == "").any():
        raise DataError(
            "no study of the site can be used",
            found=", ".join(f"{code}: {n}" for code, n in sorted(assessed.not_asked_for.items())),
            fix="see data.views and [filter] in site.toml",
        )
