"""The work that the quickstart pattern, our simulation and a bare loop all do; ``python -m`` does it once.

No run finds what another has computed: the caches of frozen activations on disk are emptied first, and
nothing stays in memory. Image files are decoded beforehand, for all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors.torch import save_file

from client.data.dataset import SiteData, load_site_data
from client.evaluate import macro_auroc, predict
from client.prefix_cache import StudyInputs, activations_place
from client.site import load_site
from client.train import masked_bce, train_round
from common.adapter import AdapterState
from common.config import RunConfig
from common.model.base import load_base
from common.model.build import CxrModel, build_model
from common.model.product import plain_products
from common.overrides import read_toml
from server.checkpoint import read
from server.ledger import Ledger
from simulations.experiment import Experiment
from simulations.prepare import prepare_sites
from simulations.run import quiet_libraries

FINDINGS = ("cardiomegaly", "effusion", "consolidation", "edema")
SPLIT = (0.75, 0.2, 0.05)


@dataclass(frozen=True)
class Task:
    """What is trained, on what, for how long."""

    folder: str
    """Where sites, arrays and weights lie."""
    last: int = 12
    """Blocks with LoRA, counted from the end; 0: the head alone is trained."""
    architecture: str = "vit_small_patch16_224"
    blocks: int = 12
    image_size: int = 112
    sites: int = 8
    studies: int = 240
    rounds: int = 10
    epochs: int = 1
    batch: int = 16
    lr: float = 1e-3
    rank: int = 8
    alpha: float = 16.0
    bf16: bool = False
    device: str = "cpu"
    cores: int = 2
    plain: bool = False
    """Whether our products are left to torch's own choice of library, as the pattern's are."""
    seed: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    findings: tuple[str, ...] = FINDINGS

    @property
    def weights(self) -> str:
        """The pretrained network all runs start from."""
        return str(Path(self.folder) / "base.safetensors")

    @property
    def gpus_per_site(self) -> float:
        """What one of the pattern's workers reserves."""
        return 1.0 / self.cores if self.device.startswith("cuda") else 0.0

    def arrays(self, partition: int) -> str:
        """The decoded studies of one site."""
        return str(Path(self.folder) / f"site-{partition}.npz")

    def experiment(self) -> Experiment:
        """Return the same work as an experiment of ours."""
        phantom = {"studies": self.studies, "size": self.image_size, "split": SPLIT}
        head = self.last == 0
        scope = "all" if head or self.last == self.blocks else f"last-{self.last}"
        return Experiment.build(
            {
                "arms": ["federated"],
                "threads": self.cores,
                "seed": self.seed,
                "data": {"findings": list(self.findings), "image_size": self.image_size},
                "model": {"backbone": f"timm:{self.architecture}"},
                "pet": {"method": "head" if head else "lora", "scope": scope, "rank": self.rank},
                "lora": {"alpha": self.alpha},
                "train": {
                    "lr": self.lr,
                    "batch_size": self.batch,
                    "epochs": self.epochs,
                    "schedule": "constant",
                    "grad_clip": 0.0,
                    "precision": "bf16" if self.bf16 else "fp32",
                },
                "rounds": {"count": self.rounds},
                "evaluate": {"local": False, "pooled": False, "replicates": 20},
                "sites": {f"site-{n}": {"phantom": {**phantom, "seed": 100 + n}} for n in range(self.sites)},
            }
        )

    def config(self) -> RunConfig:
        """Return the plan of our run."""
        plan = self.experiment().run_config(self.sites)
        if not Path(self.weights).is_file():
            return plan
        return plan.model_copy(update={"model": plan.model.model_copy(update={"weights": self.weights})})

    def files(self) -> dict[str, Path]:
        """Site -> its site.toml."""
        folder = Path(self.folder) / "sites"
        return {f"site-{n}": folder / f"site-{n}" / "site.toml" for n in range(self.sites)}


@dataclass(frozen=True)
class Outcome:
    """What a run took, and the model it ended with."""

    seconds: float
    loss: float
    """Of the last round's adapter on the validation studies, mean over sites by their number."""
    auroc: float
    steps: float | None = None
    """Share of a worker's time in a training message that went into its steps, where that is known."""


def prepare(task: Task) -> None:
    """Draw the sites, decode their images, and write the base and the decoded arrays."""
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    experiment = task.experiment()
    files = prepare_sites(experiment, Path(task.folder) / "sites")
    config = experiment.run_config(task.sites)
    for number, file in enumerate(files.values()):
        body = read_toml(file)
        body["device"]["name"] = task.device
        file.write_bytes(tomli_w.dumps(body).encode())
        data = load_site_data(load_site(file), config.data, config.seed, config.pretrain)
        arrays: dict[str, Any] = {}
        for split in ("train", "validation"):
            rows = data.split[split]
            arrays |= {f"{split}-pixels": data.pixels[rows], f"{split}-labels": data.labels[rows]}
        np.savez(task.arrays(number), **arrays)
    net, _, _ = load_base(config)
    head = net.pretrained_cfg["classifier"]
    base = {n: t.contiguous() for n, t in net.state_dict().items() if not n.startswith(f"{head}.")}
    save_file(base, task.weights)


