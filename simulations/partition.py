"""How one table of studies becomes many sites: every study once, every patient at one site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError, closest

Scheme = Literal["iid", "dirichlet", "quantity", "column"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


def partition(
    patients: Sequence[str] | NDArray[np.str_],
    labels: NDArray[np.float32],
    *,
    scheme: Scheme,
    sites: int,
    generator: np.random.Generator,
    alpha: float = 0.5,
    column: ArrayLike | None = None,
) -> list[NDArray[np.int64]]:
    """Deal studies out to sites; returns each site's rows in ascending order.

    ``iid``        as many patients each, at random.
    ``dirichlet``  as many patients each, unlike in their findings: `dirichlet_by_labels`.
    ``quantity``   alike in their findings, unlike in size: `dirichlet_by_size`.
    ``column``     where the studies come from: `by_column`; `alpha` and the generator are not used.

    A smaller ``alpha`` makes the sites less alike. The result depends on which patients there
    are and on the generator, not on the order of the rows.

    >>> rows = partition(["a", "a", "b"], np.zeros((3, 1)), scheme="column", sites=2,
    ...                  generator=np.random.default_rng(0), column=["x", "x", "y"])
    >>> [site.tolist() for site in rows]
    [[0, 1], [2]]

    Raises:
        ConfigError: if the scheme is unknown, a value is out of range, or the patients are too
            few for every site to have one.
    """
    if scheme not in SCHEMES:
        fix = closest(scheme, SCHEMES) or f"one of {', '.join(SCHEMES)}"
        raise ConfigError("partition.scheme is unknown", found=repr(scheme), fix=fix)
    names, row_of = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    if sites < 1 or sites > len(names):
        raise ConfigError(
            f"{len(names)} patients cannot be dealt to {sites} sites",
            fix=f"set partition.sites from 1 to {len(names)}",
        )
    if scheme in ("dirichlet", "quantity") and not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError("partition.alpha must be above 0", found=str(alpha))
    if scheme == "iid":
        site_of = _deal(even_sizes(len(names), sites), generator)
    elif scheme == "dirichlet":
        strata = label_sets(labels, row_of, len(names))
        site_of = dirichlet_by_labels(strata, sites, alpha, generator)
    elif scheme == "quantity":
        site_of = dirichlet_by_size(len(names), sites, alpha, generator)
    else:
        if column is None:
            raise ConfigError("partition.scheme 'column' needs partition.column")
        site_of = by_column(np.asarray(column).astype(np.str_), row_of, len(names), sites)
    return [np.flatnonzero(site_of[row_of] == site) for site in range(sites)]


def even_sizes(count: int, sites: int) -> NDArray[np.int64]:
    """Share a count out so that no two sites differ by more than one.

    >>> even_sizes(7, 3).tolist()
    [3, 2, 2]
    """
    return np.full(sites, count // sites) + (np.arange(sites) < count % sites)


def label_sets(labels: NDArray[np.float32], row_of: NDArray[np.int64], patients: int) -> NDArray[np.int64]:
    """Number the patients' label sets: two patients share a number when the same findings are present."""
    present = np.zeros((patients, labels.shape[1]), dtype=bool)
    np.logical_or.at(present, row_of, labels == 1)
    return np.unique(present, axis=0, return_inverse=True)[1].reshape(-1)


def dirichlet_by_labels(
    strata: NDArray[np.int64], sites: int, alpha: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Give sites of equal size unlike mixtures of label sets (Hsu et al. 2019, section 3).

    Each site draws its mixture q ~ Dir(alpha p), p being the mixture of all patients; multi-label
    studies have no single class, so the set of findings of a patient takes its place. Sites draw
    a patient in turn, so that no site is left with what the others did not want; a label set that
    has run out is struck from the mixtures.
    """
    prior = np.bincount(strata) / len(strata)
    mixture = np.stack([_dirichlet(alpha * prior, generator) for _ in range(sites)])  # [sites, strata]
    stock = [list(generator.permutation(np.flatnonzero(strata == s))) for s in range(len(prior))]
    site_of = np.empty(len(strata), dtype=np.int64)
    turns = np.arange(len(strata)) % sites
    for site in turns:
        left = np.array([len(pile) for pile in stock])
        wanted = np.where(left > 0, mixture[site], 0.0)
        # Nothing it wants is left: it takes from what there is, in proportion.
        chances = wanted if wanted.sum() > 0 else left
        chosen = generator.choice(len(prior), p=chances / chances.sum())
        site_of[stock[chosen].pop()] = site
    return site_of


def dirichlet_by_size(
    patients: int, sites: int, alpha: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Give sites sizes in proportions ~ Dir(alpha), at least one patient each, patients at random."""
    exact = _dirichlet(np.full(sites, alpha), generator) * (patients - sites)
    sizes = 1 + np.floor(exact).astype(np.int64)
    largest_remainder = np.argsort(-(exact - np.floor(exact)), kind="stable")
    sizes[largest_remainder[: patients - int(sizes.sum())]] += 1
    return _deal(sizes, generator)


def by_column(
    values: NDArray[np.str_], row_of: NDArray[np.int64], patients: int, sites: int
) -> NDArray[np.int64]:
    """Make each value of a column (institution, scanner, country) a site, in the order of its name.

    A patient with studies under several values goes whole to the commonest of them. With more
    values than sites, the largest values are placed first, each at the site that is smallest.

    Raises:
        ConfigError: if fewer values than sites have patients.
    """
    names, value_of = np.unique(values, return_inverse=True)
    seen = np.zeros((patients, len(names)), dtype=np.int64)
    np.add.at(seen, (row_of, value_of), 1)
    home = seen.argmax(axis=1)
    sizes = np.bincount(home, minlength=len(names))
    peopled = np.flatnonzero(sizes)
    if len(peopled) < sites:
        raise ConfigError(
            f"partition.column has {len(peopled)} values with patients, for {sites} sites",
            fix=f"set partition.sites to {len(peopled)} or fewer",
        )
    if len(peopled) == sites:
        return np.asarray(np.searchsorted(peopled, home), dtype=np.int64)
    load = np.zeros(sites, dtype=np.int64)
    placed = np.zeros(len(names), dtype=np.int64)
    for value in peopled[np.argsort(-sizes[peopled], kind="stable")]:
        placed[value] = int(load.argmin())
        load[placed[value]] += sizes[value]
    return np.asarray(placed[home])


def _deal(sizes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    return generator.permutation(np.repeat(np.arange(len(sizes)), sizes))


def _dirichlet(alpha: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw from Dir(alpha) in logarithms: with a tiny alpha every gamma draw may underflow to 0.

    log G(a) = log G(a + 1) + log(U) / a, with U uniform (Marsaglia and Tsang 2000, section 6).
    """
    logs = np.log(generator.gamma(alpha + 1)) + np.log1p(-generator.random(len(alpha))) / alpha
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)
