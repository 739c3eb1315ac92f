"""What the server asks and a site answers: records, keys and message types, without any transport.

A site's answer holds at most one update (the delta from the adapter it received) and numbers; an
error is a stable code and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.metrics.calibration import ReliabilityBin
from common.metrics.summary import Difference, FindingMetrics, SiteMetrics

Stage = Literal["enrol", "train", "local", "evaluate", "calibrate"]
Split = Literal["validation", "test"]

MESSAGE_TYPES: Mapping[Stage, str] = {
    "enrol": "query.enrol",
    "train": "train.round",
    "local": "train.local",
    "evaluate": "evaluate.arm",
    "calibrate": "query.calibrate",
}
"""Stage -> Flower message type."""

Value = int | float | list[int] | list[float]


@dataclass(frozen=True)
class Instruction:
    """One thing a site is asked to do."""

    stage: Stage
    plan_digest: str
    code_digest: str
    base_digest: str
    round: int = 0
    adapter: NDArray[np.float32] | None = None
    """The adapter to start from, flat ``[numel]``; None where the stage needs none."""
    residual: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """fedex: ``residual:LAYER.left [out, k]`` and ``.right [k, in]``."""
    arm: str = ""
    """evaluate: which model this is; ``local`` is the site's own and is not sent."""
    split: Split = "test"
    """evaluate: which part of the site's studies."""
    scaling: NDArray[np.float64] | None = None
    """Flat ``[2 F]``: a slope of every finding's logit, then the biases. evaluate: what probabilities are
    calibrated by. calibrate: where the sums are wanted; NaN for a finding that is not asked for."""
    run: str = ""
    """Flower's number of the run; this and all below are empty in a simulation."""
    site: str = ""
    """The one site that is asked."""
    sequence: int = 0
    """Grows with every instruction the centre signs; a site takes each number once."""
    committed: int = 0
    """The newest round the centre has committed: a site may forget its updates up to it."""
    signature: str = ""
    """The centre's signature of ``signed_bytes``."""

    def signed_bytes(self) -> bytes:
        """Return what the centre signs: every field, and the SHA-256 of every array."""
        arrays: dict[str, NDArray[Any]] = {} if self.adapter is None else {"adapter": self.adapter}
        arrays |= {} if self.scaling is None else {"scaling": self.scaling}
        arrays |= {f"residual:{name}": values for name, values in self.residual.items()}
        fields: dict[str, Any] = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("adapter", "scaling", "residual", "signature")
        }
        fields["arrays"] = {
            name: [str(v.dtype), list(v.shape), hashlib.sha256(np.ascontiguousarray(v).data).hexdigest()]
            for name, v in sorted(arrays.items())
        }
        return json.dumps(fields, sort_keys=True).encode()


@dataclass(frozen=True)
class Answer:
    """What a site sends back."""

    site: str
    code: str = ""
    """Empty, or the stable code of what went wrong at the site."""
    update: NDArray[np.floating] | None = None
    """train: flat delta of the tensors trained this round. local: of the whole adapter, where the plan's
    ``evaluate.matrix`` asks for the site's own model and its policy lets it leave."""
    metrics: Mapping[str, Value] = field(default_factory=dict)
    """Numbers under kebab-case keys."""


OWN_MODEL = "local:"
"""Begins the name of an arm that is one site's own model, measured at another; the site's name follows."""
BIN_COUNTS = ("bins-studies", "bins-positives")
"""Per bin of a finding's reliability diagram: studies in it, and those that have the finding."""
BIN_MEAN = "bins-mean"
"""Per bin: mean predicted probability."""
VALIDATION_SHARES = ("auroc", "pr-auc", "ece")
"""Figures of a finding on the validation studies that come with every update, each 0 to 1."""
VALIDATION_COUNTS = ("positives", "negatives")
"""Validation studies behind them."""


def validation_key(finding: str, figure: str) -> str:
    """Return the key of an answer to train for a figure of one finding on the validation studies."""
    return f"validation.{finding}.{figure}"


