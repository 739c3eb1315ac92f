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
from common.metrics.histogram import Span
from common.metrics.summary import Difference, FindingMetrics, SiteMetrics

Stage = Literal["enrol", "pretrain", "train", "local", "evaluate", "calibrate", "personalise"]
Split = Literal["validation", "test"]

MESSAGE_TYPES: Mapping[Stage, str] = {
    "enrol": "query.enrol",
    "pretrain": "train.pretrain",
    "train": "train.round",
    "local": "train.local",
    "evaluate": "evaluate.arm",
    "calibrate": "query.calibrate",
    "personalise": "train.personalise",
}
"""Stage -> Flower message type."""

ROUND_STAGES: tuple[Stage, ...] = ("pretrain", "train")
"""Stages of a server round: each site answers with an update, and the round commits."""

Value = int | float | list[int] | list[float]

SINGLE_ARRAYS = ("adapter", "change", "scaling", "class_weights")
"""Fields of an instruction that are one array or none."""


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
    named: str = ""
    """SHA-256 of the adapter to start from, where a site is to hold it for later; with it ``adapter`` may be
    missing, because the site holds that one, or the one that ``change`` is added to."""
    numel: int = 0
    """Numbers in the adapter that is named."""
    change: NDArray[Any] | None = None
    """pretrain, train: what the round before changed, by the plan's ``wire.downlink``."""
    residual: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """fedex: ``residual:LAYER.left [out, k]`` and ``.right [k, in]``."""
    arm: str = ""
    """evaluate: which model this is; ``local`` is the site's own and is not sent."""
    split: Split = "test"
    """evaluate: which part of the site's studies."""
    scaling: NDArray[np.float64] | None = None
    """Flat ``[2 F]``: a slope of every finding's logit, then the biases. evaluate: what probabilities are
    calibrated by. calibrate: where the sums are wanted; NaN for a finding that is not asked for."""
    class_weights: NDArray[np.float64] | None = None
    """train, local: ``[F]``, the weight of a study that has the finding, from all sites' counts; None:
    the plan asks for none, or for each site's own."""
    learning_rate: float = 1.0
    """train: share of the plan's learning rate, below 1 after a plateau."""
    missing: Literal["", "text", "image"] = ""
    """evaluate: what of each study the model does not get, beside what is missing anyway."""
    run: str = ""
    """Flower's number of the run; this and all below but the lineage are empty in a simulation."""
    lineage: str = ""
    """Names the run for as long as it is resumed under other numbers of Flower's: what a site keeps between
    the rounds of a run is kept under it."""
    site: str = ""
    """The one site that is asked."""
    sequence: int = 0
    """Grows with every instruction the centre signs; a site takes each number once."""
    committed: int = 0
    """The newest round the centre has committed: a site may forget its updates up to it."""
    signature: str = ""
    """The centre's signature of ``signed_bytes``."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every array it carries; a residual's names begin with ``residual:``."""
        single = {name: getattr(self, name) for name in SINGLE_ARRAYS}
        return {name: values for name, values in single.items() if values is not None} | {
            f"residual:{name}": values for name, values in self.residual.items()
        }

    def fields(self) -> dict[str, Any]:
        """Return everything that is not an array."""
        arrays = (*SINGLE_ARRAYS, "residual")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in arrays}

    def signed_bytes(self) -> bytes:
        """Return what the centre signs: every field, and the SHA-256 of every array."""
        arrays = self.arrays()
        fields = {name: value for name, value in self.fields().items() if name != "signature"}
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
    update: NDArray[Any] | None = None
    """train: flat delta of the tensors trained this round, by the plan's codec. local: of the whole adapter,
    where the plan's ``evaluate.matrix`` asks for the site's own model and its policy lets it leave."""
    metrics: Mapping[str, Value] = field(default_factory=dict)
    """Numbers under kebab-case keys."""


LOCAL, FEDERATED, PERSONALISED = "local", "federated", "personalised"
"""Arms: each site's own model, the released adapter, and what each site made of it. The first and the last
are files of the sites; they are not sent."""
CALIBRATED, TEMPERATURE, OWN_BIAS = "calibrated", "temperature", "calibrated-here"
"""Arms of the released adapter with its probabilities scaled: by finding, by one number for all, and by
finding with each site's own bias on top."""
SAME_RANKING = frozenset({CALIBRATED, TEMPERATURE, OWN_BIAS})
"""Arms that rank a site's studies as the released adapter does."""
WITHOUT: Mapping[Literal["text", "image"], str] = {"text": "without-text", "image": "without-image"}
"""What the model does not get -> the arm."""
OWN_MODEL = "local:"
"""Begins the name of an arm that is one site's own model, measured at another; the site's name follows."""
RELEASED = "released"
"""Names the difference of a personalised model's macro AUROC to that of the released adapter."""
BIN_COUNTS = ("bins-studies", "bins-positives")
"""Per bin of a finding's reliability diagram: studies in it, and those that have the finding."""
BIN_MEAN = "bins-mean"
"""Per bin: mean predicted probability."""
BIN_SPAN = ("bins-from", "bins-to")
"""Per bin: the first cell of the common grid that it covers, and the one after the last
(`common.metrics.histogram`)."""
LABEL_COUNTS = ("label-positives", "label-negatives")
"""enrol: training studies with each finding, and without it, where the plan weighs classes by all sites'."""
CODEC_ERROR = "codec-error"
"""pretrain, train: relative L2 error of the update as it travels, where the plan's codec loses something."""
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


_FINDING_FLOATS = ("auroc", "pr_auc", "prevalence", "mcc", "ece", "brier")


def metrics_to_wire(metrics: SiteMetrics, differences: Mapping[str, Difference]) -> dict[str, Value]:
    """Flatten a site's evaluation; what is undefined is absent, numbers carry 3 decimals.

    ``differences`` are paired gains over the site's local model, by finding or ``macro``; under
    ``released`` that of a personalised model over the released adapter.
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
        covered = [b.span for b in m.bins if b.span is not None]
        if covered and len(covered) == len(m.bins):
            flat[f"{finding}.{BIN_SPAN[0]}"] = [first for first, _ in covered]
            flat[f"{finding}.{BIN_SPAN[1]}"] = [end for _, end in covered]
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
        rows = [*zip(*(c if isinstance(c, list) else [c] for c in columns), strict=True)]
        ends = [flat.get(f"{finding}.{name}", []) for name in BIN_SPAN]
        covered = [*zip(*(c if isinstance(c, list) else [c] for c in ends), strict=True)]
        spans: list[Span | None] = [(int(first), int(end)) for first, end in covered]
        return tuple(
            ReliabilityBin(int(n), int(k), float(mean), span)
            for (n, k, mean), span in zip(rows, spans or [None] * len(rows), strict=True)
        )

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
    for name in ("macro", RELEASED, *findings):
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
