"""SiteConfig: what a site says about itself in ``site.toml``, checked before anything is read.

    name = "north"
    [data]
    table = "studies.csv"
    [labels]
    effusion = "Pleural_Effusion"

Every other key has a default. Paths, names and devices come from here and never from a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from client.data.facts import BurnedIn
from common.clinical import VARIABLES, canonical_variable
from common.errors import ConfigError, LabelError, closest
from common.findings import CHEXPERT_5, FINDINGS, Uncertainty, canonical
from common.overrides import read_toml, shortened
from common.sections import Redaction

Value = str | int | float
Layout = Literal[
    "table", "folder", "nih", "chexpert", "mimic", "padchest", "vindr", "rsna", "siim", "openi", "covid"
]
Join = Literal["study", "accession", "patient", "instance", "file"]


def _several(value: object) -> object:
    return value if isinstance(value, (list, tuple)) else (value,)


Values = Annotated[tuple[Value, ...], BeforeValidator(_several)]


def _beside_the_file(value: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", ".")) / value


def _listed(value: object) -> object:
    """Take ``any`` for all views, and one view for a list of one."""
    if isinstance(value, str):
        return () if value.lower() == "any" else (value,)
    return value


Beside = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path relative to the file that names it."""
Views = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Views kept; empty: any."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(_Part):
    """``[data]``: where the studies are and how they are divided."""

    layout: Layout = "table"
    """table: one row per image. folder: every image under root, facts from the DICOM header.
    Else a public set as published, under root."""
    table: Beside | None = None
    """CSV or Parquet, relative to site.toml: one row per image; for a folder, its labels."""
    join: Join = "study"
    """What a folder's files and its table have in common, named in [columns]."""
    root: Beside = Field(default=Path(), validate_default=True)
    """Folder the images lie under; paths in the table are relative to it."""
    cache: Beside = Field(default=Path("cache"), validate_default=True)
    """Decoded pixels, and what frozen parts of a model make of them: patient data, stays here."""
    activations_limit: Annotated[float, Field(ge=0)] = 20.0
    """GB of the cache that outputs of frozen parts may take; those used longest ago go first. 0: none."""
    state: Beside = Field(default=Path("state"), validate_default=True)
    """What the site keeps between rounds: local baseline, personal parts."""
    views: Views = ("PA", "AP")
    """Views kept, as the table or the DICOM tag spells them; empty (or "any") keeps all."""
    burned_in: BurnedIn = "refuse"
    """BurnedInAnnotation of a DICOM file. refuse: YES is set aside; require-no: whatever is not NO."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The site stops when a larger share of its studies cannot be used."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of patients for train, validation and test."""
    split_seed: StrictInt = 0
    """Another seed is another split; the same seed is the same split for ever."""

    @field_validator("split")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or value[0] == 0 or not math.isclose(sum(value), 1.0, abs_tol=1e-6):
            raise ValueError("shares must be 0 or more, train above 0, and add up to 1")
        return value

    @model_validator(mode="after")
    def _a_table_where_one_is_read(self) -> Self:
        if self.layout == "table" and self.table is None:
            raise ValueError("data.table is missing; set it, or data.layout to what there is instead")
        if self.layout not in ("table", "folder") and self.table is not None:
            raise ValueError(f"the {self.layout} layout brings its own tables: leave data.table out")
        return self

    @property
    def source(self) -> str:
        """What messages call the table."""
        return self.table.name if self.table else f"the {self.layout} layout"


class ColumnsConfig(_Part):
    """``[columns]``: what the table calls things. A default that the table lacks is not used."""

    path: str = "path"
    """Image file, relative to data.root; required."""
    patient: str = "patient"
    """Whatever tells patients apart; required, never leaves the site."""
    study: str = "study"
    """Groups the images of one examination."""
    view: str = "view"
    """PA, AP, ...; where empty, a DICOM file's own tag is read."""
    age: str = "age"
    """Years, or a DICOM age string such as 045Y."""
    sex: str = "sex"
    """M or F; anything else is unknown."""
    split: str = "split"
    """train, validation (val, valid) or test: a split already made, used instead of ours."""
    accession: str = "accession"
    """Accession Number, to join a folder with its table."""
    instance: str = "instance"
    """SOP Instance UID, to join a folder with its table."""
    file: str = "file"
    """File name, to join a folder with its table."""
    report: str = "report"
    """Free text, whole, with or without headings."""
    indication: str = "indication"
    """Free text of the request."""
    findings_text: str = "findings"
    """Free text of the description."""
    impression: str = "impression"
    """Free text of the conclusion."""


class LabelSource(_Part):
    """One label: a column of 1, 0, -1 and empty, or a column of words sorted into two lists."""

    column: str
    """Column of the table."""
    positive: Values = ()
    """Values that mean present."""
    negative: Values = ()
    """Values that mean absent; any other value means not annotated."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if bool(self.positive) != bool(self.negative):
            raise ValueError("give both positive and negative values, or neither")
        shared = set(self.positive) & set(self.negative)
        if shared:
            raise ValueError(f"{min(map(str, shared))!r} is both positive and negative")
        return self


class TextConfig(_Part):
    """``[text]``: how reports are used, which state what a model shall find out by itself."""

    redaction: Redaction = "indication"
    """word: pathology words go; sentence: their sentences; indication: the redacted request alone."""
    leak_threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    """Macro AUROC that text alone may reach before ``leak-probe`` fails."""
    label: tuple[str, ...] = ()
    """Findings without a column that are read from the reports: present, denied or uncertain."""

    @field_validator("label", mode="after")
    @classmethod
    def _findings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(canonical(name) for name in value))


class DeviceConfig(_Part):
    """``[device]``: what the site computes on."""

    name: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Annotated[StrictInt, Field(ge=0)] = 0
    """CPU threads; 0 leaves torch's default."""


