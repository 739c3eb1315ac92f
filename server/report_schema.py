"""The schema of ``report.json``: what a run found, in a shape other programs can rely on.

Documented field by field in ``docs/report-schema.md``, which a test holds to this module. A field
may be added with a default under the same version; any other change is a new version.
Undefined is ``null``, never a chance level; every number is finite.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, NonNegativeInt, PositiveInt, model_validator

from server.report_aggregation import AggregationPart, DriftPart
from server.report_matrix import MatrixCell, MatrixFigure, MatrixRow
from server.report_personal import PersonalPart, PersonalSite
from server.report_pooled import PooledArea, PooledArm, PooledFinding
from server.report_run import (
    BytesPart,
    Interval,
    ModelPart,
    Name,
    Part,
    PetPart,
    RoundPart,
    Share,
    SitePart,
)
from server.report_text import TextPart, TextSite
from server.report_worse import Loss, WorseSite

__all__ = [
    "ARM_ORDER",
    "SCHEMA",
    "AggregationPart",
    "Arm",
    "BaselineResult",
    "BinResult",
    "BytesPart",
    "Comparison",
    "DriftPart",
    "FindingResult",
    "Gap",
    "Loss",
    "MatrixCell",
    "MatrixFigure",
    "MatrixRow",
    "ModelPart",
    "PersonalPart",
    "PersonalSite",
    "PetPart",
    "PooledArea",
    "PooledArm",
    "PooledFinding",
    "Report",
    "RoundPart",
    "SitePart",
    "SiteResult",
    "TextPart",
    "TextSite",
    "WorseSite",
    "WorstSite",
]

SCHEMA = "fedcxr.report/1"
ARM_ORDER = ("local", "federated", "pooled")


class BaselineResult(Part):
    """AUROC of one finding with its support."""

    auroc: Share | None
    """Area under the ROC curve, ties as one half; `null`: undefined or suppressed."""
    interval: Interval | None
    """95 % patient-bootstrap interval of `auroc`."""
    positives: NonNegativeInt
    """Test studies with the finding; 0 where suppressed."""
    negatives: NonNegativeInt
    """Test studies annotated without the finding; 0 where suppressed."""


class BinResult(Part):
    """Studies of similar predicted probability; a site tells of no bin with a small cell."""

    studies: PositiveInt
    """Test studies in the bin."""
    positives: NonNegativeInt
    """Of these, studies with the finding."""
    mean: Share
    """Mean predicted probability; calibrated, it is `positives` / `studies`."""

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.positives > self.studies:
            raise ValueError(f"{self.positives} positives of {self.studies} studies")
        return self


class FindingResult(BaselineResult):
    """One finding at one site under one arm."""

    pr_auc: Share | None
    """Average precision; its chance level is `prevalence`."""
    prevalence: Share | None
    """Share of annotated test studies with the finding."""
    ece: Share | None
    """Expected calibration error by the definition *per finding*, 15 bins."""
    brier: Share | None
    """Mean squared error of the probability."""
    bins: tuple[BinResult, ...] = ()
    """Points of the reliability diagram, by mean probability; empty: suppressed, or not told."""
    mcc: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Matthews' correlation at the threshold that is best on the site's validation studies; the
    threshold stays at the site."""


class SiteResult(Part):
    """One site under one arm."""

    studies: NonNegativeInt
    """Test studies measured."""
    macro_auroc: Share | None
    """Mean AUROC over the findings defined at this site."""
    interval: Interval | None
    """95 % patient-bootstrap interval of `macro_auroc`."""
    pooled_ece: Share | None
    """Expected calibration error by the definition *pooled*, over all label decisions."""
    findings: dict[Name, FindingResult]
    """Finding to its result."""


class WorstSite(Part):
    """The site an arm serves worst."""

    site: Name
    """Name of the site."""
    auroc: Share
    """Its macro AUROC."""


class Arm(Part):
    """One way of training, measured at every site on the same test studies."""

    description: str
    """What was done, in a sentence."""
    local_steps: dict[Name, NonNegativeInt]
    """Site to optimiser steps taken on its studies; a fair comparison has them equal."""
    site_mean_auroc: Share | None
    """Plain mean of the sites' macro AUROC: each site counts once."""
    interval: Interval | None
    """95 % interval of `site_mean_auroc`, sites taken as independent."""
    worst_site: WorstSite | None
    """Site with the lowest macro AUROC; `null` where none is defined."""
    sites: dict[Name, SiteResult]
    """Site to its result."""


