"""The sections of a run's settings: each key with its type, its default and what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)

from common.clinical import canonical_variable
from common.errors import LabelError
from common.findings import canonical

Redaction = Literal["none", "word", "sentence", "indication"]
"""What is taken out of a report before it is used, from nothing to all but the redacted indication."""
Mean = Literal["weighted", "median", "trimmed"]
"""How the updates of the sites become one."""
BELOW_ONE = Field(ge=0.0, lt=1.0)
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
    text: bool = False
    """The model reads each study's report beside the image, as far as ``redaction`` leaves it."""
    redaction: Redaction = "indication"
    """What of a report is used; a site whose own ``text.redaction`` is stricter refuses. Labels come
    from reports: anything but ``indication`` gives them away, see the leak probe."""
    text_length: Annotated[int, Field(ge=8, le=512)] = 64
    """Tokens of a report that are read; the rest is cut off."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of each site's training patients that is used; a smaller share lies within a larger."""
    shots: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Training studies with and without each finding that are used at each site; 0: all."""


class ModelConfig(Section):
    """The frozen base."""

    backbone: str = "embedded"
    """``embedded`` (our small pretrained ViT), a name of common/model/zoo.py, or ``timm:NAME``."""
    weights: str = ""
    """A safetensors file or a folder in timm or transformers layout; empty: the embedded
    weights, or random ones (seeded) for a ``timm:`` backbone."""
    pool: Literal["auto", "avg", "token"] = "auto"
    """How tokens become one feature vector; ``auto`` is the backbone's own choice."""
    mean: Fraction = 0.0
    """Mean grey value images are normalised by; 0: what the backbone was pretrained with."""
    std: Fraction = 0.0
    """Standard deviation they are normalised by; 0: what the backbone was pretrained with."""
    drop_path: Annotated[float, BELOW_ONE] = 0.0
    """Share of residual branches left out at random while training (stochastic depth)."""
    text_encoder: str = "embedded"
    """``embedded`` (our small BERT) or a name of common/model/text/zoo.py; with ``data.text``."""
    text_weights: str = ""
    """Folder of a text encoder in transformers layout, with its tokenizer."""
    fusion: Literal["concatenate", "gated", "cross-attention"] = "concatenate"
    """How text meets image: one linear head over both; a learnt gate between them (Arevalo et al.
    2017); or image features that attend to the text's tokens (Vaswani et al. 2017)."""


class PetConfig(Section):
    """What is trained."""

    method: Literal["head", "bitfit", "lora", "adapter", "vera", "ia3", "norm", "full"] = "lora"
    """Parameter-efficient tuning method."""
    scope: Annotated[str, AfterValidator(_scope)] = "all"
    """Blocks that are adapted: ``all`` or ``last-K``."""
    towers: Literal["both", "vision", "text"] = "both"
    """Which encoders are adapted; without ``data.text`` there is only the vision tower."""
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
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Over a phase of the run, not restarted each round. ``plateau``: a tenth after each
    ``plateau_patience`` rounds without a better mean validation AUROC."""
    plateau_patience: PositiveInt = 5
    """Server rounds without a better validation before the learning rate falls."""
    min_lr: NonNegative = 0.0
    """Where the cosine ends, as an absolute learning rate."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the run with a linearly rising learning rate."""
    batch_size: PositiveInt = 32
    """Studies per local step."""
    epochs: PositiveInt = 1
    """Local epochs per server round."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Local steps per server round; 0: as many as ``epochs`` take."""
    class_weights: Literal["none", "balanced", "federated"] = "none"
    """``balanced`` weighs positives by a site's own negatives / positives, ``federated`` by those of
    all sites together; it costs calibration."""
    grad_clip: NonNegative = 1.0
    """Largest L2 norm of a step's gradient; 0: no clipping."""
    augment: Fraction = 0.0
    """Strength of random shift, scale, rotation and contrast; 0: none."""
    modality_dropout: Annotated[float, BELOW_ONE] = 0.0
    """Share of training studies whose report is replaced by the learned stand-in, and as many images;
    never both of one study."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """``auto``: bf16 on a GPU that has it, else fp32."""
    select: Literal["last", "best-validation"] = "last"
    """Which local epoch of a round is sent."""
    views: Annotated[int, Field(ge=0, le=64)] = 0
    """With ``augment``: fixed random views of each image, of which a step takes one, so that what frozen
    parts make of them can be kept; 0: fresh ones each time, and nothing kept for training."""
    prefix_cache: bool = True
    """Run the frozen prefix once per image when nothing in it is trained or random."""
    cache_dtype: Literal["fp16", "fp32"] = "fp16"
    """Number format its outputs are kept in; what trains behind it sees them so rounded."""

    @model_validator(mode="after")
    def _views_of_something(self) -> Self:
        if self.views and not self.augment:
            raise ValueError(f"views = {self.views} are of augmented images: they need augment above 0")
        return self


class StrategyConfig(Section):
    """How updates become the next adapter, and which updates may."""

    name: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    """FedAvg (McMahan 2017), FedProx (Li 2020), FedAdam (Reddi 2021)."""
    mean: Mean = "weighted"
    """How updates become one. ``weighted``: by the number of examples. ``median``, ``trimmed``: value by
    value over the sites, each counted once (Yin et al. 2018), so that a few cannot pull it away."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    """trimmed: share of the sites left out of each value at either end, rounded down."""
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
    """Server rounds of training; rounds of pretraining come before them."""
    probe: Annotated[int, Field(ge=0)] = 0
    """First rounds of these that train the head alone: linear probe, then fine-tune (Kumar et al. 2022).
    All of them: a linear probe."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Rounds without a better mean validation AUROC after which the run stops early; 0: never."""
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

    @model_validator(mode="after")
    def _probe_fits(self) -> Self:
        if self.probe > self.count:
            raise ValueError(f"probe = {self.probe} is more than count = {self.count}")
        return self