def run_ours(task: Task) -> Outcome:
    """Run the whole simulation in this process: plan, rounds with validation, choice, test, report."""
    from client.app import worker_for
    from simulations.engine import run_inline

    _empty_caches(task)
    worker_for.cache_clear()
    config, folder = task.config(), Path(task.folder) / "run"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    with _products(task):
        run_inline(config, task.files(), folder)
    seconds = time.perf_counter() - began
    ledger = Ledger(folder / "ledger.sqlite")
    plan = ledger.get("plan_digest")
    ledger.close()
    final = read(folder / "checkpoints", task.rounds, plan).state
    return Outcome(seconds, *_final(task, build_model(config).to(torch.device(task.device)), final))


def run_bare(task: Task) -> Outcome:
    """Do the same local steps and evaluations in a loop, with a mean of adapters between the rounds."""
    _empty_caches(task)
    config = task.config()
    began = time.perf_counter()
    with _products(task):
        model, state = _local_steps(task, config)
    seconds = time.perf_counter() - began
    return Outcome(seconds, *_final(task, model, state))


def _local_steps(task: Task, config: RunConfig) -> tuple[CxrModel, AdapterState]:
    model = build_model(config).to(torch.device(task.device))
    sites = {name: _studies(task, name, config) for name in task.files()}
    inputs = {
        name: StudyInputs(model, data, config.train, activations_place(load_site(task.files()[name])))
        for name, data in sites.items()
    }
    state = model.initial_state()
    for number in range(1, task.rounds + 1):
        ended = []
        for name, data in sites.items():
            model.load(state)
            predict(model, inputs[name], data.split["validation"])
            ended.append(train_round(model, data, inputs[name], state, number, name).state)
        weights = torch.tensor([len(data.labelled("train")) for data in sites.values()], dtype=torch.float)
        state = AdapterState(_mean([one.tensors for one in ended], weights / weights.sum()), {})
    model.load(state)
    for name, data in sites.items():  # what a simulation measures when the rounds are over
        for split in ("validation", "validation", "test"):
            predict(model, inputs[name], data.split[split])
    return model, state


def _products(task: Task) -> AbstractContextManager[None]:
    return plain_products() if task.plain else nullcontext()


def _studies(task: Task, name: str, config: RunConfig) -> SiteData:
    return load_site_data(load_site(task.files()[name]), config.data, config.seed, config.pretrain)


def _mean(states: list[dict[str, torch.Tensor]], weights: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        name: torch.einsum("s,s...->...", weights, torch.stack([state[name] for state in states]))
        for name in states[0]
    }


def _empty_caches(task: Task) -> None:
    for file in task.files().values():
        shutil.rmtree(activations_place(load_site(file)).folder, ignore_errors=True)


def _final(task: Task, model: CxrModel, state: AdapterState) -> tuple[float, float]:
    """Return loss and mean AUROC of an adapter on the sites' validation studies."""
    model.load(state)
    losses, scores, sizes = [], [], []
    for name in task.files():
        data = _studies(task, name, model.config)
        rows = data.split["validation"]
        said = predict(model, StudyInputs(model, data, model.config.train), rows)
        logits = torch.logit(torch.from_numpy(said).double())
        losses.append(float(masked_bce(logits, torch.from_numpy(data.labels[rows]).double(), None)))
        scores.append(macro_auroc(said, data.labels[rows]) or 0.5)
        sizes.append(len(rows))
    return float(np.average(losses, weights=sizes)), float(np.average(scores, weights=sizes))


def _run_pattern(task: Task) -> Outcome:
    from simulations.benchmarks.quickstart_pattern import run_pattern

    return run_pattern(task)


RUNS: Mapping[str, Callable[[Task], Outcome]] = {"ours": run_ours, "bare": run_bare, "pattern": _run_pattern}


def _warm_up(kinds: Sequence[str], cores: int) -> None:
    """Do a tiny task first: importing is not counted, as it is not of the pattern's workers."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = Task(folder, 2, "test_vit", 6, image_size=32, sites=2, rounds=1, studies=40, cores=cores)
        prepare(tiny)
        for kind in kinds:
            RUNS[kind](tiny)


def main() -> None:
    """Do the work of the task in one file in the ways named, one after the other; write to another file."""
    source, target, *kinds = sys.argv[1:]
    told = json.loads(Path(source).read_text(encoding="utf-8"))
    tuples: dict[str, Any] = {name: tuple(told[name]) for name in ("mean", "std", "findings")}
    task = Task(**{**told, **tuples})
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet_libraries()
    torch.set_num_threads(task.cores)
    if "pattern" not in kinds:
        _warm_up(kinds, task.cores)
    outcomes = {kind: asdict(RUNS[kind](task)) for kind in kinds}
    Path(target).write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
