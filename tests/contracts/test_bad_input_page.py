"""The page on bad input, the closed list of codes and the catalogue that makes them say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.data.reasons import CAUSES
from simulations.phantom.spoil import spoiled_studies
from simulations.phantom.spoil_sites import BROKEN

NOT_ON_PURPOSE = {"memory", "timeout", "crashed"}
"""Codes that no file earns on every machine."""

Table = Mapping[str, list[str]]


@pytest.fixture(scope="module")
def tables(repository: Path) -> list[Table]:
    """The page's tables: code -> the cells that follow it."""
    text = (repository / "docs" / "bad-input.md").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in block.splitlines(True)]
        codes = [row[0].strip("`") for row in rows[2:]]
        assert len(set(codes)) == len(codes)
        found.append({code: row[1:] for code, row in zip(codes, rows[2:], strict=True)})
    return found


@pytest.fixture(scope="module")
def catalogue() -> dict[str, set[str]]:
    """Path -> codes of the rows with that path."""
    codes: dict[str, set[str]] = {}
    for study in spoiled_studies(seed=0, size=64):
        codes.setdefault(study.path, set()).add(study.code)
    return codes


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_code_is_explained_in_its_own_words(tables: list[Table]) -> None:
    studies = tables[0]
    assert list(studies) == list(CAUSES)
    for code, (meaning, _, remedy, counts) in studies.items():
        told = (meaning, remedy, {"yes": True, "no": False}[counts])
        assert told == tuple(CAUSES[code]), code


def test_every_example_earns_its_code(tables: list[Table], catalogue: dict[str, set[str]]) -> None:
    for code, cells in tables[0].items():
        examples = names(cells[1])
        assert all(code in catalogue[path] for path in examples), code
        assert bool(examples) == (code not in NOT_ON_PURPOSE), code
    spoiled = set().union(*catalogue.values())
    assert spoiled == {"", *CAUSES} - NOT_ON_PURPOSE


def test_every_broken_site_is_an_example_of_its_code(tables: list[Table]) -> None:
    told = {case: code for code, cells in tables[1].items() for case in names(cells[1])}
    assert told == {case: code for case, (code, _, _) in BROKEN.items()}
