"""What a cell found: figures by arm, site and finding, and what they cost; kept in ``result.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, NonNegativeInt, ValidationError

from common.files import READABLE, write_atomic
from server.report_run import Part
from server.report_schema import Report, SiteResult
from simulations.benchmark.cells import Cell
from simulations.benchmark.grid import Metric

RESULT = "result.json"
"""A cell is finished when this file is there: it is written last."""
FAILURE = "failure.json"
MACRO = "macro"
"""The row of a site's mean over its findings."""
METRICS: tuple[str, ...] = get_args(Metric)
P = TypeVar("P", bound=Part)


class Row(Part):
    """One finding, or the mean over them, at one site under one arm. ``null`` is undefined."""

    arm: str
    site: str
    finding: str
    auroc: float | None = None
    pr_auc: float | None = None
    prevalence: float | None = None
    mcc: float | None = None
    ece: float | None = None
    pooled_ece: float | None = None
    brier: float | None = None
    positives: NonNegativeInt | None = None
    negatives: NonNegativeInt | None = None


class Facts(Part):
    """What a cell cost, and how it went."""

    trained_parameters: NonNegativeInt
    """Parameters training moves."""
    parameters: NonNegativeInt
    """Of the whole model."""
    bytes_up: NonNegativeInt
    """From all sites to the server, over the whole run."""
    bytes_down: NonNegativeInt
    """From the server to all sites."""
    payload: NonNegativeInt
    """Bytes of one site's update in one round."""
    rounds: NonNegativeInt
    """Committed."""
    seconds: Annotated[float, Field(ge=0)]
    """Wall time of the rounds; other cells may have run beside it."""
    validation: float | None
    """Best mean validation AUROC of a round, each site by its studies: what tuning goes by."""
    adapter_sha256: str | None
    """Of the released adapter."""


class Result(Part):
    """A finished cell."""

    digest: str
    title: str
    plan_digest: str
    facts: Facts
    incidents: tuple[str, ...]
    """Rounds that were abandoned, and sites that were missing or refused in one."""
    rows: tuple[Row, ...]


class Failure(Part):
    """A cell that could not be finished."""

    digest: str
    title: str
    code: str
    problem: str
    fix: str = ""


def result_of(report: Report, digest: str) -> Result:
    """Lay a run's report out as rows."""
    return Result(
        digest=digest,
        title=report.title,
        plan_digest=report.plan_digest,
        facts=Facts(
            trained_parameters=report.pet.trained_parameters,
            parameters=report.model.parameters,
            bytes_up=report.bytes.up,
            bytes_down=report.bytes.down,
            payload=report.bytes.payload_per_site_round,
            rounds=sum(r.status == "committed" for r in report.rounds),
            seconds=round(fsum(r.seconds for r in report.rounds), 1),
            validation=_validation(report),
            adapter_sha256=report.adapter_sha256,
        ),
        incidents=tuple(_incidents(report)),
        rows=tuple(
            row
            for name, arm in report.arms.items()
            for site, result in arm.sites.items()
            for row in _rows(name, site, result)
        ),
    )


def _rows(arm: str, site: str, result: SiteResult) -> Iterator[Row]:
    figures: list[dict[str, Any]] = []
    for finding, found in result.findings.items():
        figures.append({key: getattr(found, key, None) for key in Row.model_fields if key in _FIGURES})
        counts = {"positives": found.positives, "negatives": found.negatives}
        yield Row(arm=arm, site=site, finding=finding, **figures[-1], **counts)
    means: dict[str, Any] = {key: _mean([figure[key] for figure in figures]) for key in _AVERAGED}
    means |= {"auroc": result.macro_auroc, "pooled_ece": result.pooled_ece}
    yield Row(arm=arm, site=site, finding=MACRO, **means)


_FIGURES = ("auroc", "pr_auc", "prevalence", "mcc", "ece", "brier")
_AVERAGED = ("pr_auc", "prevalence", "mcc", "ece", "brier")


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fsum(defined) / len(defined) if defined else None


def _validation(report: Report) -> float | None:
    studies = {site: part.validation_studies for site, part in report.sites.items()}
    means = []
    for part in report.rounds:
        scores = {site: score for site, score in part.validation_auroc.items() if score is not None}
        total = sum(studies.get(site, 0) for site in scores)
        if total and part.status == "committed":
            means.append(fsum(studies.get(site, 0) * score for site, score in scores.items()) / total)
    return max(means, default=None)


def _incidents(report: Report) -> Iterator[str]:
    for part in report.rounds:
        if part.status != "committed":
            yield f"round {part.round} was abandoned"
        for site in part.missing:
            yield f"{site} did not answer in round {part.round}"
        for site, code in part.rejected.items():
            yield f"{site} in round {part.round}: {code}"


def write_part(part: Part, file: Path) -> None:
    """Write a result or a failure, whole or not at all."""
    write_atomic(file, part.model_dump_json(indent=1).encode(), READABLE)


def read_result(folder: Path) -> Result | None:
    """Return what a cell found, None where it is not finished; a torn or foreign file counts as none."""
    return _read(folder / RESULT, Result)


def read_failure(folder: Path) -> Failure | None:
    """Return why a cell could not be finished, None where nothing went wrong."""
    return _read(folder / FAILURE, Failure)


def _read(file: Path, kind: type[P]) -> P | None:
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


Found = Sequence[tuple[Cell, Result | Failure]]
"""The cells of a grid in its order, each with what became of it."""


def tidy(found: Found) -> list[dict[str, Any]]:
    """Return one record per cell, arm, site and finding; a failed cell is one record with its code."""
    records = []
    for cell, result in found:
        where = {"cell": cell.digest[:12], **cell.coordinates, **cell.tuned}
        where = {key: list(value) if isinstance(value, tuple) else value for key, value in where.items()}
        if isinstance(result, Failure):
            records.append({**where, "code": result.code})
            continue
        facts = result.facts.model_dump(exclude={"adapter_sha256"})
        records += [{**where, "code": "", **row.model_dump(), **facts} for row in result.rows]
    return records


def write_tables(found: Found, folder: Path) -> None:
    """Write ``table.csv`` and ``table.json``; undefined is empty there and ``null`` here."""
    records = tidy(found)
    where = {"cell": None} | {key: None for cell, _ in found for key in (*cell.coordinates, *cell.tuned)}
    columns = list(where | {key: None for record in records for key in record})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _cell_text(value) for key, value in record.items()})
    write_atomic(folder / "table.csv", buffer.getvalue().encode(), READABLE)
    text = json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(folder / "table.json", text.encode(), READABLE)


def _cell_text(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(str, value)) if isinstance(value, list) else value


def macro_rows(result: Result, arm: str) -> Mapping[str, Row]:
    """Return site -> its mean over findings, under one arm."""
    return {row.site: row for row in result.rows if row.arm == arm and row.finding == MACRO}
