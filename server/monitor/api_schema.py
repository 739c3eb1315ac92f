"""What the JSON API answers: the facts about runs, field by field, as programs rely on them.

Within ``/api/v1`` fields are added, never renamed or taken away. What is undefined is ``null``, never a
stand-in; times are seconds since 1970 (UTC); an interval is ``[low, high]`` at 95 %.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.facts.records import Contact, State, Tone

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Numbers = list[float | None]


class Fact(BaseModel):
    """Read from a record of `server.facts`."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True, frozen=True)


class Waiting(Fact):
    """A site whose answer is still to come."""

    site: str
    """The site's name."""
    since: float
    """When it was asked."""


class Standing(Fact):
    """Where a run stands, and what it waits for."""

    state: State
    """``idle``: nobody works on it and it is not over."""
    sentence: str
    """The same for people."""
    round: int
    """The round under way; else the last one that is over; 0 before the first."""
    rounds: int
    """Rounds the plan asks for."""
    committed: int
    """Rounds that are over, abandoned ones among them."""
    since: float | None
    """When this stage or round began."""
    waiting: list[Waiting]
    """Sites whose answer is still to come."""
    deadline: float | None
    """When what it waits for is given up."""


class RunModel(Fact):
    """One run."""

    key: str
    """Names the run in an address."""
    title: str
    """Its title."""
    standing: Standing
    """Where it stands."""
    started: float | None
    """When it began."""
    changed: float | None
    """When its newest event happened."""
    sites: int
    """Sites that enrolled."""
    method: str
    """What is trained."""
    backbone: str
    """The frozen base."""
    mean_auroc: float | None
    """Mean over sites of the newest macro AUROC: of the test where there is one, else validation."""
    split: Literal["test", "validation", ""]
    """Which studies `mean_auroc` is of."""
    up: int
    """Bytes from all sites so far."""
    down: int
    """Bytes to all sites so far."""
    warnings: int
    """Updates rejected, deadlines missed and sites refused so far."""


class RunsModel(Fact):
    """Every run."""

    runs: list[RunModel]
    """The newest first."""


class RunDetail(Fact):
    """One run, and what can be asked of it."""

    run: RunModel
    """Its row in the overview."""
    metrics: list[str]
    """What curves there are."""
    findings: list[str]
    """The findings of its plan."""
    sites: list[str]
    """The sites that enrolled."""
    files: list[str]
    """What can be downloaded now, at ``/runs/{run}/download/{file}``."""


class Rejection(Fact):
    """An update, or an enrolment, that was not taken."""

    round: int | None
    """The round; null for an enrolment."""
    code: str
    """Stable code of why."""
    reason: str
    """The code in words."""


class Gain(Fact):
    """A difference of two models on the same patients; above 0 the first is better."""

    difference: float
    """The difference."""
    interval: Interval
    """Its 95 % interval."""

    @model_validator(mode="before")
    @classmethod
    def _of_three(cls, value: Any) -> Any:
        """Take (difference, low, high)."""
        if isinstance(value, tuple):
            return {"difference": value[0], "interval": list(value[1:])}
        return value


class SiteModel(Fact):
    """One site in a run."""

    name: str
    """The site's name."""
    contact: Contact
    """How lately it was heard of; unknown in a simulation."""
    heard: float | None
    """When it was last heard of."""
    doing: str
    """What it does, in words."""
    train_studies: int | None
    """Studies to train on."""
    validation_studies: int | None
    """Studies to choose by."""
    test_studies: int | None
    """Studies to test on."""
    patients: int | None
    """Patients of all these."""
    findings: list[str]
    """Findings it annotates."""
    participation: list[str]
    """Per round from the first: returned, missing, rejected, not asked, asked."""
    update_norm: float | None
    """L2 norm of its newest update."""
    cosine: float | None
    """Cosine of its newest update with the aggregate of that round."""
    weight: float | None
    """Its share, 0 to 1, of the newest mean."""
    up: int
    """Bytes it sent."""
    down: int
    """Bytes it was sent."""
    seconds: float | None
    """From question to answer in the newest round it answered."""
    auroc: float | None
    """Newest macro AUROC on its validation studies."""
    gain: Gain | None
    """Macro AUROC on its test studies, federated minus local."""
    personalised_gain: Gain | None
    """The same of the personalised model."""
    set_aside: int
    """Studies it could not use."""
    rejections: list[Rejection]
    """Updates and enrolments of it that were not taken."""


