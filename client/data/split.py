"""Train, validation and test by patient: no patient is ever in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from common.errors import SplitError

SPLITS = ("train", "validation", "test")


def split_by_patient(
    patients: NDArray[np.str_],
    fractions: Sequence[float],
    seed: int,
    labels: NDArray[np.float32] | None = None,
) -> NDArray[np.str_]:
    """Assign each row a split by its patient; the same patients and seed give the same split.

    Patients are taken by a hash keyed by the seed, those with many images first, so the order
    of the rows does not matter. The number of patients per split is fixed first (`quotas`), then
    filled by iterative stratification (Sechidis et al. 2011, alg. 1) at the level of patients:
    the rarest label is shared out first, present and absent each counting as one, so that a
    finding with three patients stands in all three splits where the quotas allow it. Within a
    label the splits take turns in proportion (Sainte-Lague), which spreads the patients with
    many images as well.

    Args:
        labels: ``[rows, F]`` of 1, 0 and NaN; without them the split is by hash alone.
    """
    names, row_of = np.unique(patients, return_inverse=True)
    # By powers of two: exact counts would leave the seed nothing to vary.
    many = np.log2(np.bincount(row_of)).astype(int)
    order = np.lexsort((np.array([_rank(str(name), seed) for name in names]), -many))
    carried = _carried(labels, row_of, len(names))[order]
    chosen = np.empty(len(names), dtype=np.int64)
    chosen[order] = _stratify(carried, quotas(len(names), fractions), fractions)
    return np.array(SPLITS, dtype=np.str_)[chosen[row_of]]


def quotas(count: int, fractions: Sequence[float]) -> NDArray[np.int64]:
    """Share a count out by largest remainder, one to every split asked for before any gets two.

    >>> [quotas(n, (0.7, 0.1, 0.2)).tolist() for n in (1, 3, 10, 100)]
    [[1, 0, 0], [1, 1, 1], [7, 1, 2], [70, 10, 20]]
    """
    shares = np.asarray(fractions, dtype=np.float64)
    wanted = np.flatnonzero(shares > 0)
    parts = np.zeros(len(shares), dtype=np.int64)
    # Ties in a stable sort on the negated share go to the earlier split: train first.
    largest = wanted[np.argsort(-shares[wanted], kind="stable")]
    parts[largest[:count]] = 1
    exact = shares / shares.sum() * count
    for _ in range(count - int(parts.sum())):
        parts[np.argmax(np.where(shares > 0, exact - parts, -np.inf))] += 1
    return parts


def check_split(patients: NDArray[np.str_], split: NDArray[np.str_]) -> None:
    """Hold every patient to one split.

    Raises:
        SplitError: if a patient has rows in two splits; says how many patients, not which.
    """
    pairs = np.unique(np.stack([patients, split]), axis=1)
    _, times = np.unique(pairs[0], return_counts=True)
    shared = int((times > 1).sum())
    if shared:
        raise SplitError(
            f"{shared} patients are in more than one split",
            fix="split by patient, or leave columns.split out and let the site split",
        )


def _rank(patient: str, seed: int) -> bytes:
    key = blake2b(str(seed).encode(), digest_size=32).digest()
    return blake2b(patient.encode(), key=key, digest_size=16).digest()


def _carried(labels: NDArray[np.float32] | None, row_of: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Tell which patient carries which label: ``[patients, 2F]``, present then absent."""
    if labels is None:
        return np.zeros((count, 0), dtype=bool)
    both = np.concatenate([labels == 1, labels == 0], axis=1)
    carried = np.zeros((count, both.shape[1]), dtype=bool)
    np.logical_or.at(carried, row_of, both)
    return carried


def _stratify(
    carried: NDArray[np.bool_], room: NDArray[np.int64], fractions: Sequence[float]
) -> NDArray[np.int64]:
    """Fill the room of each split, rarest label first; returns the split of each patient."""
    left = carried.sum(axis=0)
    share = np.array([quotas(int(n), fractions) for n in left]).reshape(-1, len(room))  # [2F, splits]
    want, free = share.copy(), room.copy()
    chosen = np.full(len(carried), -1, dtype=np.int64)
    while (chosen < 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, len(carried) + 1))) if left.any() else -1
        members = np.flatnonzero((chosen < 0) & (carried[:, rarest] if left.any() else True))
        for patient in members:
            need, quota = (free, room) if rarest < 0 else (want[rarest], share[rarest])
            turn = np.where(quota > 0, (need - 0.5) / np.maximum(quota, 1), -np.inf)
            split = max(np.flatnonzero(free > 0), key=lambda s: (turn[s], free[s]))
            chosen[patient] = split
            free[split] -= 1
            want[carried[patient], split] -= 1
            left -= carried[patient]
    return chosen
