"""Sites are laid out once for all cells that describe them alike: images drawn and decoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from simulations.experiment import Experiment, ExperimentData
from simulations.prepare import prepare_sites


def place_of(experiment: Experiment, folder: Path) -> Path:
    """Return the folder of an experiment's sites within ``folder``, by all that decides what lies in it.

    Neither a share of the labels nor image size does: sites hold every study as its file is.
    """
    tree = experiment.model_dump(mode="json", include={"sites", "partition", "threads"})
    tree["data"] = _canonical(experiment).data.model_dump(mode="json")
    if experiment.partition is not None:
        tree["seed"] = experiment.seed
    return folder / hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def shared_sites(experiment: Experiment, folder: Path) -> Mapping[str, Path]:
    """Return site -> site.toml within ``folder``, laid out by whichever cell came first.

    Raises:
        ConfigError, DataError: as `prepare_sites`.
    """
    return prepare_sites(_canonical(experiment), place_of(experiment, folder))


def lay_out(experiments: Iterable[Experiment], folder: Path) -> None:
    """Lay out the sites of all, so that cells which run side by side find them.

    Raises:
        ConfigError, DataError: as `prepare_sites`.
    """
    for experiment in {place_of(one, folder): one for one in experiments}.values():
        shared_sites(experiment, folder)


def _canonical(experiment: Experiment) -> Experiment:
    data = experiment.data
    kept = ExperimentData(root=data.root, findings=data.findings, clinical=data.clinical)
    seed = experiment.seed if experiment.partition is not None else 0
    return experiment.model_copy(update={"data": kept, "seed": seed})
