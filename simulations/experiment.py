"""An experiment: a RunConfig and the sites to simulate, read from a TOML file of overrides."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.config import RunConfig
from common.errors import ConfigError, closest
from common.overrides import merge, parse_assignment, read_toml, set_key
from common.sections import DataConfig, Findings, Positive, Section, comma_list
from simulations.faults import Fault
from simulations.partition import Scheme
from simulations.phantom.modality import Modality

Arm = Literal["local", "federated", "pooled", "held-out"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ExperimentData(DataConfig):
    """What is learnt, and on this machine where from."""

    root: str = ""
    """Folder that the sites' tables, model.weights and model.text_weights are relative to."""


class PhantomSpec(Section):
    """A site made of procedural radiographs."""

    studies: Annotated[int, Field(ge=10, le=1_000_000)] = 300
    """Studies drawn."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000_000)] = 0
    """Seed of its patients; seeds from 1,000,000,000 on belong to pretraining."""
    scanner: str = "reference"
    """Preset of ``simulations.phantom.scanner``."""
    size: Annotated[int, Field(ge=32, le=1024)] = 96
    """Side of the stored images in pixels."""
    findings: Findings | None = None
    """Findings this site annotates; absent: all the phantoms have."""
    prevalence: dict[str, Share] = Field(default_factory=dict)
    """Finding -> share of studies with it; absent: the default population's."""
    severity: Share = 0.5
    """Mean severity of a finding that is present."""
    age: Annotated[float, Field(ge=18, le=95)] = 58.0
    """Mean age in years."""
    ap: Share = 0.4
    """Share of AP views."""
    label_noise: Share = 0.0
    """Share of labels flipped."""
    missing_labels: Share = 0.0
    """Share of labels left empty."""
    format: Literal["png", "dicom"] = "png"
    """How images are stored."""
    split: tuple[Share, Share, Share] = (0.7, 0.1, 0.2)
    """Shares of patients for train, validation and test."""
    unlabelled: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Pictures of further patients without labels, for pretraining alone; 0: it uses the training studies."""
    unlabelled_modality: Modality = "chest"
    """What they show: ``chest``, ``ultrasound``, ``microscopy``, or ``shuffled``, radiographs cut up."""


class SiteSpec(Section):
    """One simulated site: phantoms, or a table of real studies as a site.toml describes it."""

    phantom: PhantomSpec | None = None
    site: dict[str, Any] | None = None
    """The body of a site.toml; ``data.table`` and ``data.root`` relative to the experiment's root."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.phantom is None) == (self.site is None):
            raise ValueError("give either phantom or site")
        return self


class PartitionSpec(Section):
    """Many sites dealt out of one table."""

    source: SiteSpec
    """The whole."""
    scheme: Scheme = "iid"
    """``iid``, ``dirichlet`` (over label combinations), ``quantity`` or ``column``."""
    sites: Annotated[int, Field(ge=2, le=10_000)] = 4
    """Number of sites."""
    dirichlet_alpha: Positive = 0.5
    """Concentration: smaller is more unequal."""
    column: str = ""
    """Column of the table to divide by."""


class Experiment(RunConfig):
    """Everything ``fedcxr-simulate run`` needs."""

    title: str = "A simulated federation"
    """Heads the report."""
    description: str = ""
    """One paragraph for the report."""
    data: ExperimentData = ExperimentData()
    sites: dict[str, SiteSpec] = Field(default_factory=dict)
    """Site -> where its studies come from."""
    partition: PartitionSpec | None = None
    arms: Annotated[tuple[Arm, ...], BeforeValidator(comma_list)] = ("local", "federated", "pooled")
    """What is compared."""
    thumbnail_baseline: bool = False
    """Also fit logistic regression to 32 x 32 thumbnails at every site."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads per site; 0: all cores this process may use, which under the Ray engine as many workers as
    memory allows divide. Both engines give the same bits with the same number."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs per site under the Ray engine, for example 0.25: four sites share one; 0: as many sites to a GPU
    as its memory holds."""
    stack: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Sites trained in one pass over their stacked adapters, for many small sites; 0: one by one. For the
    inline engine; equal to one by one but for rounding."""
    faults: tuple[Fault, ...] = ()
    """Sites that misbehave on purpose; for the inline engine."""
    benchmark: dict[str, Any] = Field(default_factory=dict)
    """The grid ``fedcxr-simulate benchmark`` makes of this experiment; see simulations/benchmark/grid.py.
    A single run leaves it aside."""

    @model_validator(mode="after")
    def _has_sites(self) -> Self:
        if bool(self.sites) == (self.partition is not None):
            raise ValueError("give either [sites.NAME] tables or a [partition]")
        if "federated" not in self.arms:
            raise ValueError("arms must include 'federated'")
        return self

    def run_config(self, sites: int) -> RunConfig:
        """Return what travels: the same values without anything about this machine."""
        tree = {name: getattr(self, name) for name in RunConfig.model_fields}
        root = Path(self.data.root).expanduser()
        found = {
            name: str((root / named).resolve())
            for name in ("weights", "text_weights")
            if (named := getattr(self.model, name)) and not Path(named).exists() and (root / named).exists()
        }
        if found:
            tree["model"] = self.model.model_copy(update=found)
        tree["data"] = DataConfig(**self.data.model_dump(exclude={"root"}))
        tree["rounds"] = self.rounds.model_copy(update={"sites": sites})
        local = self.evaluate.local and "local" in self.arms
        alone = {"local": local, "matrix": self.evaluate.matrix and local}
        tree["evaluate"] = self.evaluate.model_copy(update=alone)
        return RunConfig(**tree)


def shipped() -> dict[str, Path]:
    """Return the experiments that come with the package, by name."""
    folder = files("simulations") / "experiments"
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".toml")}


def load_experiments(name: str, assignments: Sequence[str] = ()) -> dict[str, Experiment]:
    """Read an experiment by file or shipped name and lay ``key=value`` assignments on top.

    A file may be a ``series`` of others beside it, and may extend another beside it by
    ``extends``. Returns name -> experiment, one entry but for a series.

    Raises:
        ConfigError: if there is no such file or name, or a key or value is wrong.
    """
    path = find_experiment(name)
    tree = read_toml(path)
    over: dict[str, Any] = {}
    for text in assignments:
        key, value = parse_assignment(text)
        set_key(over, key, value)
    names = tree.get("series") or [path.stem]
    members = [path.parent / f"{member}.toml" for member in names] if "series" in tree else [path]
    return {member.stem: Experiment.build(merge(_with_base(member), over)) for member in members}


def _with_base(path: Path) -> dict[str, Any]:
    tree = read_toml(path)
    base = tree.pop("extends", None)
    return merge(_with_base(path.parent / f"{base}.toml"), tree) if base else tree


def find_experiment(name: str) -> Path:
    """Return the file of an experiment, by file or shipped name.

    Raises:
        ConfigError: if there is no such file or name.
    """
    path, known = Path(name), shipped()
    if path.is_file():
        return path
    if path.stem in known and path.suffix in ("", ".toml"):
        return known[path.stem]
    raise ConfigError(
        f"there is no experiment {name!r}",
        found=", ".join(sorted(known)),
        fix=closest(name, known) or "give a TOML file or one of the names found",
    )