class Gap(Part):
    """A paired difference in AUROC, candidate minus reference."""

    difference: float
    """Above 0 the candidate is better."""
    interval: Interval
    """95 % interval of `difference`."""


class Comparison(Part):
    """Candidate against reference on the same patients."""

    candidate: Name
    """Arm that is judged, for example `federated`."""
    reference: Name
    """Arm it is judged against, for example `local`."""
    site_mean: Gap
    """Mean over the sites in `sites`."""
    sites: dict[Name, Gap]
    """Site to the difference of its macro AUROC."""


class Report(Part):
    """The report of one run."""

    schema_: Literal["fedcxr.report/1"] = Field(default="fedcxr.report/1", alias="schema")
    """Name and version of this schema."""
    title: Name
    """Title of the report."""
    created: AwareDatetime
    """When the report was made, ISO 8601 with a time zone."""
    plan_digest: Name
    """SHA-256 of the plan."""
    code_digest: Name
    """SHA-256 of the code every site ran."""
    base_digest: Name
    """SHA-256 of the frozen model."""
    versions: dict[Name, str]
    """Package to version."""
    model: ModelPart
    """The frozen model."""
    pet: PetPart
    """What was trained."""
    bytes: BytesPart
    """Network cost."""
    rounds: tuple[RoundPart, ...]
    """The rounds in order."""
    sites: dict[Name, SitePart]
    """Site to what it brought."""
    arms: dict[Name, Arm]
    """Arm to its results: `local`, `federated`, `pooled`, then others."""
    comparison: Comparison | None
    """Federated minus local; `null` where one of them is absent or nothing is defined."""
    worse_sites: tuple[WorseSite, ...]
    """Where federated scores below local, worst first."""
    thumbnail_baseline: dict[Name, dict[Name, BaselineResult]] | None
    """Site to finding to what logistic regression on a 32 x 32 thumbnail reaches; `null`: not
    run."""
    adapter_sha256: Name | None
    """SHA-256 of the released adapter file; `null` where none was released."""
    notes: tuple[str, ...]
    """Remarks for the reader, shown as they are."""
    matrix: tuple[MatrixRow, ...] | None = None
    """Every model at every site; `null` where the plan did not ask for it (`evaluate.matrix`)."""
    aggregation: AggregationPart | None = None
    """How the last mean was made, and how far the adapter went; `null` where the ledger does not say."""
    further: tuple[Comparison, ...] = ()
    """Personalised against federated and local, held-out against local and federated, as far as there
    are such arms."""
    losses: tuple[Loss, ...] = ()
    """Where a candidate of `further` scores below its reference; worst first within each pair."""
    personal: PersonalPart | None = None
    """How the sites made the released adapter their own; `null` where the plan did not ask for it."""
    text: TextPart | None = None
    """How reports were read, and what they alone give away; `null` for a model of images alone."""
    left_out: tuple[MatrixRow, ...] | None = None
    """The model without each site, at every site; `null` where no site was left out."""
    pooled: dict[Name, PooledArm] | None = None
    """Arm to how it ranks all sites' test studies together; `null` where no site told
    (`evaluate.pooled`)."""

    @model_validator(mode="before")
    @classmethod
    def _in_order(cls, data: object) -> object:
        """Bring arms and worse sites into their order, whatever order a file has them in."""
        if not isinstance(data, dict):
            return data
        arms, worse = data.get("arms"), data.get("worse_sites")
        if isinstance(arms, dict):
            first = [name for name in ARM_ORDER if name in arms]
            names = first + sorted(name for name in arms if name not in ARM_ORDER)
            data = {**data, "arms": {name: arms[name] for name in names}}
        if isinstance(worse, (list, tuple)):
            parts = [WorseSite.model_validate(entry) for entry in worse]
            data = {**data, "worse_sites": sorted(parts, key=lambda entry: entry.difference)}
        return data

    @model_validator(mode="after")
    def _compares_what_was_measured(self) -> Self:
        for comparison in (*([self.comparison] if self.comparison else []), *self.further):
            for name in (comparison.reference, comparison.candidate):
                if name not in self.arms:
                    raise ValueError(f"comparison names the arm {name!r}; arms are {list(self.arms)}")
                unmeasured = set(comparison.sites) - set(self.arms[name].sites)
                if unmeasured:
                    raise ValueError(f"comparison at {sorted(unmeasured)}, not measured under {name!r}")
        return self
