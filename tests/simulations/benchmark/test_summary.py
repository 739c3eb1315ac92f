"""The summary, the tables and the page: what was tuned, what failed, nothing from elsewhere."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmark.grid import Grid
from simulations.benchmark.page import render, write_page
from simulations.benchmark.results import Found, Result, write_tables
from simulations.benchmark.summary import Summary, summarise, write_summary
from simulations.benchmark.tuning import choose

Invented = Callable[..., Found]
VALUES = {
    (variant, seed, site): 0.6 + 0.1 * (variant == "lora") + 0.01 * seed + 0.02 * (site == "north")
    for variant in ("lora", "head")
    for seed in (0, 1)
    for site in ("north", "south")
}


def summed(grid: Grid, found: Found) -> Summary:
    return summarise("A <tiny> grid", grid, found, lambda cell: Path("nowhere"))


def tuned(found: Found, scores: dict[str, list[float | None]]) -> Found:
    """Give every cell several settings with validation scores of their own, one per seed."""
    several = []
    for cell, result in found:
        for setting, values in scores.items():
            assert isinstance(result, Result)
            validation = values[cell.coordinates["seed"]]
            facts = result.facts.model_copy(update={"validation": validation})
            kept = result.model_copy(update={"facts": facts})
            several.append((replace(cell, tuned={"train.lr": setting}), kept))
    return several


def test_validation_chooses_over_the_seeds_together(invented: Invented) -> None:
    scores: dict[str, list[float | None]] = {"low": [0.9, 0.2], "high": [0.6, 0.7]}
    kept, choices = choose(tuned(invented(VALUES), scores))
    assert {cell.tuned["train.lr"] for cell, _ in kept} == {"high"}
    assert len(kept) == len(invented(VALUES))
    assert [choice.taken for choice in choices] == ["train.lr high"] * 2
    assert choices[0].tried["train.lr low"] == pytest.approx(0.55)


def test_a_setting_that_finished_less_often_is_not_taken(invented: Invented) -> None:
    scores: dict[str, list[float | None]] = {"low": [0.9, None], "high": [0.6, 0.5]}
    kept, _ = choose(tuned(invented(VALUES), scores))
    assert {cell.tuned["train.lr"] for cell, _ in kept} == {"high"}


def test_a_line_tells_the_worst_site_and_the_cost(grid: Grid, invented: Invented) -> None:
    lora, head = summed(grid, invented(VALUES)).lines
    assert lora.label == "lora" and lora.seeds == 2 and not lora.failed
    assert lora.worst == ("south", pytest.approx(0.705))
    assert (lora.trained_parameters, lora.bytes_up) == (10, 1000) and head.bytes_up == 9000


def test_a_mean_over_fewer_sites_is_named(grid: Grid, invented: Invented) -> None:
    assert not summed(grid, invented(VALUES)).at_fewer_sites
    fewer = {key: value for key, value in VALUES.items() if key[0] == "lora" or key[2] == "north"}
    summary = summed(grid, invented(fewer))
    assert summary.at_fewer_sites == (("head", ("south",)),)
    assert "head: not at south" in " ".join(render(summary).split())


def test_a_variant_that_shows_a_fault_is_not_counted(grid: Grid, invented: Invented) -> None:
    def held_against(told: Grid) -> list[str]:
        return [outcome.contrast.name for outcome in summed(told, invented(VALUES)).against_reference]

    assert held_against(grid) == ["lora"]
    assert held_against(grid.model_copy(update={"cautions": ("lora",)})) == []


def test_the_table_holds_every_row_and_every_failure(tmp_path: Path, invented: Invented) -> None:
    values = {key: value for key, value in VALUES.items() if key[:2] != ("lora", 1)}
    write_tables(invented(values, extra=[("lora", 1)]), tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len(rows) == len(values) + 1
    (failed,) = [row for row in rows if row["code"]]
    assert (failed["variant"], failed["seed"], failed["code"], failed["auroc"]) == (
        "lora",
        "1",
        "E_TARGET",
        "",
    )
    told = {(r["variant"], int(r["seed"]), r["site"]): float(r["auroc"]) for r in rows if not r["code"]}
    assert told == pytest.approx(values)
    records = json.loads((tmp_path / "table.json").read_text())
    assert [r["cell"] for r in records] == [r["cell"] for r in rows]


def test_the_summary_is_json_with_the_sentences(tmp_path: Path, grid: Grid, invented: Invented) -> None:
    write_summary(summed(grid, invented(VALUES)), tmp_path)
    told = json.loads((tmp_path / "summary.json").read_text())
    (row, against) = told["contrasts"]
    assert row["difference"]["value"] == pytest.approx(0.1) and row["wins"] == 4
    assert against["name"] == "lora"
    assert row["sentence"].startswith("LoRA against head: AUROC +0.100")


class _Addresses(HTMLParser):
    """Collects every address a page names, and every script."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag in ("script", "iframe", "object", "link", "img")
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full_page(grid: Grid, invented: Invented) -> str:
    """A page with all of its parts."""
    arms = {"calibrated": 0.01, "temperature": 0.03}
    found: list[Any] = []
    values = {key: value for key, value in VALUES.items() if key[:2] != ("lora", 1)}
    for cell, result in invented(values, extra=[("lora", 1)]):
        if isinstance(result, Result):
            more = tuple(
                row.model_copy(update={"arm": arm, "pooled_ece": ece})
                for row in result.rows
                for arm, ece in arms.items()
            )
            result = result.model_copy(
                update={"rows": (*result.rows, *more), "incidents": ("north in round 1: E_NORM",)}
            )
        for shots in (0, 4):
            coordinates = {
                "variant": cell.coordinates["variant"],
                "data.shots": shots,
                "seed": cell.coordinates["seed"],
            }
            found.append((replace(cell, coordinates=coordinates, digest=f"{cell.digest}-{shots}"), result))
    published = [
        {"what": "Theirs", "value": "0.9", "source": "arXiv 1", "ours": {"variant": "lora", "data.shots": 4}},
        {"what": "Nothing of ours", "value": "0.8", "source": "arXiv 2"},
    ]
    told = grid.model_dump() | {"axes": {"data.shots": [0, 4]}, "published": published}
    return render(summed(Grid.model_validate(told), found))


