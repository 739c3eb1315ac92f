"""RunConfig: everything a run decides, as one frozen typed tree.

Defaults live here. Experiments are TOML files of overrides, any key can be set on the command
line (``--set pet.rank=4``), and Flower carries the same tree flat in its ``run_config``. Paths,
names and devices of a site are not here: they come from the site's own ``site.toml``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from common.clinical import canonical_variable
from common.errors import ConfigError, LabelError, closest
from common.findings import canonical
from common.overrides import set_key

Scalar = bool | int | float | str
"""What Flower's flat run_config can carry."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


def comma_list(value: object) -> object:
    """Split ``a, b`` from a flat config or the command line into a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _vocabulary(canonical_name: Callable[[str], str]) -> AfterValidator:
    def known(names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            renamed = tuple(canonical_name(name) for name in names)
        except LabelError as error:
            raise ValueError("; ".join(filter(None, (error.problem, error.fix)))) from None
        if len(set(renamed)) != len(renamed):
            raise ValueError("a name stands there twice")
        return renamed

    return AfterValidator(known)


Names = Annotated[tuple[str, ...], BeforeValidator(comma_list)]
Findings = Annotated[Names, _vocabulary(canonical), Field(min_length=1)]
Variables = Annotated[Names, _vocabulary(canonical_variable)]


def _scope(value: str) -> str:
    if value == "all":
        return value
    kind, _, count = value.partition("-")
    if kind != "last" or not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise ValueError("expected 'all' or 'last-K' with K at least 1, for example 'last-4'")
    return value


class Section(BaseModel):
    """A branch of the tree: frozen, no unknown keys, no NaN, no silent type changes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, tree: object) -> object:
        """TOML has only lists; a frozen tree holds tuples."""
        if not isinstance(tree, dict):
            return tree
        return {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}


class DataConfig(Section):
    """Which findings are learnt, from images of which size."""

    findings: Findings = ("cardiomegaly", "effusion", "edema", "consolidation")
    """Findings the head predicts, in order; a site trains the ones it annotates."""
    image_size: Annotated[int, Field(ge=16, le=1024)] = 96
    """Side of the square image the model sees, in pixels."""
    fit: Literal["crop", "pad"] = "crop"
    """How a radiograph becomes square: centre crop of the short side, or padding."""
    clinical: Variables = ()
    """Clinical variables the head reads beside the image, for example ``age, male``; see
    common/clinical.py."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of each site's training patients that is used; a smaller share lies within a larger."""
    shots: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Training studies with and without each finding that are used at each site; 0: all."""


class ModelConfig(Section):
    """The frozen base."""

    backbone: str = "embedded"
    """``embedded`` (our small pretrained ViT) or ``timm:NAME``."""
    weights: str = ""
    """A safetensors file or a folder in timm or transformers layout; empty: the embedded
    weights, or random ones (seeded) for a ``timm:`` backbone."""
    pool: Literal["auto", "avg", "token"] = "auto"
    """How tokens become one feature vector; ``auto`` is the backbone's own choice."""


class PetConfig(Section):
    """What is trained."""

    method: Literal["head", "bitfit", "lora", "adapter", "vera", "ia3", "norm", "full"] = "lora"
    """Parameter-efficient tuning method."""
    scope: Annotated[str, AfterValidator(_scope)] = "all"
    """Blocks that are adapted: ``all`` or ``last-K``."""
    targets: Names = ()
    """Layers adapted by lora, vera and ia3 (``q, k, v, qkv, proj, fc1, fc2`` or a module's
    last name); empty: the method's published choice for the backbone."""
    rank: PositiveInt = 8
    """Inner dimension r of the low-rank update (Hu et al. 2021, eq. 3)."""
    bottleneck: PositiveInt = 16
    """Width of the bottleneck module (Houlsby et al. 2019, section 2.1)."""
    final_norm: bool = False
    """Also train the norm before the head (MED-PEFT does)."""


class LoraConfig(Section):
    """Low-rank updates and how they are aggregated."""

    alpha: Positive = 16.0
    """Scale: the update is (alpha / rank) B A (Hu et al. 2021, section 4.1)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of A."""
    aggregation: Literal["fedit", "rolora", "ffa", "fedex"] = "fedit"
    """``fedit``: mean A and mean B, inexact. ``rolora``: B and A in turn. ``ffa``: A frozen.
    ``fedex``: mean A and mean B plus the exact residual."""


