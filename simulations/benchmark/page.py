"""Write a benchmark's page: one file that runs no script and loads nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from common.files import READABLE, write_atomic
from common.page import templates_in
from server.report_words import between, counted, number, signed, size
from simulations.benchmark import figures
from simulations.benchmark.cells import label
from simulations.benchmark.contrasts import FEDERATED
from simulations.benchmark.grid import METRIC_WORDS
from simulations.benchmark.summary import Summary, calibrations
from simulations.benchmark.words import method, sentence, spoken, tally

FILE = "benchmark.html"


def write_page(summary: Summary, folder: Path) -> Path:
    """Write ``benchmark.html`` into ``folder``; return its path."""
    page = folder / FILE
    write_atomic(page, render(summary).encode(), READABLE)
    return page


def render(summary: Summary) -> str:
    """Return the page as HTML; every text is escaped."""
    environment = templates_in(Path(__file__).parent / "templates")
    environment.filters.update(
        {
            "number": number,
            "signed": signed,
            "size": size,
            "between_signed": lambda interval: between(interval, signed),
            "count": lambda n: f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,}",
            "spoken": spoken,
            "sentence": sentence,
            "at": lambda coordinates: label(coordinates),
        }
    )
    return environment.get_template("benchmark.html.j2").render(_view(summary))


def _view(summary: Summary) -> dict[str, Any]:
    grid = summary.grid
    css = (files("server") / "templates" / "report.css").read_text(encoding="utf-8")
    told = [row for row in summary.outcomes if row.difference is not None]
    return {
        "summary": summary,
        "grid": grid,
        "css": css,
        "metric": METRIC_WORDS[grid.metric],
        "words": METRIC_WORDS,
        "counted": counted,
        "tone": _tone([row.verdict for row in told]),
        "tally": tally(summary.against_reference) if summary.against_reference else "",
        "method": method(len(grid.seeds), len(summary.sites), grid.replicates),
        "federated": FEDERATED,
        "calibrated": [(line, calibrations(line)) for line in summary.lines if calibrations(line)],
        "figures": {
            "contrasts": figures.forests(summary.outcomes),
            "reference": figures.forest(summary.against_reference, "reference"),
            "frontier": figures.frontier(summary),
            "curves": figures.curves(summary),
            "calibration": figures.calibration(summary),
        },
    }


def _tone(verdicts: list[str]) -> str:
    kinds = set(verdicts) - {"unclear"}
    return "mixed" if len(kinds) > 1 else kinds.pop() if kinds else "unclear"
