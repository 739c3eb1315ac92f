"""The report's part on reports as input: what they alone give away, beside what the model scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from common.config import RunConfig
from common.protocol import FEDERATED, WITHOUT
from server.report_run import Interval, Name, Part, Share

if TYPE_CHECKING:
    from server.report_schema import Report


class TextSite(Part):
    """What the text of one site's reports says of the labels, without any image."""

    reports: NonNegativeInt
    """Studies with a report."""
    auroc: Share | None
    """Macro AUROC of the leak probe over `findings`; `null`: too few reports to tell."""
    interval: Interval | None
    """95 % patient-bootstrap interval of `auroc`."""
    findings: dict[Name, Share]
    """Finding to the probe's AUROC."""


class TextPart(Part):
    """How reports were read, and the leak probe."""

    encoder: Name
    """Text encoder, for example `embedded`."""
    fusion: Name
    """How text met image."""
    towers: Name
    """Which encoders were adapted: `vision`, `text` or `both`."""
    redaction: Name
    """What of the reports was read."""
    probe: dict[Name, TextSite] | None
    """Site to what its text alone gives away; `null` where the probe is run at the sites."""


def text_part(config: RunConfig, probe: Mapping[str, Any] | None) -> TextPart | None:
    """Lay out what the plan reads, and the probe as the ledger has it; None for an image model."""
    if not config.data.text:
        return None
    return TextPart(
        encoder=config.model.text_encoder,
        fusion=config.model.fusion,
        towers=config.pet.towers,
        redaction=config.data.redaction,
        probe=None if probe is None else {site: TextSite(**told) for site, told in probe.items()},
    )


@dataclass(frozen=True)
class TextRow:
    """One site, each figure over the same findings."""

    site: str
    reports: int
    alone: float | None
    interval: tuple[float, float] | None
    arms: tuple[float | None, ...]
    """Macro AUROC of each of `text_arms`."""


def text_arms(report: Report) -> list[str]:
    """Return the arms that stand beside the probe."""
    return [name for name in (FEDERATED, *WITHOUT.values()) if name in report.arms]


def text_rows(report: Report) -> list[TextRow]:
    """Lay the probe beside the model, site by site."""
    probe = report.text.probe if report.text and report.text.probe else {}
    arms = text_arms(report)
    return [
        TextRow(
            site=site,
            reports=told.reports,
            alone=told.auroc,
            interval=told.interval,
            arms=tuple(_macro(report, arm, site, list(told.findings)) for arm in arms),
        )
        for site, told in sorted(probe.items())
    ]


def _macro(report: Report, arm: str, site: str, findings: Sequence[str]) -> float | None:
    """Mean AUROC of one arm at a site over the findings the probe could measure."""
    measured = report.arms[arm].sites.get(site)
    if measured is None:
        return None
    known = (measured.findings[name].auroc for name in findings if name in measured.findings)
    areas = [area for area in known if area is not None]
    return fsum(areas) / len(areas) if areas else None


def text_answer(report: Report) -> str:
    """Say in a sentence what the probe means for the model's score; empty where it cannot be told."""
    pairs = [
        (row.alone, row.arms[0])
        for row in text_rows(report)
        if row.alone is not None and row.arms and row.arms[0] is not None
    ]
    if not pairs or FEDERATED not in report.arms:
        return ""
    alone = fsum(a for a, _ in pairs) / len(pairs)
    model = fsum(m for _, m in pairs if m is not None) / len(pairs)
    figures = f"Text alone, a bag of words without any image, reaches {alone:.3f}; the model {model:.3f}."
    if alone >= model:
        return f"{figures} So it shows nothing of what is seen in images: the reports give away as much."
    if alone >= TELLING:
        return f"{figures} A part of that is what reports give away of labels that were read from them."
    return f"{figures} The text that was read says little of the labels: the score is the images'."


TELLING = 0.6
"""Macro AUROC of text alone from which a model's score is in part the text's."""
