"""A grid becomes cells: every combination once, exceptions, what is tuned; mistakes are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.errors import ConfigError
from server.centre.plan_file import read_plan
from simulations.benchmark.cells import Cell, expand
from simulations.benchmark.grid import load_grid
from simulations.benchmark.shared_sites import place_of
from simulations.experiment import load_experiments

GridFile = Callable[..., Path]


def cells_of(file: Path, *assignments: str) -> list[Cell]:
    return expand(*load_grid(str(file), assignments))


def test_every_variant_meets_every_value_of_every_axis_with_every_seed(grid_file: GridFile) -> None:
    axes = {"data.fraction": [0.5, 1.0], "data": {"image_size": [32, 48]}}
    cells = cells_of(grid_file(benchmark={"axes": axes}))
    points = {tuple(cell.coordinates.values()) for cell in cells}
    assert len(cells) == len(points) == len({c.digest for c in cells}) == 2 * 2 * 2 * 2
    for cell in cells:
        experiment, at = cell.experiment, cell.coordinates
        assert experiment.pet.method == at["variant"]
        assert (experiment.data.fraction, experiment.data.image_size) == (
            at["data.fraction"],
            at["data.image_size"],
        )
        assert experiment.seed == at["seed"]
        assert experiment.train.lr == 0.01


def test_a_key_may_be_written_dotted_or_nested(grid_file: GridFile) -> None:
    nested = cells_of(grid_file(benchmark={"variants": {"lora": {"pet": {"method": "lora", "rank": 3}}}}))
    dotted = cells_of(grid_file(benchmark={"variants": {"lora": {"pet": {"method": "lora"}, "pet.rank": 3}}}))
    assert [cell.digest for cell in nested] == [cell.digest for cell in dotted]


def test_exceptions_set_and_leave_out(grid_file: GridFile) -> None:
    when = [
        {"cells": {"variant": "lora", "data.fraction": 0.5}, "set": {"pet.rank": 1}},
        {"cells": {"variant": "head", "data.fraction": [0.5]}, "leave_out": True},
    ]
    cells = cells_of(grid_file(benchmark={"axes": {"data.fraction": [0.5, 1.0]}, "when": when}))
    ranks = {(c.coordinates["variant"], c.coordinates["data.fraction"]): c.experiment.pet.rank for c in cells}
    assert ranks == {("lora", 0.5): 1, ("lora", 1.0): 2, ("head", 1.0): 2}


def test_what_is_tuned_is_tried_for_its_variant_alone(grid_file: GridFile) -> None:
    cells = cells_of(grid_file(benchmark={"tune": {"lora": {"train.lr": [1e-3, 1e-2]}}}))
    tried = [
        (c.coordinates["variant"], dict(c.tuned), c.experiment.train.lr)
        for c in cells
        if not c.experiment.seed
    ]
    assert tried == [
        ("lora", {"train.lr": 1e-3}, 1e-3),
        ("lora", {"train.lr": 1e-2}, 1e-2),
        ("head", {}, 0.01),
    ]


def test_a_cell_is_named_by_what_it_is_not_by_what_it_is_called(grid_file: GridFile) -> None:
    before = [cell.digest for cell in cells_of(grid_file())]
    renamed = {"other": {"pet": {"method": "lora"}}}
    file = grid_file(title="another title", benchmark={"variants": renamed, "question": "Why?"})
    names = {cell.coordinates["variant"]: cell.digest for cell in cells_of(file) if not cell.experiment.seed}
    assert names["other"] == names["lora"] == before[0]
    assert cells_of(file, "rounds.count=2")[0].digest != before[0]


def test_cells_share_sites_unless_they_describe_them_differently(grid_file: GridFile, tmp_path: Path) -> None:
    axes = {"data.fraction": [0.5, 1.0], "data.shots": [0, 2]}
    shared = {place_of(cell.experiment, tmp_path) for cell in cells_of(grid_file(benchmark={"axes": axes}))}
    assert len(shared) == 1
    axes = {"sites.north.phantom.studies": [40, 50]}
    assert len({place_of(c.experiment, tmp_path) for c in cells_of(grid_file(benchmark={"axes": axes}))}) == 2


def test_seeds_deal_a_partition_anew(tmp_path: Path, grid_file: GridFile) -> None:
    tree = {"partition": {"sites": 2, "source": {"phantom": {"studies": 40}}}, "benchmark": {"question": "?"}}
    file = tmp_path / "dealt.toml"
    file.write_text(tomli_w.dumps(tree))
    assert len({place_of(cell.experiment, tmp_path) for cell in cells_of(file, "benchmark.seeds=[3,4]")}) == 2


def test_a_grid_begins_with_another_and_an_assignment_wins(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file()
    tree = {"extends": "grid", "benchmark": {"extends": "grid", "question": "Again?"}}
    (tmp_path / "second.toml").write_text(tomli_w.dumps(tree))
    grid, experiment = load_grid(str(tmp_path / "second.toml"), ["benchmark.seeds=[7]"])
    assert (grid.question, grid.seeds, grid.reference) == ("Again?", (7,), "head")
    assert set(experiment.sites) == {"north", "south"}


@pytest.mark.parametrize(
    ("wrong", "problem", "fix"),
    [
        ({"questoin": "?"}, "unknown key 'benchmark.questoin'", "did you mean 'benchmark.question'?"),
        ({"tune": {"lroa": {"train.lr": [1e-3]}}}, "tune: there is no 'lroa'; did you mean 'lora'?", ""),
        ({"reference": "full"}, "reference: there is no 'full'", ""),
        ({"cautions": ["leak"]}, "cautions: there is no 'leak'", ""),
        ({"axes": {"data.fraction": 0.5}}, "data.fraction needs a list of values", ""),
        ({"axes": {"data.fraction": [0.5, 0.5]}}, "data.fraction lists a value twice", ""),
        ({"axes": {"data.fractoin": [0.5]}}, "unknown key 'data.fractoin'", "did you mean 'data.fraction'?"),
        ({"seeds": []}, "benchmark.seeds", ""),
        ({"when": [{"cells": {"arm": "local"}}]}, "there is no 'arm'", ""),
        (
            {"contrasts": [{"name": "x", "first": {"variant": "lora"}, "second": {}, "by": ["data.shots"]}]},
            "there is no 'data.shots'",
            "",
        ),
        (
            {"contrasts": [{"name": "x", "first": {"variant": "full"}, "second": {}}]},
            "contrast 'x': there is no 'full'",
            "",
        ),
    ],
)
def test_a_mistake_is_named(grid_file: GridFile, wrong: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells_of(grid_file(benchmark=wrong))
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_an_experiment_without_a_grid_says_so() -> None:
    with pytest.raises(ConfigError, match="holds no grid"):
        load_grid("demo")


def test_a_grid_is_also_an_experiment_and_a_plan(grid_file: GridFile) -> None:
    file = grid_file()
    (experiment,) = load_experiments(str(file)).values()
    assert experiment.benchmark["reference"] == "head"
    assert "benchmark" not in json.dumps(experiment.run_config(2).to_flat())
    assert "benchmark" in read_plan(file).left_out
