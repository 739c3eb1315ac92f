"""Part of a site's training studies: 1 or 10 % of the labels, or k shots. Nested and repeatable.

What is drawn depends on the plan's seed, the patients and the labels, never on the order of rows;
a smaller draw with the same seed lies within every larger one. Validation and test stay whole.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def draw_fraction(
    patients: NDArray[np.str_], rows: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.int64]:
    """Return the rows of the first ``fraction`` of the patients, at least one patient.

    Patients are taken in the order of a keyed hash, so 1 % lies within 10 % within 100 %.
    """
    names = np.unique(patients[rows])
    order = names[np.lexsort((names, _ranks(names, seed)))]
    taken = order[: max(1, round(fraction * len(order)))] if len(order) else order
    return rows[np.isin(patients[rows], taken)]


def draw_shots(
    patients: NDArray[np.str_],
    paths: NDArray[np.str_],
    rows: NDArray[np.int64],
    labels: NDArray[np.float32],
    shots: int,
    seed: int,
) -> NDArray[np.float32]:
    """Return the labels with all training cells hidden but k present and k absent of each finding.

    Each of a finding's 2 k studies is of another patient, and one who ever has the finding never
    stands for its absence. A study drawn for one finding shows its label of that finding only,
    which is what keeps every count exact; a finding with fewer than k patients of either kind
    stays hidden. ``labels`` is ``[n, F]``; rows outside ``rows`` are left as they are.
    """
    shown = labels.copy()
    shown[rows] = np.nan
    order = rows[np.lexsort((paths[rows], patients[rows], _ranks(patients[rows], seed)))]
    for j in range(labels.shape[1]):
        present = order[labels[order, j] == 1]
        absent = order[(labels[order, j] == 0) & ~np.isin(patients[order], patients[present])]
        drawn = [_one_a_patient(candidates, patients)[:shots] for candidates in (present, absent)]
        if min(map(len, drawn)) == shots:
            for cells in drawn:
                shown[cells, j] = labels[cells, j]
    return shown


def _one_a_patient(rows: NDArray[np.int64], patients: NDArray[np.str_]) -> NDArray[np.int64]:
    _, first = np.unique(patients[rows], return_index=True)
    return rows[np.sort(first)]


def _ranks(names: NDArray[np.str_], seed: int) -> NDArray[np.uint64]:
    key = blake2b(f"draw {seed}".encode(), digest_size=32).digest()
    digests = [blake2b(str(name).encode(), key=key, digest_size=8).digest() for name in names]
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)
