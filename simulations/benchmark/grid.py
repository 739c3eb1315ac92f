"""The grid: what an experiment's ``[benchmark]`` table asks to be run and compared.

    [benchmark]
    question = "Does LoRA beat full fine-tuning when labels are few?"
    seeds = [0, 1, 2]
    [benchmark.axes]
    "data.fraction" = [0.1, 1.0]
    [benchmark.variants.lora]
    pet = { method = "lora", rank = 8 }
    [benchmark.variants.full]
    pet = { method = "full" }
    [benchmark.tune.full]
    "train.lr" = [1e-4, 1e-3]
    [[benchmark.contrasts]]
    name = "LoRA against full fine-tuning"
    first = { variant = "lora" }
    second = { variant = "full" }
    by = ["data.fraction"]

Every variant runs at every value of every axis with every seed. What ``tune`` lists is tried too, and the
value with the best validation stands for the variant, so that no method loses by the other's settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator

from common.errors import ConfigError, closest
from common.overrides import merge, read_toml
from common.sections import Section
from simulations.experiment import Experiment, find_experiment, load_experiments

Metric = Literal["auroc", "pr_auc", "mcc", "ece", "pooled_ece", "brier"]
"""Of a site: the mean over its findings, or ``pooled_ece`` over all its label decisions."""
LOWER_IS_BETTER: frozenset[str] = frozenset({"ece", "pooled_ece", "brier"})
METRIC_WORDS: Mapping[str, str] = {
    "auroc": "AUROC",
    "pr_auc": "PR-AUC",
    "mcc": "MCC",
    "ece": "ECE",
    "pooled_ece": "pooled ECE",
    "brier": "Brier score",
}
VARIANT, SEED, ARM = "variant", "seed", "arm"
"""Coordinates beside the axes; the last is not of a cell but of a model within it."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values, whether they were written ``"a.b" = 1`` or ``a = { b = 1 }``.

    >>> dict(flat({"pet": {"rank": 4}, "data.fraction": 0.1}))
    {'pet.rank': 4, 'data.fraction': 0.1}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in flat(tree)}


def _values(tree: dict[str, Any]) -> dict[str, Any]:
    listed = _dotted(tree)
    for key, values in listed.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{key} needs a list of values, for example [1, 2]")
        if len({repr(value) for value in values}) != len(values):
            raise ValueError(f"{key} lists a value twice")
    return {key: tuple(values) for key, values in listed.items()}


Overrides = Annotated[dict[str, Any], AfterValidator(_dotted)]
Axes = Annotated[dict[str, Any], AfterValidator(_values)]
Filter = Annotated[dict[str, Any], AfterValidator(_dotted)]
"""Coordinate -> the value it must have, or a list of values."""


class When(Section):
    """What is different for some cells, for example a rank for each share of the labels."""

    cells: Filter
    """Which cells."""
    set: Overrides = Field(default_factory=dict)
    """Overrides for them."""
    leave_out: bool = False
    """They are not run."""


class Contrast(Section):
    """A question of the grid: is the first better than the second?"""

    name: str
    """Heads its row."""
    first: Filter
    """Cells, and the arm within them (default ``federated``)."""
    second: Filter
    """What they are held against; paired by every coordinate that neither filter names."""
    metric: Metric = "auroc"
    """What is compared."""
    by: tuple[str, ...] = ()
    """Axes that get a row for each value; over the others is averaged."""


class Published(Section):
    """A figure of a paper: theirs, shown beside ours and never mixed with it."""

    what: str
    """What they measured, on what."""
    value: str
    """As they give it."""
    source: str
    """Where it stands."""
    ours: Filter = Field(default_factory=dict)
    """Cells of this grid that come closest; empty: none does."""
    metric: Metric = "auroc"
    """What of them is shown."""