def test_the_page_stands_alone(grid: Grid, invented: Invented) -> None:
    page = full_page(grid, invented)
    parser = _Addresses()
    parser.feed(page)
    assert parser.scripts == 0
    assert all(address.startswith("#") for address in parser.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_page_tells_all_of_it(grid: Grid, invented: Invented) -> None:
    page = full_page(grid, invented)
    parser = _Addresses()
    parser.feed(page)
    text = " ".join(" ".join(parser.text).split())
    assert "A <tiny> grid" in text and "<tiny>" not in page
    for part in (
        "Which is better?", "What failed", "E_TARGET", "E_NORM", "LoRA against head: AUROC +0.100",
        "Wins and losses against head", "Calibration before and after", "Theirs beside ours", "arXiv 2",
        "AUROC against bytes", "pigeonhole bootstrap", "lora wins 2 of 2 pairs",
    ):  # fmt: skip
        assert part in text, part
    assert "Other ways of training" not in text  # scaled probabilities rank studies as before
    assert page.count("<svg") == 5  # contrasts, reference, shots, bytes, calibration
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_a_grid_of_which_nothing_finished_still_has_a_page(
    grid: Grid, invented: Invented, tmp_path: Path
) -> None:
    failed = [(variant, seed) for variant in ("lora", "head") for seed in (0, 1)]
    page = write_page(summed(grid, invented({}, extra=failed)), tmp_path).read_text()
    assert "0 of 4 cells finished" in " ".join(page.split())
    assert "<svg" not in page
