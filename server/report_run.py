"""The report's parts on what was run: model, PET method, bytes, rounds, sites."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"expected low <= high, got {interval}")
    return interval


Name = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Part(BaseModel):
    """A frozen piece of the report that knows its fields and takes no others."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
    )


class ModelPart(Part):
    """The frozen model that the adapter belongs to."""

    backbone: Name
    """Name of the architecture."""
    image_size: NonNegativeInt
    """Side of the square input in pixels."""
    parameters: NonNegativeInt
    """Number of parameters, frozen ones included."""


class PetPart(Part):
    """What was trained at the sites."""

    method: Name
    """PET method, for example `lora`."""
    trained_parameters: NonNegativeInt
    """Number of parameters a site trains."""
    trained_share: Share
    """Trained parameters over all parameters."""
    aggregation: Name
    """Rule by which the server combines updates, for example `fedit`."""


class BytesPart(Part):
    """What crossed the network in the whole run, and what other ways would have cost."""

    up: NonNegativeInt
    """Bytes from all sites to the server."""
    down: NonNegativeInt
    """Bytes from the server to all sites."""
    up_per_site_round: NonNegativeInt
    """Mean bytes one site sent in one round, message overhead included."""
    payload_per_site_round: NonNegativeInt
    """Of these, the bytes of the update itself."""
    full_model_per_site_round: NonNegativeInt | None = None
    """What one site would send in one round with full fine-tuning; `null`: not measured, the page
    shows 4 bytes for every parameter."""
    images: NonNegativeInt | None = None
    """What moving every site's images to one place would have sent, once; `null`: not known."""


class RoundPart(Part):
    """One server round."""

    round: NonNegativeInt
    """Number of the round, from 1."""
    status: Literal["committed", "abandoned"]
    """`abandoned`: below quorum at the deadline, the adapter stayed as it was."""
    cohort: tuple[Name, ...]
    """Sites asked."""
    returned: tuple[Name, ...]
    """Sites whose update was admitted."""
    missing: tuple[Name, ...]
    """Sites that did not answer before the deadline."""
    rejected: dict[Name, Name]
    """Site to error code: it answered, and nothing of it touched the model."""
    lora_error: Annotated[float, Field(ge=0)] | None
    """Relative aggregation error of the factors, ||M - BA|| / ||M||; `null` where it does not
    apply."""
    loss: dict[Name, float]
    """Site to mean training loss of the round."""
    validation_auroc: dict[Name, Share | None]
    """Site to macro AUROC on its validation studies."""
    seconds: Seconds
    """Wall time of the round."""
    up: NonNegativeInt
    """Bytes from sites to server in this round."""
    down: NonNegativeInt
    """Bytes from server to sites in this round."""


class SitePart(Part):
    """What one site brought."""

    train_studies: NonNegativeInt
    """Studies trained on."""
    validation_studies: NonNegativeInt
    """Studies for choosing thresholds and stopping."""
    test_studies: NonNegativeInt
    """Studies every arm is measured on."""
    patients: NonNegativeInt
    """Patients in the three splits; none is in two."""
    findings: tuple[Name, ...]
    """Findings this site annotates."""
    quarantined: dict[Name, NonNegativeInt]
    """Error code to number of studies set aside before training."""