class Grid(Section):
    """An experiment's ``[benchmark]`` table."""

    extends: str = ""
    """Experiment whose ``[benchmark]`` this one begins with."""
    question: str
    """What the grid is to answer."""
    about: str = ""
    """Where the question comes from, and how this grid departs from it."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0, 1, 2)
    """Each cell is run once with each."""
    axes: Axes = Field(default_factory=dict)
    """Key -> values; every combination is run."""
    variants: dict[str, Overrides] = Field(default_factory=dict)
    """Name -> overrides."""
    tune: dict[str, Axes] = Field(default_factory=dict)
    """Variant -> key -> values, of which the best on validation stands for the variant."""
    when: tuple[When, ...] = ()
    """Exceptions, in order."""
    reference: str = ""
    """Variant that the others are held against; empty: none is."""
    cautions: tuple[str, ...] = ()
    """Variants that show a fault, a leak for instance: never counted against the reference."""
    metric: Metric = "auroc"
    """What the figures show."""
    contrasts: tuple[Contrast, ...] = ()
    """Questions of the grid."""
    published: tuple[Published, ...] = ()
    """Figures of others."""
    replicates: Annotated[PositiveInt, Field(ge=50, le=20_000)] = 1000
    """Bootstrap replicates behind every interval."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for name in self.tune:
            self._known(name, self.variants, "tune")
        if self.reference:
            self._known(self.reference, self.variants, "reference")
        for name in self.cautions:
            self._known(name, self.variants, "cautions")
        coordinates = self.coordinates()
        for place, filters in self._filters():
            for chosen in filters:
                for key, value in chosen.items():
                    known = (*coordinates, ARM) if "contrast" in place else coordinates
                    self._known(key, known, place)
                    if key == VARIANT:
                        for name in value if isinstance(value, list | tuple) else (value,):
                            self._known(name, self.variants, place)
        for contrast in self.contrasts:
            for key in contrast.by:
                self._known(key, self.axes, f"contrast {contrast.name!r}: by")
        return self

    def _filters(self) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
        for exception in self.when:
            yield "when", (exception.cells,)
        for contrast in self.contrasts:
            yield f"contrast {contrast.name!r}", (contrast.first, contrast.second)
        for published in self.published:
            yield f"contrast with the published {published.what!r}", (published.ours,)

    @staticmethod
    def _known(name: str, known: Mapping[str, Any] | Sequence[str], place: str) -> None:
        if name not in known:
            hint = closest(name, list(known)) or f"known here: {', '.join(known) or 'none'}"
            raise ValueError(f"{place}: there is no {name!r}; {hint}")

    def coordinates(self) -> tuple[str, ...]:
        """Return the names of a cell's coordinates."""
        return (*((VARIANT,) if self.variants else ()), *self.axes, SEED)


def load_grid(name: str, assignments: Sequence[str] = ()) -> tuple[Grid, Experiment]:
    """Read a grid and the experiment it varies, ``key=value`` assignments on top.

    Raises:
        ConfigError: if there is no such file or name, it holds no grid, or a key or value is wrong.
    """
    described = load_experiments(name, assignments)
    if len(described) != 1:
        raise ConfigError(f"{name} is a series", found=", ".join(described), fix="name one of them")
    (experiment,) = described.values()
    if not experiment.benchmark:
        raise ConfigError(
            f"{name} holds no grid", fix="add a [benchmark] table, or run it with fedcxr-simulate run"
        )
    tree = _with_base(experiment.benchmark, find_experiment(name).parent)
    try:
        return Grid.model_validate(tree), experiment
    except ValidationError as error:
        raise _explained(error) from None


def _with_base(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    base = tree.get("extends")
    if not base:
        return dict(tree)
    file = folder / f"{base}.toml"
    other = read_toml(file).get("benchmark")
    if not isinstance(other, dict):
        raise ConfigError(f"benchmark.extends: {file.name} holds no grid", found=str(base))
    return merge(_with_base(other, folder), {key: value for key, value in tree.items() if key != "extends"})


def _explained(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = ".".join(("benchmark", *(str(part) for part in first["loc"])))
    if first["type"] == "extra_forbidden":
        known = [f"benchmark.{field}" for field in Grid.model_fields]
        return ConfigError(f"unknown key {key!r}", fix=closest(key, known))
    if first["type"] == "missing":
        return ConfigError(f"{key} is missing", fix=f"set {key}")
    text = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{key}: {text[0].lower()}{text[1:]}")
