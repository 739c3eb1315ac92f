"""The grids of the five papers: they expand, their models can be built, and theirs stays theirs."""

from __future__ import annotations

import pytest

from common.model.build import build_model
from common.phase import trained_count
from server.strategies.strategy import check_strategy
from simulations.benchmark.cells import Cell, expand
from simulations.benchmark.grid import Grid, load_grid
from simulations.experiment import shipped

PAPERS = {
    "paper_multimodal": "2512.21508",
    "paper_chexdragon": "2305.08017",
    "paper_tpp": "2408.15011",
    "paper_prognosis": "2506.18434",
    "paper_medpeft": "2401.12215",
}
GRIDS = sorted(name for name in shipped() if name.startswith("paper_"))


def loaded(name: str) -> tuple[Grid, list[Cell]]:
    grid, experiment = load_grid(name)
    return grid, expand(grid, experiment)


def test_every_paper_has_a_grid() -> None:
    assert set(PAPERS) <= set(GRIDS)
    assert all(any(name.startswith(paper) for paper in PAPERS) for name in GRIDS)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_asks_with_three_seeds_and_names_what_was_published(name: str) -> None:
    grid, cells = loaded(name)
    assert len(grid.seeds) == 3 and grid.question.endswith("?") and grid.contrasts and grid.reference
    (paper,) = [number for start, number in PAPERS.items() if name.startswith(start)]
    assert grid.published and any(paper in theirs.source for theirs in grid.published)
    variants = {cell.coordinates["variant"] for cell in cells}
    assert variants == set(grid.variants)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAPERS))
def test_every_model_of_a_grid_can_be_built(name: str) -> None:
    _, cells = loaded(name)
    first = {(c.coordinates["variant"], c.experiment.pet.rank): c for c in cells}
    for cell in first.values():
        config = cell.experiment.run_config(3)
        check_strategy(config)
        assert trained_count(build_model(config).schema, config) > 0


@pytest.mark.slow
def test_the_multimodal_grid_compares_at_an_equal_budget() -> None:
    _, cells = loaded("paper_multimodal")
    trained = {}
    for cell in cells:
        config = cell.experiment.run_config(3)
        if cell.experiment.seed == 0 and cell.experiment.pet.method in ("lora", "adapter"):
            trained[cell.label] = trained_count(build_model(config).schema, config)
    assert len(trained) == 4
    assert max(trained.values()) / min(trained.values()) < 1.01