class SitesModel(Fact):
    """Every site of a run."""

    sites: list[SiteModel]
    """In name order."""


class CurveModel(Fact):
    """One figure over the rounds, at every site."""

    metric: str
    """Which figure."""
    finding: str
    """A finding; empty: over all of them."""
    rounds: list[int]
    """0 is the adapter before the first round."""
    sites: dict[str, Numbers]
    """Site -> one value per round."""
    mean: Numbers
    """Mean over the sites that have a value: each counts once."""
    low: Numbers
    """Lower quartile of the sites; with fewer than four the smallest."""
    high: Numbers
    """Upper quartile; with fewer than four the largest."""
    worst: Numbers
    """Value at the worst site of each round."""
    worst_site: list[str]
    """Which site that is."""
    better: Literal["higher", "lower"]
    """Which direction is better."""


class MatrixModel(Fact):
    """Every model at every site: AUROC on the site's own test studies."""

    finding: str
    """A finding; empty: the macro AUROC."""
    models: list[str]
    """The rows."""
    sites: list[str]
    """The columns."""
    values: list[Numbers]
    """``[models][sites]``."""
    intervals: list[list[Interval | None]]
    """``[models][sites]``."""
    own: list[str]
    """Per model the site that trained it alone; empty where several did."""


class BinModel(Fact):
    """Studies of similar predicted probability."""

    mean: float
    """Mean predicted probability."""
    studies: int
    """Studies in the bin."""
    positives: int
    """Of those, with the finding."""
    share: float
    """positives / studies."""
    interval: Interval
    """Wilson interval of the share."""


class ReliabilityModel(Fact):
    """Whether models' probabilities mean what they say."""

    finding: str
    """The finding."""
    site: str
    """A site; empty: all sites' studies together."""
    arms: dict[str, list[BinModel]]
    """Model -> its bins; ``federated`` is before, ``calibrated`` after calibration."""
    ece: dict[str, float | None]
    """Model -> expected calibration error."""


class AggregationModel(Fact):
    """How a round's updates became one."""

    round: int
    """The round."""
    weights: dict[str, float]
    """Site -> its share of the mean."""
    norms: dict[str, float]
    """Site -> L2 norm of its update."""
    cosines: dict[str, float]
    """Site -> cosine of its update with the aggregate."""
    pairs: list[Numbers]
    """``[sites][sites]`` cosines of updates with each other, in the order of `weights`."""
    lora_error: list[list[float]]
    """[round, error] of every round that has it."""
    drift_blocks: list[str]
    """Parts of the adapter in the order of the network."""
    drift_rounds: list[int]
    """Rounds of `drift`."""
    drift: list[Numbers]
    """``[rounds][blocks]``: L2 distance of the adapter from where the run began."""


class EventModel(Fact):
    """One event."""

    id: int
    """Grows with time."""
    time: float
    """When."""
    round: int | None
    """The round it belongs to."""
    site: str | None
    """The site it is about."""
    kind: str
    """What kind of event."""
    tone: Tone
    """How much it matters."""
    text: str
    """A sentence."""


class EventsModel(Fact):
    """A page of events, the oldest first."""

    events: list[EventModel]
    """At most `limit` of them."""
    next: int
    """Give this as `after` for the page that follows; the same as was given where nothing is new."""
    more: bool
    """Whether there is a following page already."""


class PlanModel(Fact):
    """What a run does, and what it is made of."""

    digests: dict[str, str]
    """plan, base, code, adapter -> SHA-256."""
    versions: dict[str, str]
    """Package -> version."""
    settings: dict[str, str | int | float | bool]
    """Every setting."""
    changed: list[str]
    """Settings that are not the default."""
    trained_parameters: int | None
    """Parameters of the adapter."""
    base_parameters: int | None
    """Parameters of the frozen base."""


class ComparedSiteModel(Fact):
    """One site's result in two runs."""

    site: str
    """The site's name."""
    first: float | None
    """Federated macro AUROC on its test studies in the first run."""
    first_interval: Interval | None
    """Its interval."""
    second: float | None
    """The same in the second run."""
    second_interval: Interval | None
    """Its interval."""


class ComparisonModel(Fact):
    """Two runs side by side."""

    first: RunModel
    """The first run."""
    second: RunModel
    """The second run."""
    settings: dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]]
    """Setting -> its two values, where they differ."""
    sites: list[ComparedSiteModel]
    """Results site by site."""