class PretrainConfig(Section):
    """Rounds without labels before training."""

    rounds: Annotated[int, Field(ge=0)] = 0
    """Server rounds of pretraining; 0: none."""
    task: Literal["masked-image", "image-text"] = "masked-image"
    """``masked-image``: paint hidden patches (He et al. 2022). ``image-text``: tell which report belongs
    to which image (Zhang et al. 2020, eq. 2 and 3)."""
    parameters: Literal["adapter", "encoder"] = "adapter"
    """``adapter``: the PET parameters alone, on the frozen base (TPP). ``encoder``: the whole encoder
    (domain-adaptive pretraining); it travels with every round."""
    mask: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """Share of patches hidden from the encoder."""
    redaction: Redaction = "none"
    """What of a report image-text pretraining reads; no label is predicted from it."""
    lr: Positive = 1e-3
    """Peak learning rate, with a cosine over the rounds of pretraining."""
    epochs: PositiveInt = 1
    """Local epochs per round over all training studies, annotated or not."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Local steps per round; 0: as many as ``epochs`` take."""
    batch_size: PositiveInt = 64
    """Studies per local step."""


class PersonaliseConfig(Section):
    """What each site makes of the released adapter for itself; it stays there."""

    method: Literal["none", "fine-tune", "ditto", "dual", "private-head"] = "none"
    """``fine-tune``: train on. ``ditto``: train on, held to the released adapter by
    ``personalise.proximal_mu`` (Li et al. 2021, eq. 2). ``dual``: a second, private low-rank update
    beside the frozen released one. ``private-head``: a head of its own."""
    epochs: PositiveInt = 2
    """Local epochs."""
    lr: NonNegative = 0.0
    """Peak learning rate; 0: that of training."""
    proximal_mu: NonNegative = 0.1
    """ditto: weight of ||v - w||^2 / 2 between personal and released adapter."""
    rank: PositiveInt = 4
    """dual: rank of the private update."""


class WireConfig(Section):
    """How an update travels."""

    codec: Literal["fp32", "fp16", "int8", "topk"] = "fp32"
    """Number format of the updates sites send. ``int8``: blocks of 64 values with a scale each. ``topk``:
    only the largest values, in such blocks; see common/codec."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """topk: share of the values that is sent."""
    feedback: bool = True
    """What a codec loses stays at the site and is added to its next update (Seide et al. 2014;
    Karimireddy et al. 2019, alg. 1); a phase of the run begins with nothing owed."""
    entropy: bool = False
    """int8, topk: deflate the bytes (RFC 1951)."""
    downlink: Literal["fp32", "fp16", "int8"] = "fp32"
    """``fp32``: each site is sent the whole adapter every round. Else a site that answered the round before
    is sent the round's change in this format, and what that loses is added to the next (Tang et al. 2019)."""

    @model_validator(mode="after")
    def _something_to_deflate(self) -> Self:
        if self.entropy and self.codec not in ("int8", "topk"):
            raise ValueError(f"entropy has nothing to deflate in {self.codec}: it needs codec int8 or topk")
        return self


class EvaluateConfig(Section):
    """What is measured at the end."""

    local: bool = True
    """Each site also trains alone, with equal local work, to compare with."""
    matrix: bool = False
    """Measure the model each site trains alone at every other site too. It goes to the centre and the
    other sites, where its site's policy lets it; S sites take S (S - 1) more measurements."""
    pooled: bool = True
    """Sites also send score histograms, from which the AUROC over all sites' studies together is computed
    within a bound that is told."""
    missing_modality: bool = False
    """With ``data.text``: also measure the model without the reports, and without the images."""
    calibrate: Literal["none", "platt"] = "none"
    """``platt``: slope and bias of each finding's logit, fitted over all sites' validation studies by sums
    that a site's policy lets leave; exact, in a few exchanges (Platt 1999)."""
    compare_calibration: bool = False
    """With ``platt``: also measure a single temperature for all findings, and Platt with each site's own
    bias on top, which stays there."""
    replicates: Annotated[int, Field(ge=20, le=10_000)] = 500
    """Patient-bootstrap replicates behind every interval."""

    @model_validator(mode="after")
    def _what_is_compared_is_there(self) -> Self:
        if self.matrix and not self.local:
            raise ValueError("matrix measures the models that sites train alone: it needs local = true")
        if self.compare_calibration and self.calibrate != "platt":
            raise ValueError('compare_calibration has nothing to compare with: it needs calibrate = "platt"')
        return self
