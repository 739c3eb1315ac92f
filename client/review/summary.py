"""What an index holds, counted: splits, findings, who and what is in it, and what is set aside.

Nothing here names a patient, a study or a file, so the summary may be shown on a screen in a
meeting. It still counts patients of one site and leaves it only as the site's policy allows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.data.reasons import CAUSES
from client.data.split import SPLITS
from common.clinical import VARIABLES

MIN_CELL = 11
"""Fewer positives or negatives than this and a score is suppressed; as ``evaluate.min_cell``."""
AGE_BANDS = ("<18", "18-39", "40-59", "60-79", "80+")
UNKNOWN = "unknown"
FOLLOWS = 0.5
"""Youden index from which a scanner or a view is said to give a finding away by itself."""

_MOST_GROUPS = 10
_MOST_VALUES = 40
"""More different views or scanners than this are not shown: the column holds something else."""
_PER_GROUP = 10
"""Positives and negatives per group below which a difference between groups may be chance."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """How much there is."""

    images: int
    studies: int
    """An image without a study counts as one of its own."""
    patients: int


@dataclass(frozen=True)
class FindingCounts:
    """The usable images on which a finding is annotated."""

    name: str
    positive: int
    negative: int
    positives: Mapping[str, int]
    """By split."""
    flags: tuple[str, ...]
    """What is wrong with it, in a few words each."""

    @property
    def annotated(self) -> int:
        """Images annotated, present or absent."""
        return self.positive + self.negative

    @property
    def prevalence(self) -> float | None:
        """Share of the annotated images that are positive."""
        return self.positive / self.annotated if self.annotated else None


@dataclass(frozen=True)
class Group:
    """Usable images alike in one thing: a view, a sex, an age band, a scanner."""

    name: str
    images: int
    share: float
    value: str | None = None
    """As it stands in the index; None for a rest of several values."""


@dataclass(frozen=True)
class VariableCounts:
    """A clinical variable over the usable images."""

    name: str
    unit: str
    present: int
    missing: float
    """Share of the usable images without it."""
    median: float | None
    range: tuple[float, float] | None


@dataclass(frozen=True)
class SetAside:
    """Images that are not used, for one reason."""

    code: str
    images: int
    meaning: str
    remedy: str
    fault: bool
    """False for what was merely not asked for, such as a lateral view."""


@dataclass(frozen=True)
class IndexSummary:
    """An index in numbers. Everything but ``total`` and ``set_aside`` speaks of usable images."""

    site: str
    min_cell: int
    total: Counts
    usable: Counts
    splits: Mapping[str, Counts]
    findings: tuple[FindingCounts, ...]
    views: tuple[Group, ...]
    sexes: tuple[Group, ...]
    ages: tuple[Group, ...]
    scanners: tuple[Group, ...]
    clinical: tuple[VariableCounts, ...]
    set_aside: tuple[SetAside, ...]
    """Faults first, and of those the most frequent."""

    @property
    def faults(self) -> int:
        """Images set aside because something is wrong with them."""
        return sum(part.images for part in self.set_aside if part.fault)

    @property
    def not_asked(self) -> int:
        """Images set aside because site.toml does not ask for them."""
        return sum(part.images for part in self.set_aside if not part.fault)


def summarise(index: pd.DataFrame, site: str, min_cell: int = MIN_CELL) -> IndexSummary:
    """Count what an index holds; ``min_cell`` is the site's ``evaluate.min_cell``."""
    code = texts(index, "code")
    usable = code == ""
    split, view, scanner = (texts(index, name) for name in ("split", "view", "scanner"))
    patient = pd.factorize(texts(index, "patient"))[0]
    study = _studies(patient, texts(index, "study"))

    def count(mask: Mask) -> Counts:
        patients = np.unique(patient[mask & (texts(index, "patient") != "")])
        return Counts(int(mask.sum()), len(np.unique(study[mask])), len(patients))

    by_split = {name: usable & (split == name) for name in SPLITS}
    groups = {"scanner": scanner, "view": view}
    return IndexSummary(
        site=site,
        min_cell=min_cell,
        total=count(np.ones(len(index), dtype=bool)),
        usable=count(usable),
        splits={name: count(mask) for name, mask in by_split.items()},
        findings=tuple(
            _finding(name, values, usable, by_split, groups, min_cell)
            for name, values in _measured(index, "label.")
        ),
        views=_groups(view[usable], "views"),
        sexes=_groups(np.where(np.isin(texts(index, "sex"), ("M", "F")), texts(index, "sex"), "")[usable]),
        ages=_by_age(index["age"].to_numpy(np.float64)[usable]),
        scanners=_groups(scanner[usable], "scanners"),
        clinical=tuple(_variable(name, values[usable]) for name, values in _measured(index, "clinical.")),
        set_aside=_set_aside(code[~usable]),
    )


def texts(index: pd.DataFrame, column: str) -> NDArray[np.object_]:
    """Return a column of an index as plain strings, '' where there is none."""
    return index[column].fillna("").astype(object).to_numpy()


def age_bands(ages: NDArray[np.float64]) -> NDArray[np.str_]:
    """Name the age band of each age in years.

    >>> age_bands(np.array([17.9, 18, 39.9, 80, np.nan])).tolist()
    ['<18', '18-39', '18-39', '80+', 'unknown']
    """
    band = np.digitize(np.nan_to_num(ages), (18, 40, 60, 80))
    return np.where(np.isnan(ages), UNKNOWN, np.array(AGE_BANDS)[band])