class TrainConfig(Section):
    """The local loop at a site."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Reset at the start of every round."""
    lr: Positive = 1e-3
    """Peak learning rate of the adapter."""
    head_lr: NonNegative = 0.0
    """Peak learning rate of the head; 0: the same as ``lr``."""
    weight_decay: NonNegative = 0.0
    """Decoupled for adamw, L2 for sgd."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """For sgd."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Over the whole run, not restarted each round."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the run with a linearly rising learning rate."""
    batch_size: PositiveInt = 32
    """Studies per local step."""
    epochs: PositiveInt = 1
    """Local epochs per server round."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Local steps per server round; 0: as many as ``epochs`` take."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs positives by negatives / positives; it costs calibration."""
    grad_clip: NonNegative = 1.0
    """Largest L2 norm of a step's gradient; 0: no clipping."""
    augment: Fraction = 0.0
    """Strength of random shift, scale, rotation and contrast; 0: none."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """``auto``: bf16 on a GPU that has it, else fp32."""
    select: Literal["last", "best-validation"] = "last"
    """Which local epoch of a round is sent."""
    prefix_cache: bool = True
    """Run the frozen prefix once per image when nothing in it is trained or random."""


class StrategyConfig(Section):
    """How updates become the next adapter, and which updates may."""

    name: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    """FedAvg (McMahan 2017), FedProx (Li 2020), FedAdam (Reddi 2021)."""
    proximal_mu: NonNegative = 0.0
    """FedProx: weight of ||w - w_global||^2 / 2 in the local loss."""
    server_lr: Positive = 0.01
    """FedAdam: eta."""
    beta1: Fraction = 0.9
    """FedAdam: decay of the first moment."""
    beta2: Fraction = 0.99
    """FedAdam: decay of the second moment."""
    tau: Positive = 1e-3
    """FedAdam: degree of adaptivity."""
    max_update_norm: Positive = 100.0
    """An update with a larger L2 norm is not admitted."""
    max_examples: PositiveInt = 1_000_000
    """num-examples beyond this is not admitted as a weight."""


class RoundsConfig(Section):
    """The server's round loop."""

    count: PositiveInt = 8
    """Server rounds."""
    sites: Annotated[int, Field(ge=0)] = 0
    """Sites to wait for before the run begins; 0: as many as the quorum."""
    cohort: Annotated[int, Field(ge=0)] = 0
    """Sites asked per round; 0: all."""
    quorum: PositiveInt = 1
    """Admissible updates without which a round is abandoned."""
    deadline: Positive = 3600.0
    """Seconds a round waits before it goes on without the missing sites."""
    select: Literal["last", "best-validation"] = "best-validation"
    """Which round's adapter is released and tested."""


class WireConfig(Section):
    """How an update travels."""

    codec: Literal["fp32", "fp16"] = "fp32"
    """Number format of the updates sites send."""


class EvaluateConfig(Section):
    """What is measured at the end."""

    local: bool = True
    """Each site also trains alone, with equal local work, to compare with."""
    matrix: bool = False
    """Measure the model each site trains alone at every other site too. It goes to the centre and the
    other sites, where its site's policy lets it; S sites take S (S - 1) more measurements."""
    calibrate: Literal["none", "platt"] = "none"
    """``platt``: slope and bias of each finding's logit, fitted over all sites' validation studies by sums
    that a site's policy lets leave; exact, in a few exchanges (Platt 1999)."""
    replicates: Annotated[int, Field(ge=20, le=10_000)] = 500
    """Patient-bootstrap replicates behind every interval."""

    @model_validator(mode="after")
    def _matrix_has_models(self) -> Self:
        if self.matrix and not self.local:
            raise ValueError("matrix measures the models that sites train alone: it needs local = true")
        return self


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
    wire: WireConfig = WireConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

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

        Where the weights lie differs between machines and is left out; what they are is the
        base digest.
        """
        decided = {key: value for key, value in self.to_flat().items() if key != "model.weights"}
        identity = {"config": decided, "base": base_digest, "code": code_digest}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def known_keys(cls: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config tree."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
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
