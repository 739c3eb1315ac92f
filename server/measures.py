"""The numbers of a round that curves are drawn of, as rows: name, finding, site, round, value.

Names are kebab-case. Of each site (``finding`` empty): ``auroc pr-auc ece`` (means over its findings),
``loss pretext-loss steps seconds examples weight update-norm codec-error cosine up down payload``; of each
site and finding ``auroc pr-auc ece``. Of the federation (``site`` empty): ``lora-error aggregate-norm
seconds up down``.

A site measures the adapter it *received* on its validation studies, so what comes with the answers
of round r is true of the adapter after round r - 1; 0 is the adapter the run began with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

VALIDATED = ("auroc", "pr-auc", "ece")
"""What sites measure on their validation studies, all between 0 and 1."""
_BY_FINDING = re.compile(rf"(?:validation\.)?([a-z0-9_]+)\.({'|'.join(VALIDATED)})")
_OF_SITES = {
    "loss": "loss",
    "pretext_loss": "pretext-loss",
    "steps": "steps",
    "examples": "examples",
    "payload": "payload",
    "codec_error": "codec-error",
}
_OF_ALL = {"lora_error": "lora-error", "seconds": "seconds", "up": "up", "down": "down"}


class Measure(NamedTuple):
    """One number of one round."""

    name: str
    finding: str
    """Empty: over all of them."""
    site: str
    """Empty: of the federation."""
    round: int
    value: float


def of_validation(site: str, after: int, metrics: Mapping[str, Any]) -> Iterator[Measure]:
    """Yield what a site measured on its validation studies of the adapter as it was after a round.

    ``metrics`` are those of a train answer (``validation.FINDING.auroc``, ``validation-auroc``) or of
    an evaluation (``FINDING.auroc``, ``macro-auroc``). What cannot be is left out: these numbers are
    shown, and decide nothing.

    >>> [*of_validation("north", 2, {"validation.edema.ece": 0.1, "validation-auroc": 0.7})][0].round
    2
    """
    found: dict[str, list[float]] = {name: [] for name in VALIDATED}
    for key, value in metrics.items():
        match = _BY_FINDING.fullmatch(key)
        if match and _share(value):
            finding, name = match.groups()
            found[name].append(float(value))
            yield Measure(name, finding, site, after, float(value))
    macro = metrics.get("validation-auroc", metrics.get("macro-auroc"))
    for name, values in found.items():
        mean = math.fsum(values) / len(values) if values else None
        if name == "auroc" and macro is not None:
            mean = macro
        if _share(mean):
            yield Measure(name, "", site, after, float(mean))  # type: ignore[arg-type]


def from_record(record: Mapping[str, Any]) -> Iterator[Measure]:
    """Yield what the record of a round alone tells.

    That is all there is of a ledger of schema 1.
    """
    number = record["round"]
    for key, name in _OF_ALL.items():
        if record.get(key) is not None:
            yield Measure(name, "", "", number, float(record[key]))
    for key, name in (*_OF_SITES.items(), ("update_norm", "update-norm")):
        for site, value in (record.get(key) or {}).items():
            yield Measure(name, "", site, number, float(value))
    if record.get("status") == "committed":
        examples = record.get("examples") or {}
        if record.get("mean", "weighted") != "weighted":  # each site counts once
            examples = dict.fromkeys(examples, 1)
        for site, share in shares(examples).items():
            yield Measure("weight", "", site, number, share)
    for site, value in (record.get("validation_before") or {}).items():
        yield Measure("auroc", "", site, number - 1, float(value))


def shares(examples: Mapping[str, int]) -> dict[str, float]:
    """Return each site's share of the mean.

    >>> shares({"north": 3, "south": 1})
    {'north': 0.75, 'south': 0.25}
    """
    total = sum(examples.values())
    return {site: count / total for site, count in examples.items()} if total else {}


def _share(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