def plain(text: str, most: int = 60) -> str:
    r"""Make a text of unknown origin fit to be shown: no control or formatting characters, not long.

    >>> plain("GE\x1b[31m  Definium", most=9)
    'GE?[31m …'
    """
    kept = "".join(_shown(letter) for letter in text)
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def _shown(letter: str) -> str:
    kind = unicodedata.category(letter)
    return "?" if kind[0] == "C" else " " if kind[0] == "Z" else letter


def _studies(patient: NDArray[np.int64], study: NDArray[np.object_]) -> NDArray[np.int64]:
    """Number the studies; a study named alike at two patients is two studies."""
    number = pd.factorize(study)[0].astype(np.int64)
    key = patient * (int(number.max(initial=0)) + 1) + number
    return np.where(study == "", -1 - np.arange(len(study)), key)


def _measured(index: pd.DataFrame, prefix: str) -> list[tuple[str, NDArray[np.float64]]]:
    return [
        (str(name).removeprefix(prefix), index[name].to_numpy(np.float64))
        for name in index.columns
        if str(name).startswith(prefix)
    ]


def _finding(
    name: str,
    values: NDArray[np.float64],
    usable: Mask,
    by_split: Mapping[str, Mask],
    groups: Mapping[str, NDArray[np.object_]],
    min_cell: int,
) -> FindingCounts:
    positive, negative = usable & (values == 1), usable & (values == 0)
    positives = {split: int((positive & mask).sum()) for split, mask in by_split.items()}
    negatives = {split: int((negative & mask).sum()) for split, mask in by_split.items()}
    flags = []
    if not positive.any() and not negative.any():
        flags.append("not annotated")
    elif not positive.any() or not negative.any():
        flags.append("only one class")
    else:
        if not positives["train"] or not negatives["train"]:
            flags.append("one class in train")
        flags += [
            f"fewer than {min_cell} {what} in test"
            for what, counts in (("positives", positives), ("negatives", negatives))
            if counts["test"] < min_cell
        ]
        flags += [f"follows the {thing}" for thing, of in groups.items() if _follows(positive, negative, of)]
    return FindingCounts(name, int(positive.sum()), int(negative.sum()), positives, tuple(flags))


def _follows(positive: Mask, negative: Mask, group: NDArray[np.object_]) -> bool:
    """Tell whether the group alone tells positives from negatives.

    The total variation between the two is the best Youden index (sensitivity + specificity - 1)
    of any rule that looks at the group and nothing else.
    """
    known = positive | negative
    number, names = pd.factorize(group[known])
    with_it = np.bincount(number[positive[known]], minlength=len(names))
    without = np.bincount(number[negative[known]], minlength=len(names))
    if min(with_it.sum(), without.sum()) < _PER_GROUP * len(names):
        return False
    distance = np.abs(with_it / with_it.sum() - without / without.sum()).sum() / 2
    return bool(distance >= FOLLOWS)


def _groups(values: NDArray[np.object_], things: str = "") -> tuple[Group, ...]:
    """Count the values, most frequent first, then the rest, then the unknown."""
    total = max(len(values), 1)
    counts = pd.Series(values, dtype=object).value_counts()
    known = sorted(((str(v), int(n)) for v, n in counts.items() if v), key=lambda pair: (-pair[1], pair[0]))
    if len(known) > _MOST_VALUES:
        # Not views or scanners, then: perhaps names, which must not be shown.
        known, rest = [], known
    else:
        known, rest = known[:_MOST_GROUPS], known[_MOST_GROUPS:]
    groups = [Group(plain(value), n, n / total, value) for value, n in known]
    if rest:
        n = sum(n for _, n in rest)
        groups.append(Group(f"{len(rest):,} {'other' if known else 'different'} {things}", n, n / total))
    if missing := int(counts.get("", 0)):
        groups.append(Group(UNKNOWN, missing, missing / total, ""))
    return tuple(groups)


def _by_age(ages: NDArray[np.float64]) -> tuple[Group, ...]:
    bands = age_bands(ages)
    counts = {name: int((bands == name).sum()) for name in (*AGE_BANDS, UNKNOWN)}
    return tuple(Group(name, n, n / max(len(ages), 1), name) for name, n in counts.items() if n)


def _variable(name: str, values: NDArray[np.float64]) -> VariableCounts:
    known = values[~np.isnan(values)]
    return VariableCounts(
        name=name,
        unit=VARIABLES[name].unit if name in VARIABLES else "",
        present=len(known),
        missing=1 - len(known) / max(len(values), 1),
        median=float(np.median(known)) if len(known) else None,
        range=(float(known.min()), float(known.max())) if len(known) else None,
    )


def _set_aside(codes: Sequence[str] | NDArray[np.object_]) -> tuple[SetAside, ...]:
    counts = pd.Series(codes, dtype=object).value_counts()
    causes: Mapping[str, tuple[str, str, bool]] = dict(CAUSES)
    parts = [SetAside(str(code), int(n), *causes[str(code)]) for code, n in counts.items()]
    return tuple(sorted(parts, key=lambda part: (not part.fault, -part.images, part.code)))
