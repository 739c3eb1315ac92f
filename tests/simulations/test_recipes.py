"""The recipes: every cell of every grid is a model that can be built, with the published settings in it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from client.site import load_site
from common.errors import TableError
from common.pet.budget import trained_parameters
from simulations.benchmark.cells import expand
from simulations.benchmark.grid import load_grid
from simulations.experiment import load_experiments, shipped
from simulations.prepare import prepare_sites
from simulations.run import run_series
from simulations.view import View

RECIPES = sorted(name for name in shipped() if name.startswith("recipe_"))


def cells(recipe):
    """The cells of one seed: the settings are the same with every seed."""
    grid, experiment = load_grid(recipe)
    return [cell for cell in expand(grid, experiment) if cell.coordinates["seed"] == grid.seeds[0]]


def test_there_is_one_for_each_paper_whose_settings_are_known():
    assert RECIPES == [
        "recipe_chexdragon",
        "recipe_medpeft_chexpert",
        "recipe_medpeft_nih",
        "recipe_medpeft_rsna",
        "recipe_prognosis",
        "recipe_tpp",
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_cell_s_model_can_be_built(recipe):
    """On the meta device: its backbone, size, method, targets and scope go together."""
    seen = {}
    for cell in cells(recipe):
        experiment = cell.experiment
        key = (experiment.model.backbone, experiment.pet, experiment.model.drop_path)
        if key not in seen:
            seen[key] = trained_parameters(experiment.run_config(4))
        assert seen[key] > len(experiment.data.findings)
    assert seen


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_needs_and_where_it_differs(recipe):
    head = shipped()[recipe].read_text().split("\ntitle =")[0]
    assert "arXiv" in head or "recipe_medpeft_nih.toml" in head
    assert "Needed under data.root" in head
    assert "Different here" in head or "settings are not published" in head


# ---------------------------------------------------------------------- MED-PEFT

MRM, MAE = "vit-b16-mrm", "vit-b16-mae"
PUBLISHED = {
    "nih": {
        MRM: {0.01: (4, 0.05), 0.1: (8, 0.05), 1.0: (32, 0.2)},
        MAE: {0.01: (4, 3e-3 / 4), 0.1: (8, 1e-3 / 4), 1.0: (32, 3e-3 / 4)},
    },
    "chexpert": {
        MRM: {0.01: (4, 0.02), 0.1: (16, 0.05), 1.0: (32, 0.01)},
        MAE: {0.01: (4, 3e-3 / 4), 0.1: (8, 5e-3 / 4), 1.0: (32, 3e-3 / 4)},
    },
    "rsna": {
        MRM: {0.01: (4, 0.01), 0.1: (32, 0.01), 1.0: (32, 0.01)},
        MAE: {0.01: (4, 3e-3 / 4), 0.1: (8, 5e-3 / 4), 1.0: (32, 5e-3 / 4)},
    },
}
"""Data set, weights, share of the labels -> rank and learning rate; MAE's times 64 / 256 (RL4M/MED-PEFT)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_med_peft_s_ranks_and_learning_rates(name):
    found = {MRM: {}, MAE: {}}
    for cell in cells(f"recipe_medpeft_{name}"):
        if cell.coordinates["variant"] == "lora":
            at = cell.coordinates["model.backbone"], cell.coordinates["data.fraction"]
            found[at[0]][at[1]] = (cell.experiment.pet.rank, pytest.approx(cell.experiment.train.lr))
            assert (cell.experiment.model.backbone, cell.experiment.data.fraction) == at
    assert found == PUBLISHED[name]


def test_med_peft_s_counts_on_nih():
    counts = {
        cell.coordinates["data.fraction"]: trained_parameters(cell.experiment)
        for cell in cells("recipe_medpeft_nih")
        if cell.coordinates["variant"] == "lora" and cell.coordinates["model.backbone"] == MRM
    }
    assert counts == {0.01: 159_758, 0.1: 307_214, 1.0: 1_191_950}