def kebab(name: str) -> str:
    """Turn a Python name into a wire key: ``num_examples`` -> ``num-examples``."""
    return name.replace("_", "-")


_FINDING_FLOATS = ("auroc", "pr_auc", "prevalence", "ece", "brier")


def metrics_to_wire(metrics: SiteMetrics, differences: Mapping[str, Difference]) -> dict[str, Value]:
    """Flatten a site's evaluation; what is undefined is absent, numbers carry 3 decimals.

    ``differences`` are paired gains over the site's local model, by finding or ``macro``.
    """
    flat: dict[str, Value] = {"studies": metrics.studies}
    _put(flat, "macro-auroc", metrics.macro_auroc)
    _put(flat, "macro-interval", metrics.macro_interval)
    _put(flat, "macro-se", metrics.macro_se, decimals=4)
    _put(flat, "pooled-ece", metrics.pooled_ece)
    for finding, m in metrics.findings.items():
        flat[f"{finding}.positives"], flat[f"{finding}.negatives"] = m.positives, m.negatives
        for name in _FINDING_FLOATS:
            _put(flat, f"{finding}.{kebab(name)}", getattr(m, name))
        _put(flat, f"{finding}.interval", m.interval)
        if m.bins:
            flat[f"{finding}.{BIN_COUNTS[0]}"] = [b.studies for b in m.bins]
            flat[f"{finding}.{BIN_COUNTS[1]}"] = [b.positives for b in m.bins]
            flat[f"{finding}.{BIN_MEAN}"] = [round(b.mean, 3) for b in m.bins]
    for name, gain in differences.items():
        flat[f"gain.{name}"] = [round(gain.difference, 3), *(round(v, 3) for v in gain.interval)]
        _put(flat, f"gain-se.{name}", gain.se, decimals=4)
    return flat


def metrics_from_wire(
    flat: Mapping[str, Value], findings: Sequence[str]
) -> tuple[SiteMetrics, dict[str, Difference]]:
    """Read what ``metrics_to_wire`` wrote.

    Raises:
        ValueError, IndexError: if a list has another length than it should.
    """

    def number(key: str) -> float | None:
        value = flat.get(key)
        return None if value is None or isinstance(value, list) else float(value)

    def bins(finding: str) -> tuple[ReliabilityBin, ...]:
        columns = [flat.get(f"{finding}.{name}", []) for name in (*BIN_COUNTS, BIN_MEAN)]
        rows = zip(*(c if isinstance(c, list) else [c] for c in columns), strict=True)
        return tuple(ReliabilityBin(int(n), int(k), float(mean)) for n, k, mean in rows)

    def pair(key: str) -> tuple[float, float] | None:
        value = flat.get(key)
        return (float(value[0]), float(value[1])) if isinstance(value, list) else None

    per_finding = {
        finding: FindingMetrics(
            **{name: number(f"{finding}.{kebab(name)}") for name in _FINDING_FLOATS},
            interval=pair(f"{finding}.interval"),
            positives=int(number(f"{finding}.positives") or 0),
            negatives=int(number(f"{finding}.negatives") or 0),
            bins=bins(finding),
        )
        for finding in findings
        if f"{finding}.positives" in flat
    }
    metrics = SiteMetrics(
        studies=int(number("studies") or 0),
        macro_auroc=number("macro-auroc"),
        macro_interval=pair("macro-interval"),
        macro_se=number("macro-se"),
        pooled_ece=number("pooled-ece"),
        findings=per_finding,
    )
    gains: dict[str, Difference] = {}
    for name in ("macro", *findings):
        value = flat.get(f"gain.{name}")
        if isinstance(value, list):
            difference, low, high = (float(v) for v in value)
            gains[name] = Difference(difference, (low, high), number(f"gain-se.{name}") or 0.0)
    return metrics, gains


def _put(
    flat: dict[str, Value], key: str, value: float | tuple[float, ...] | None, decimals: int = 3
) -> None:
    if value is None:
        return
    rounded = [round(float(v), decimals) for v in value] if isinstance(value, tuple) else None
    flat[key] = rounded if rounded is not None else round(float(value), decimals)  # type: ignore[arg-type]
