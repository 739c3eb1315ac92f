"""What the page, the API, the metrics, the alerts and the report are told about a run.

Plain frozen records: whoever shows them computes nothing, whoever computes them shows nothing.
Times are seconds since 1970; an absent number is ``None``, never a stand-in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal[
    "waiting", "enrolling", "local", "training", "testing", "finished", "failed", "stopped", "idle"
]
"""Where a run stands; ``idle``: nobody works on it and it is not over (it can be resumed)."""

Contact = Literal["connected", "late", "silent", "unknown"]
"""How lately a site was heard of: shown green, orange, red, grey, and always by its word too."""

Tone = Literal["plain", "good", "warning", "bad"]


@dataclass(frozen=True)
class Waiting:
    """A site whose answer is still to come."""

    site: str
    since: float
    """When it was asked."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands, and what it waits for."""

    state: State
    sentence: str
    """For people: 'round 3 of 8, waiting for north (12 s) and east (12 s)' without the seconds."""
    round: int
    """The round under way; else the last one committed; 0 before the first."""
    rounds: int
    """Rounds the plan asks for."""
    committed: int
    """Rounds that are over, abandoned ones among them."""
    since: float | None
    """When this stage or round began."""
    waiting: tuple[Waiting, ...] = ()
    deadline: float | None = None
    """When what it waits for is given up."""


@dataclass(frozen=True)
class RunSummary:
    """One run in the overview."""

    key: str
    """Names the run in an address: letters, digits, ``-``, ``_`` and ``.``."""
    title: str
    standing: Standing
    started: float | None
    changed: float | None
    """When the newest event happened."""
    sites: int
    method: str
    """``lora r8 (fedit)``, as people say it."""
    backbone: str
    mean_auroc: float | None
    """Mean over sites of the newest macro AUROC: of the test where there is one, else validation."""
    split: Literal["test", "validation", ""]
    """Which studies ``mean_auroc`` is of."""
    up: int
    """Bytes from all sites so far."""
    down: int
    warnings: int
    """Updates rejected, deadlines missed and sites refused so far."""


@dataclass(frozen=True)
class Rejection:
    """An update, or an enrolment, that was not taken, and why."""

    round: int | None
    code: str
    reason: str
    """The code in words."""


@dataclass(frozen=True)
class SiteRow:
    """One site in the site table."""

    name: str
    contact: Contact
    heard: float | None
    """When it was last heard of."""
    doing: str
    """'training round 3', 'answered round 3', 'did not answer round 3', 'refused', ''."""
    train_studies: int | None
    validation_studies: int | None
    test_studies: int | None
    patients: int | None
    findings: tuple[str, ...]
    """Findings it annotates."""
    participation: tuple[str, ...]
    """Per round from the first: ``returned``, ``missing``, ``rejected``, ``not asked``, ``asked``."""
    update_norm: float | None
    """L2 norm of its newest update."""
    cosine: float | None
    """Cosine of its newest update with the aggregate of that round."""
    weight: float | None
    """Its share, 0 to 1, of the newest mean."""
    up: int
    """Bytes it sent in this run."""
    down: int
    """Bytes it was sent."""
    seconds: float | None
    """From question to answer in the newest round it answered."""
    auroc: float | None
    """Newest macro AUROC on its validation studies."""
    gain: tuple[float, float, float] | None
    """Macro AUROC on its test studies, federated minus local: difference and 95 % interval."""
    personalised_gain: tuple[float, float, float] | None
    """The same of the personalised model, where the run made one."""
    set_aside: int
    """Studies it could not use."""
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True)
class Curve:
    """One figure over the rounds, at every site."""

    metric: str
    """``auroc``, ``pr-auc``, ``ece``, ``loss``, or another name in `metrics_of`."""
    finding: str
    """A finding, or empty: over all of them."""
    rounds: tuple[int, ...]
    """0 is the adapter before the first round."""
    sites: dict[str, tuple[float | None, ...]]
    """Site -> one value per round."""
    mean: tuple[float | None, ...]
    """Mean over the sites that have a value: each site counts once."""
    low: tuple[float | None, ...]
    """Lower quartile of the sites; with fewer than four the smallest."""
    high: tuple[float | None, ...]
    worst: tuple[float | None, ...]
    """Value at the worst site of each round."""
    worst_site: tuple[str, ...]
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Matrix:
    """Every model at every site: AUROC on the site's own test studies."""

    finding: str
    """A finding, or empty: the macro AUROC."""
    models: tuple[str, ...]
    """``local of north`` ..., ``federated``, ``pooled`` ..., in the order of the rows."""
    sites: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """``[models][sites]``."""
    intervals: tuple[tuple[tuple[float, float] | None, ...], ...]
    own: tuple[str, ...]
    """Per model the site that trained it alone; empty where several did."""


@dataclass(frozen=True)
class Bin:
    """Studies of similar predicted probability; none has fewer than a site's smallest cell."""

    mean: float
    """Mean predicted probability."""
    studies: int
    positives: int
    share: float
    """positives / studies."""
    interval: tuple[float, float]
    """Wilson 95 % interval of ``share``."""


@dataclass(frozen=True)
class Reliability:
    """Whether a model's probabilities mean what they say."""

    finding: str
    site: str
    """A site, or empty: all sites' studies together."""
    arms: dict[str, tuple[Bin, ...]]
    """Model -> its bins, by mean probability: ``federated`` is before, ``calibrated`` after calibration."""
    ece: dict[str, float | None]
    """Model -> ECE per finding; over all sites the mean weighted by studies."""


@dataclass(frozen=True)
class Aggregation:
    """How a round's updates became one."""

    round: int
    weights: dict[str, float]
    """Site -> its share of the mean."""
    norms: dict[str, float]
    """Site -> L2 norm of its update."""
    cosines: dict[str, float]
    """Site -> cosine of its update with the aggregate."""
    pairs: tuple[tuple[float, ...], ...]
    """``[sites][sites]`` cosines of updates with each other, in the order of ``weights``."""
    lora_error: tuple[tuple[int, float], ...]
    """(round, ||M - M_applied|| / ||M||) of every round that has it."""
    drift_blocks: tuple[str, ...]
    """Parts of the adapter in the order of the network."""
    drift_rounds: tuple[int, ...]
    drift: tuple[tuple[float | None, ...], ...]
    """``[rounds][blocks]``: L2 distance of the adapter after the round from where the run began."""


@dataclass(frozen=True)
class FeedEntry:
    """One event in plain language."""

    id: int
    time: float
    round: int | None
    site: str | None
    kind: str
    tone: Tone
    text: str


@dataclass(frozen=True)
class PlanFacts:
    """What a run does, and what it is made of."""

    digests: dict[str, str]
    """plan, base, code, adapter -> SHA-256."""
    versions: dict[str, str]
    settings: dict[str, str | int | float | bool]
    """Key -> value, all of them."""
    changed: tuple[str, ...]
    """Keys whose value is not the default."""
    trained_parameters: int | None
    base_parameters: int | None


@dataclass(frozen=True)
class ComparedSite:
    """One site's result in two runs."""

    site: str
    first: float | None
    first_interval: tuple[float, float] | None
    second: float | None
    second_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    first: RunSummary
    second: RunSummary
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Key -> its two values, where they differ."""
    sites: tuple[ComparedSite, ...] = ()
    """Federated macro AUROC on the test studies."""
