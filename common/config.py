"""RunConfig: everything a run decides, as one frozen typed tree.

Defaults live in `common.sections`. Experiments are TOML files of overrides, any key can be set on the
command line (``--set pet.rank=4``), and Flower carries the same tree flat in its ``run_config``. Paths,
names and devices of a site are not here: they come from the site's own ``site.toml``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from common.errors import ConfigError, closest
from common.overrides import set_key
from common.sections import (
    DataConfig,
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    PersonaliseConfig,
    PetConfig,
    PretrainConfig,
    RoundsConfig,
    Section,
    StrategyConfig,
    TrainConfig,
    WireConfig,
)

Scalar = bool | int | float | str
"""What Flower's flat run_config can carry."""


class RunConfig(Section):
    """One run, whole."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Everything random derives from it."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pet: PetConfig = PetConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    strategy: StrategyConfig = StrategyConfig()
    rounds: RoundsConfig = RoundsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    personalise: PersonaliseConfig = PersonaliseConfig()
    wire: WireConfig = WireConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def last_round(self) -> int:
        """Number of a run's last round: those of pretraining come before those of training."""
        return self.pretrain.rounds + self.rounds.count

    @model_validator(mode="after")
    def _text_is_there(self) -> Self:
        if self.data.text:
            return self
        wants = {
            "train.modality_dropout": self.train.modality_dropout > 0,
            "evaluate.missing_modality": self.evaluate.missing_modality,
            "pet.towers = 'text'": self.pet.towers == "text",
        }
        if key := next((key for key, wanted in wants.items() if wanted), ""):
            raise ValueError(f"{key} needs a model that reads reports: set data.text = true")
        return self

    @classmethod
    def build(cls, tree: Mapping[str, Any]) -> Self:
        """Validate a nested mapping of overrides.

        Raises:
            ConfigError: naming the first wrong key, what stood there and what was expected.
        """
        _reject_nan(tree, "")
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _explain(cls, error) from None

    @classmethod
    def from_flat(cls, flat: Mapping[str, Scalar]) -> Self:
        """Read Flower's flat, kebab-case run_config (the inverse of ``to_flat``)."""
        tree: dict[str, Any] = {}
        for key, value in flat.items():
            set_key(tree, key, value)
        return cls.build(tree)

    def to_flat(self) -> dict[str, Scalar]:
        """Flatten to kebab-case ``section.key`` with values Flower can carry.

        >>> RunConfig().to_flat()["strategy.proximal-mu"]
        0.0
        """
        flat: dict[str, Scalar] = {}
        for path, value in _leaves(self.model_dump()):
            text = ", ".join(value) if isinstance(value, tuple | list) else value
            flat[path.replace("_", "-")] = text
        return flat

    def digest(self) -> str:
        """SHA-256 over the resolved values."""
        return hashlib.sha256(json.dumps(self.to_flat(), sort_keys=True).encode()).hexdigest()

    def plan_digest(self, base_digest: str, code_digest: str) -> str:
        """SHA-256 of a run's plan: these values, the frozen base and the code.

        Where weights lie differs between machines and is left out; what they are is the base digest.
        """
        decided = {key: value for key, value in self.to_flat().items() if key not in _PATHS}
        identity = {"config": decided, "base": base_digest, "code": code_digest}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


_PATHS = ("model.weights", "model.text-weights")


def known_keys(cls: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config tree."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if NoneType in (may := get_args(kind)):
            kind = may[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from known_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def described_keys(cls: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield every key with its default and what it means."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from described_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default, " ".join((field.description or "").split())


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _reject_nan(tree: Mapping[str, Any], prefix: str) -> None:
    for key, value in _leaves(tree, prefix):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number", found=str(value))


def _explain(cls: type[BaseModel], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [*known_keys(cls), *cls.model_fields]
        return ConfigError(f"unknown key {key!r}", fix=closest(key, known))
    expected = first["msg"].removeprefix("Value error, ")
    expected = expected[0].lower() + expected[1:]
    if not first["loc"]:
        return ConfigError(expected)
    return ConfigError(f"{key}: {expected}", found=_short(first.get("input")), fix=_choice(first))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _choice(detail: Mapping[str, Any]) -> str:
    if detail["type"] != "literal_error" or not isinstance(detail.get("input"), str):
        return ""
    options = [part.strip("' ") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
    return closest(detail["input"], options)