class ModelConfig(_Part):
    """``[model]``: where this site keeps a base; a plan never names a file here."""

    weights: Beside | None = None
    """safetensors file or folder, relative to site.toml, for plans that need weights of their own."""
    text_weights: Beside | None = None
    """Folder of a text encoder with its tokenizer, relative to site.toml, for plans that read reports
    with one of their own."""


class UnlabelledConfig(_Part):
    """``[unlabelled]``: images apart from the studies above, which pretraining uses instead of theirs."""

    table: Beside | None = None
    """CSV or Parquet, relative to site.toml, with the columns that [columns] names; absent: every image
    under root."""
    root: Beside | None = None
    """Folder the images lie under; absent: data.root."""
    views: Views | None = None
    """Views kept, as in [data]; absent: those of [data]."""

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if self.table is None and self.root is None:
            raise ValueError("give unlabelled.table, or unlabelled.root for every image under a folder")
        return self


class EvaluateConfig(_Part):
    """``[evaluate]``: what may be said about small numbers."""

    min_cell: Annotated[StrictInt, Field(ge=1)] = 11
    """A finding with fewer positives or negatives leaves as suppressed."""


class SiteConfig(_Part):
    """Everything in ``site.toml``. Paths are resolved against the file's folder."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    """The site's name in logs and reports; holds nothing about patients."""
    data: DataConfig
    columns: ColumnsConfig = ColumnsConfig()
    filter: dict[str, Values] = Field(default_factory=dict)
    """Column -> values kept, so that one table can serve several sites."""
    labels: dict[str, LabelSource] = Field(default_factory=dict)
    """Finding -> where its labels are."""
    uncertainty: dict[str, Uncertainty] = Field(default_factory=dict)
    """Finding -> what -1 means: ignore, ones or zeros; or "chexpert-5": as in that paper, and
    ignore for what it does not cover. There is no default."""
    clinical: dict[str, str] = Field(default_factory=dict)
    """Clinical variable -> column; age and male are read from columns.age and columns.sex."""
    text: TextConfig = TextConfig()
    unlabelled: UnlabelledConfig | None = None
    model: ModelConfig = ModelConfig()
    device: DeviceConfig = DeviceConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("labels", "uncertainty", mode="before")
    @classmethod
    def _in_the_vocabulary(cls, value: object) -> object:
        if value == "chexpert-5":
            return {**dict.fromkeys(FINDINGS, "ignore"), **CHEXPERT_5}
        return _renamed(value, canonical) if isinstance(value, Mapping) else value

    @field_validator("clinical", mode="before")
    @classmethod
    def _known_variables(cls, value: object) -> object:
        return _renamed(value, canonical_variable) if isinstance(value, Mapping) else value


def load_site(path: str | Path) -> SiteConfig:
    """Read and check ``site.toml``.

    Raises:
        ConfigError: if the file is missing or not TOML, or a key is unknown, absent, of the
            wrong type or out of range; names the key, the value and the nearest known key.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"there is no site file {path}", fix="write one: name, [data] table and [labels]")
    raw = read_toml(path)
    for key, number in _numbers(raw):
        if not math.isfinite(number):
            raise ConfigError(f"{path.name}: {key} must be a finite number", found=str(number))
    try:
        return SiteConfig.model_validate(raw, context={"folder": path.parent.resolve()})
    except ValidationError as error:
        raise _config_error(path.name, error) from None
    except LabelError as error:
        problem = shortened(error.problem, 200)
        raise ConfigError(
            f"{path.name}: {problem}", found=shortened(error.found), fix=shortened(error.fix, 200)
        ) from None


def _renamed(table: Mapping[str, object], canonical_name: Callable[[str], str]) -> dict[str, object]:
    named: dict[str, object] = {}
    for key, value in table.items():
        name = canonical_name(key)
        if name in named:
            raise ValueError(f"{key!r} is another name of {name!r}, which is already there")
        named[name] = value
    return named


def _numbers(node: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for value in node:
            yield from _numbers(value, key)
    elif isinstance(node, float):
        yield key, node


def _config_error(file: str, error: ValidationError) -> ConfigError:
    """Say the first complaint of pydantic's the way the rest of fedcxr says it."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        meant = closest(where[-1], known)
        return ConfigError(
            f"{file}: unknown key {shortened(key)}",
            found=_quoted(first["input"]),
            fix=meant or f"known here: {', '.join(known)}",
        )
    if first["type"] == "missing":
        return ConfigError(f"{file}: {key} is missing", fix=f"set {key}")
    problem = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{file}: {key}: {shortened(problem, 200)}", found=_quoted(first["input"]))


def _quoted(value: object) -> str:
    if isinstance(value, Mapping):
        return ""
    try:
        return shortened(repr(value))
    except ValueError:
        return "a number of thousands of digits"


def _known_keys(where: list[str]) -> list[str]:
    if where[:1] == ["labels"]:
        return list(LabelSource.model_fields) if len(where) > 1 else list(FINDINGS)
    if where[:1] == ["clinical"]:
        return list(VARIABLES)
    model: type[BaseModel] = SiteConfig
    for part in where:
        annotation = model.model_fields[part].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        parts = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not parts:
            return []
        model = parts[0]
    return list(model.model_fields)
