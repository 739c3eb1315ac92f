"""The benchmark's sentences: no surer than the intervals allow, whichever way an answer falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.report_words import between, counted, number, signed
from simulations.benchmark.cells import label, shown
from simulations.benchmark.contrasts import FEDERATED, Estimate, Outcome
from simulations.benchmark.grid import ARM, LOWER_IS_BETTER, METRIC_WORDS, VARIANT, Contrast


def sides(contrast: Contrast) -> tuple[str, str]:
    """Name what is compared by what sets it apart.

    >>> told = {"first": {"variant": "lora", "data.shots": 8}, "second": {"variant": "full", "data.shots": 8}}
    >>> sides(Contrast(name="", **told))
    ('lora', 'full')
    """
    first, second = contrast.first, contrast.second
    apart = [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
    return _side(first, apart), _side(second, apart)


def _side(chosen: Mapping[str, Any], keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        if key in chosen:
            value = shown(chosen[key])
            parts.append(value if key in (VARIANT, ARM) else f"{key} {value}")
    return ", ".join(parts) or FEDERATED


def sentence(row: Outcome) -> str:
    """Answer one row of a contrast."""
    where = f" at {label(row.at)}" if row.at else ""
    what = METRIC_WORDS[row.contrast.metric]
    left = (
        f" {counted(row.left_out, 'pair')} of cells left out: one of the two failed." if row.left_out else ""
    )
    if row.difference is None:
        return f"{row.contrast.name}{where}: nothing to compare.{left}"
    gap, pairs = row.difference, row.wins + row.losses + row.ties
    first, second = sides(row.contrast)
    verdict = {"better": f"{first} is better", "worse": f"{second} is better"}.get(
        row.verdict, "no difference can be told"
    )
    within = f" ({between(gap.interval, signed)})" if gap.interval else ""
    lower = ", lower is better" if row.contrast.metric in LOWER_IS_BETTER else ""
    tied = f", {row.ties} alike" if row.ties else ""
    return (
        f"{row.contrast.name}{where}: {what} {signed(gap.value)}{within}{lower}: {verdict}; "
        f"{first} wins {row.wins} of {counted(pairs, 'pair')}{tied}.{left}"
    )


def spoken(estimate: Estimate | None) -> str:
    """Write a mean with its interval."""
    if estimate is None:
        return "n/a"
    within = f" ({between(estimate.interval)})" if estimate.interval else ""
    return f"{number(estimate.value)}{within}"


def tally(rows: Sequence[Outcome]) -> str:
    """Say how often the first was surely better, surely worse, or neither."""
    told = [row for row in rows if row.difference is not None]
    better, worse = (sum(row.verdict == verdict for row in told) for verdict in ("better", "worse"))
    left = f"; {len(rows) - len(told)} could not be made" if len(told) < len(rows) else ""
    return (
        f"{counted(len(told), 'comparison')}: {better} surely better, {worse} surely worse, "
        f"{len(told) - better - worse} within noise{left}."
    )


def method(seeds: int, sites: int, replicates: int) -> str:
    """Say how the intervals came about."""
    return (
        f"95 % percentile intervals of {replicates} bootstrap replicates in which the "
        f"{counted(seeds, 'seed')}, the {counted(sites, 'site')} and each site's test patients are drawn "
        "again, each by itself (pigeonhole bootstrap, Owen 2007). Differences are paired: the same seed, "
        "site and patients on both sides. Sites count alike, however large. A few seeds and sites say "
        "little about others of their kind, and intervals are not corrected for the number of comparisons."
    )