def test_med_peft_s_optimisers_follow_the_weights():
    for cell in cells("recipe_medpeft_nih"):
        experiment, train = cell.experiment, cell.experiment.train
        assert (train.batch_size, train.min_lr, train.grad_clip) == (64, 1e-6, 0)
        assert train.warmup * experiment.rounds.count == pytest.approx(5)
        assert (experiment.lora.alpha, experiment.lora.dropout, experiment.model.drop_path) == (32, 0.1, 0.1)
        if experiment.model.backbone == MRM:
            assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 0)
            assert experiment.rounds.count == (100 if experiment.pet.method == "lora" else 200)
            assert experiment.model.weights.endswith("MRM.safetensors")
        else:
            assert (train.optimizer, train.weight_decay) == ("adamw", 0.05)
            assert experiment.model.weights.endswith("CXR_MAE.safetensors")


# ---------------------------------------------------------------------- the others


def test_the_prognosis_benchmark_s_settings():
    (experiment,) = load_experiments("recipe_prognosis").values()
    assert (experiment.lora.alpha, experiment.lora.dropout) == (1, 0.1)
    assert experiment.train.warmup * experiment.rounds.count == 50
    assert (experiment.rounds.count, experiment.rounds.patience) == (1000, 100)
    assert (experiment.train.schedule, experiment.train.plateau_patience) == ("plateau", 25)
    assert experiment.train.class_weights == "federated"
    assert experiment.pet.targets == ("qkv", "fc1", "fc2")
    grid, _ = load_grid("recipe_prognosis")
    assert grid.tune["dinov2 lora"]["pet.rank"] == (4, 8, 16)
    for cell in cells("recipe_prognosis"):
        assert cell.experiment.train.lr == (1e-5 if cell.experiment.pet.method == "full" else 1e-4)


def test_pretraining_moves_what_the_papers_say():
    (tpp,) = load_experiments("recipe_tpp").values()
    assert (tpp.pretrain.task, tpp.pretrain.parameters) == ("masked-image", "adapter")
    (dragon,) = load_experiments("recipe_chexdragon").values()
    assert (dragon.pretrain.task, dragon.pretrain.parameters) == ("image-text", "encoder")
    probes = {
        cell.coordinates["variant"]: cell.experiment.rounds.probe for cell in cells("recipe_chexdragon")
    }
    assert probes == {"fine-tune": 0, "lp-ft": 10, "dapt": 0, "dapt-lp-ft": 10}


# ---------------------------------------------------------------------- on a public set's layout


@pytest.fixture
def nih(tmp_path):
    """NIH ChestX-ray14 as published, 48 patients of it, 32 px."""
    root = tmp_path / "nih"
    (root / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    head = [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Sex",
        "View Position",
    ]
    with (root / "Data_Entry_2017_v2020.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(head)
        for patient in range(1, 49):
            name = f"{patient:08d}_000.png"
            found = ["No Finding", "Effusion", "Effusion|Mass", "Atelectasis"][patient % 4]
            rows.writerow([name, found, 0, patient, 50, "M", "PA"])
            picture = generator.integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(picture).save(root / "images" / name)
    return root


def test_a_recipe_deals_a_public_set_out_to_its_sites(nih, tmp_path):
    (experiment,) = load_experiments("recipe_medpeft_nih", [f"data.root={nih}"]).values()
    files = prepare_sites(experiment, tmp_path / "run")
    assert sorted(files) == ["site-1", "site-2", "site-3", "site-4"]
    assert all(load_site(file).data.root == nih for file in files.values())
    (elsewhere,) = load_experiments("recipe_medpeft_rsna", [f"data.root={nih}"]).values()
    with pytest.raises(TableError, match="rsna"):
        prepare_sites(elsewhere, tmp_path / "other")


@pytest.mark.slow
def test_a_recipe_runs_small(nih, tmp_path):
    """Everything but the size is the recipe's: SGD, Q and V, fedex, the norm, stochastic depth."""
    small = {
        "data.root": nih,
        "data.fraction": 1.0,
        "data.image_size": 32,
        "model.backbone": "timm:test_vit",
        "model.pool": "avg",
        "model.weights": '""',
        "rounds.count": 2,
        "evaluate.replicates": 20,
        "partition.sites": 2,
    }
    described = load_experiments("recipe_medpeft_nih", [f"{key}={value}" for key, value in small.items()])
    run_series(described, tmp_path / "run", engine="inline", resume=False, view=View("quiet"))
    released = load_file(tmp_path / "run" / "release" / "adapter_model.safetensors")
    assert any(".qkv.lora_A." in name for name in released)
    assert "base_model.model.fc_norm.weight" in released
