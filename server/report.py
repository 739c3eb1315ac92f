"""Write a run's report: ``report.json`` for programs, ``report.html`` for people.

The page is one file that runs no script and loads nothing; it can be mailed, printed and archived.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import READABLE, write_atomic
from common.page import templates_in
from common.protocol import SAME_RANKING
from server import report_words as words
from server.report_schema import Arm, FindingResult, Report

FLOAT_BYTES = 4
"""Full fine-tuning is taken to send float32."""


@dataclass(frozen=True)
class Cost:
    """What one site sends in one round, and how many times this run's update that is."""

    name: str
    bytes: int
    ratio: float | None


@dataclass(frozen=True)
class ThumbnailCell:
    """The model's AUROC beside a thumbnail's; near where it does not clearly beat it."""

    model: float | None
    thumbnail: float | None
    interval: tuple[float, float] | None
    near: bool


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``; return the page's path.

    Each file appears whole or not at all. The JSON comes first, so a page that cannot be drawn
    never costs the numbers; `read_report` and `write_report` make the page from it later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.json", to_json(report).encode(), READABLE)
    page = folder / "report.html"
    write_atomic(page, render(read_report(folder / "report.json")).encode(), READABLE)
    return page


def to_json(report: Report) -> str:
    """Return the report as JSON, keys sorted: the same report is the same text."""
    content = report.model_dump(mode="json", by_alias=True)
    return json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path) -> Report:
    """Read a ``report.json``.

    Raises:
        pydantic.ValidationError: if it is not a report of the schema's version.
    """
    return Report.model_validate_json(path.read_text(encoding="utf-8"))


def render(report: Report) -> str:
    """Return the page as HTML; every text of the report is escaped."""
    environment = templates_in(Path(__file__).parent / "templates")
    environment.filters.update(_FILTERS)
    return environment.get_template("report.html.j2").render(_view(report))


_FILTERS: dict[str, Callable[..., Any]] = {
    "number": words.number,
    "signed": words.signed,
    "between": words.between,
    "between_signed": lambda interval: words.between(interval, words.signed),
    "size": words.size,
    "count": lambda n: f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,}",
    "ratio": lambda value: f"{value:,.0f}×" if value >= 10 else f"{value:.2f}×",
    "words": lambda finding: finding.replace("_", " "),
}


def _view(report: Report) -> dict[str, Any]:
    """Gather what the templates show beside the report itself."""
    from server import report_figures as figures
    from server import report_further as further
    from server import report_heatmaps as heatmaps
    from server import report_spread as spread
    from server.report_facts import aggregation_of, matrix_of, reliabilities_of
    from server.report_pooled import calibration_rows
    from server.report_reliability import reliability_plot
    from server.report_text import text_answer, text_arms, text_rows

    aggregation = aggregation_of(report)
    rows = words.by_gain(report)
    many = len(rows) > spread.MANY
    subject = "federated" if "federated" in report.arms else next(iter(report.arms), "")
    worse = sorted(report.worse_sites, key=lambda entry: entry.finding != words.MACRO)
    return {
        "report": report,
        "headline": words.headline(report),
        "counted": words.counted,
        "findings": words.shown_findings(report),
        "certain": [entry for entry in worse if entry.certain],
        "noise": [entry for entry in worse if not entry.certain],
        "flags": words.chance_flags(report),
        "questions": further.questions(report),
        **{name: further.comparison_of(report, *pair) for name, pair in further.NAMED.items()},
        "work": words.equal_work(report),
        "events": words.incidents(report),
        "committed": sum(part.status == "committed" for part in report.rounds),
        "cohort": list(dict.fromkeys(site for part in report.rounds for site in part.cohort)),
        "rows": rows,
        "columns": {name: arm for name, arm in report.arms.items() if name not in SAME_RANKING},
        "many": many,
        "pair": [name for name in ("local", "federated") if name in report.arms] or list(report.arms)[:2],
        "details": {site: _details(report, site) for site in rows},
        "costs": costs(report),
        "calibrations": calibration_rows(report),
        "text_rows": text_rows(report),
        "text_arms": text_arms(report),
        "text_answer": text_answer(report),
        "subject": subject,
        "thumbnails": _thumbnails(report, report.arms.get(subject)),
        "figures": {
            "forest": figures.forest_plot(report),
            "findings": spread.findings_plot(report) if many else figures.finding_plot(report),
            "curves": spread.curves_plot(report) if many else figures.training_curves(report),
            "lora": figures.lora_error_curve(report),
            "matrix": heatmaps.matrix_plot(matrix_of(report)),
            "reliability": reliability_plot(reliabilities_of(report)),
            "aggregation": heatmaps.aggregation_plot(aggregation),
            "drift": heatmaps.drift_plot(aggregation),
        },
    }


def costs(report: Report) -> list[Cost]:
    """Compare one site's upload in one round with full fine-tuning's."""
    sent = report.bytes
    full = sent.full_model_per_site_round
    name = "Full fine-tuning"
    if full is None:
        full = FLOAT_BYTES * report.model.parameters
        name += f" ({FLOAT_BYTES} bytes for each parameter, not measured)"
    payload = sent.payload_per_site_round
    rows = {
        "This run: the update": payload,
        "This run: on the wire": sent.up_per_site_round,
        name: full,
    }
    return [Cost(label, n, n / payload if payload else None) for label, n in rows.items()]


def _details(report: Report, site: str) -> dict[str, dict[str, FindingResult]]:
    """Finding -> arm -> result at one site, for the findings it annotates."""
    annotated = report.sites[site].findings if site in report.sites else None
    table: dict[str, dict[str, FindingResult]] = {}
    for finding in words.shown_findings(report):
        results = {
            name: arm.sites[site].findings[finding]
            for name, arm in report.arms.items()
            if site in arm.sites and finding in arm.sites[site].findings
        }
        if results and (annotated is None or finding in annotated):
            table[finding] = results
    return table


def _thumbnails(report: Report, arm: Arm | None) -> dict[str, dict[str, ThumbnailCell]]:
    cells: dict[str, dict[str, ThumbnailCell]] = {}
    for site, baseline in (report.thumbnail_baseline or {}).items():
        results = arm.sites[site].findings if arm and site in arm.sites else {}
        cells[site] = {}
        for finding in words.shown_findings(report):
            model, small = results.get(finding), baseline.get(finding)
            reach = model.interval[0] if model and model.interval else None
            area = small.auroc if small else None
            cells[site][finding] = ThumbnailCell(
                model=model.auroc if model else None,
                thumbnail=area,
                interval=small.interval if small else None,
                near=area is not None and reach is not None and area >= reach,
            )
    return cells
