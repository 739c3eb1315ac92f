"""The leak probe at every site of a simulation, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.site import load_site
from client.text.plan_probe import probe_of_plan
from common.config import RunConfig
from common.errors import DataError, TableError


def probe_sites(config: RunConfig, files: Mapping[str, Path]) -> dict[str, dict[str, Any]] | None:
    """Return site -> what its reports alone say of the plan's findings; None where the plan reads none.

    A site without reports, or with too few patients, is told as one whose leak cannot be measured.
    """
    if not config.data.text:
        return None
    return {name: _probe(file, config) for name, file in sorted(files.items())}


def _probe(file: Path, config: RunConfig) -> dict[str, Any]:
    try:
        result = probe_of_plan(load_site(file), config)
    except (DataError, TableError):
        return {"reports": 0, "auroc": None, "interval": None, "findings": {}}
    return {
        "reports": result.studies,
        "auroc": result.macro_auroc,
        "interval": result.macro_interval,
        "findings": {name: of.auroc for name, of in result.findings.items() if of.auroc is not None},
    }


def in_words(probe: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what the probe found in a line.

    >>> in_words({"north": {"auroc": 0.71}, "south": {"auroc": None}})
    'text alone, without any image: macro AUROC 0.710 at north, not measurable at south'
    """
    told = [
        f"{'not measurable' if of['auroc'] is None else format(of['auroc'], '.3f')} at {site}"
        for site, of in probe.items()
    ]
    return "text alone, without any image: macro AUROC " + ", ".join(told)
