"""What a hospital allows a federation to ask: ``policy.toml``, and the check of a plan against it.

Every key of a plan is either bounded here or listed as harmless. A key that is neither, because
somebody added it to plans later, is refused until it stands in one of the two lists.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator

from client.site import SiteConfig
from common.config import RunConfig, known_keys
from common.errors import ConfigError, LabelError, PolicyError, closest
from common.findings import canonical
from common.overrides import read_toml, shortened
from common.protocol import Stage
from common.sections import Names, Positive, Redaction, Section

Method = Literal["head", "bitfit", "lora", "adapter", "vera", "ia3", "norm", "full"]
Codec = Literal["fp32", "fp16", "int8", "topk"]
MetricGroup = Literal["set-aside", "training", "findings", "histograms"]


class AskedPolicy(Section):
    """What may be asked of this site."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = (
        "enrol",
        "pretrain",
        "train",
        "local",
        "evaluate",
        "personalise",
    )
    """What the site may be asked to do. enrol: say how many studies it has. pretrain, train: change the
    shared adapter for a round, without labels or with them, and send the change. local: train a model
    of its own, which stays here unless answers.local_adapter is true. evaluate: measure a model on its
    own studies and send the figures. personalise: make the released adapter its own, which stays here,
    and say how well it does. The one left out, calibrate: send sums over the validation studies of a
    finding (never of fewer than min_cell with it, or without), from which all sites together fit how
    its probabilities are to be scaled. Exact sums, asked for often, could tell what a model gave single
    studies, though not whose; so they are asked for a bounded number of times, and only where you add
    it here."""
    findings: Names = ()
    """Findings a plan may ask about, for example ["effusion", "edema"]. Empty: all that site.toml
    names."""
    clinical: bool = True
    """Whether a plan may use clinical variables such as age beside the image. They are read here and
    do not leave."""
    text: bool = True
    """Whether a plan may read reports beside the image, as far as text.redaction of site.toml leaves
    them. They are read here and do not leave."""
    max_image_size: PositiveInt = 512
    """Largest side of the image a model sees, in pixels. Larger images take more memory and time."""
    max_replicates: PositiveInt = 2000
    """Most repetitions behind an interval of a measured figure. They cost time, nothing else."""

    @field_validator("findings", mode="after")
    @classmethod
    def _in_the_vocabulary(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(canonical(name) for name in value))
        except LabelError as error:
            raise ValueError("; ".join(filter(None, (error.problem, error.fix)))) from None


class TrainingPolicy(Section):
    """How this site may be asked to train."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = tuple(
        method for method in get_args(Method) if method != "full"
    )
    """Methods of training. Each of these trains a small adapter. The one left out, full, trains the
    whole network and would send all of it every round: slower, and it tells more of the studies."""
    max_rank: PositiveInt = 64
    """Largest adapter: the rank of lora and vera, and the width of the bottleneck of adapter."""
    own_weights: bool = True
    """Whether a plan may start from weights of its own, which then have to lie here: site.toml names
    them, and their digest must be approved. false: only weights that come with the software."""
    max_batch_size: PositiveInt = 256
    """Most studies per step. Larger ones take more memory."""
    max_epochs: PositiveInt = 10
    """Most passes through this site's studies per round."""
    max_steps: PositiveInt = 2000
    """Most steps per round where a plan counts steps and not passes."""
    min_studies: PositiveInt = 11
    """Fewest training studies behind a change that is sent. A change computed from one study could
    show that study; this also forbids rounds of so few steps that they see fewer studies."""


class FederationPolicy(Section):
    """With how many others, and for how long."""

    min_sites: PositiveInt = 2
    """Fewest sites whose changes are averaged in a round (rounds.quorum of a plan). With 1, what the
    other sites receive is this site's own change. With 2, the one other site can work this site's
    change out by taking away its own. With 3 or more no single site can. The centre itself sees the
    change of each site, whatever stands here."""
    max_rounds: PositiveInt = 100
    """Most rounds of a run."""


class AnswersPolicy(Section):
    """What may leave this site, and how much of it."""

    metrics: tuple[MetricGroup, ...] = get_args(MetricGroup)
    """Figures that may leave besides those without which the site cannot take part (numbers of
    studies and patients, which findings it annotates, how many studies and steps stand behind a
    change, and its mean result). set-aside: how many studies could not be used, by reason. training:
    loss, seconds and the validation score of a round. findings: results finding by finding, on the
    validation studies with every round and on the test studies at the end. histograms: beside them, on
    the test studies, between which scores how many have a finding and how many have not, never fewer
    than min_cell of either; from this the centre works out how well a model ranks all sites' studies
    together."""
    min_cell: PositiveInt = 11
    """A finding with fewer studies that have it, or that do not, is left out of every result.
    evaluate.min_cell of site.toml may be higher, not lower."""
    local_adapter: bool = False
    """Whether the model this site trains alone may leave as well, where a plan asks for it
    (evaluate.matrix). It would go to the centre and, for measuring, to the other sites. false: it stays
    here, and the run goes on without it."""
    codecs: Annotated[tuple[Codec, ...], Field(min_length=1)] = get_args(Codec)
    """Number formats a change may be sent in."""
    max_update_norm: Positive = 100.0
    """Largest change (its length as a vector) that may leave. A plan may ask for less."""
    max_bytes: PositiveInt = 50_000_000
    """Most bytes of one answer. The adapter of a usual plan has well under 10 million."""
    max_run_bytes: PositiveInt = 5_000_000_000
    """Most bytes of all answers of a run together."""

    @property
    def groups(self) -> frozenset[MetricGroup]:
        """Groups of figures that leave; where findings stay here, so do histograms of them."""
        return frozenset(self.metrics if "findings" in self.metrics else {*self.metrics} - {"histograms"})


class Policy(Section):
    """Everything in ``policy.toml``."""

    asked: AskedPolicy = AskedPolicy()
    training: TrainingPolicy = TrainingPolicy()
    federation: FederationPolicy = FederationPolicy()
    answers: AnswersPolicy = AnswersPolicy()


BOUNDED = frozenset(
    {
        "data.findings", "data.image_size", "data.clinical", "data.text", "data.redaction",
        "data.fraction", "data.shots",
        "model.weights", "model.backbone", "model.text_weights", "model.text_encoder",
        "pet.method", "pet.rank", "pet.bottleneck",
        "train.batch_size", "train.epochs", "train.steps",
        "strategy.max_update_norm",
        "rounds.count", "rounds.cohort", "rounds.quorum",
        "pretrain.rounds", "pretrain.task", "pretrain.parameters", "pretrain.redaction",
        "pretrain.batch_size", "pretrain.epochs", "pretrain.steps",
        "personalise.method", "personalise.epochs", "personalise.rank",
        "wire.codec",
        "evaluate.local", "evaluate.matrix", "evaluate.calibrate", "evaluate.compare_calibration",
        "evaluate.pooled", "evaluate.replicates",
    }
)  # fmt: skip
"""Keys of a plan that this policy, or an approval, bounds: here, or where the answer leaves.

``data.fraction`` and ``data.shots`` through ``training.min_studies``, ``model.backbone`` and
``model.text_encoder`` through the approved digests of the base, ``personalise.method`` through
``asked.stages``, ``evaluate.pooled`` through ``answers.metrics``,
``strategy.max_update_norm`` through ``answers.max_update_norm``,
``evaluate.local`` and ``evaluate.calibrate`` through ``asked.stages``, ``evaluate.matrix`` through
``answers.local_adapter``.
"""

HARMLESS = frozenset(
    {
        "seed", "data.fit", "data.text_length",
        "model.pool", "model.mean", "model.std", "model.drop_path", "model.fusion",
        "pet.towers", "pet.scope", "pet.targets", "pet.final_norm",
        "lora.alpha", "lora.dropout", "lora.aggregation",
        "train.optimizer", "train.lr", "train.head_lr", "train.weight_decay", "train.momentum",
        "train.schedule", "train.warmup", "train.class_weights", "train.grad_clip", "train.augment",
        "train.precision", "train.select", "train.prefix_cache", "train.plateau_patience", "train.min_lr",
        "train.modality_dropout", "train.views", "train.cache_dtype",
        "strategy.name", "strategy.mean", "strategy.trim",
        "strategy.proximal_mu", "strategy.server_lr", "strategy.beta1",
        "strategy.beta2", "strategy.tau", "strategy.max_examples",
        "rounds.sites", "rounds.deadline", "rounds.select", "rounds.probe", "rounds.patience",
        "pretrain.mask", "pretrain.lr",
        "personalise.lr", "personalise.proximal_mu",
        "wire.keep", "wire.feedback", "wire.entropy", "wire.downlink", "evaluate.missing_modality",
    }
)  # fmt: skip
"""Keys that change how training goes, not what may leave nor what it costs by orders of magnitude."""


def load_policy(path: Path) -> Policy:
    """Read and check ``policy.toml``.

    Raises:
        ConfigError: if the file is missing or not TOML, or a key is unknown, of the wrong type or
            out of range.
    """
    if not path.exists():
        raise ConfigError(
            f"there is no policy file {path}", fix="fedcxr-site init writes one; restore it, then approve it"
        )
    return parse_policy(read_toml(path), path.name)


def parse_policy(tree: Mapping[str, Any], file: str = "policy.toml") -> Policy:
    """Check the contents of a policy file.

    Raises:
        ConfigError: as `load_policy`.
    """
    try:
        return Policy.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [*known_keys(Policy), *Policy.model_fields]
        raise ConfigError(
            f"{file}: unknown key {shortened(key)}",
            fix=closest(key, known) or f"known are {', '.join(known_keys(Policy))}",
        )
    problem = shortened(first["msg"].removeprefix("Value error, "), 200)
    found = "" if isinstance(first["input"], Mapping) else shortened(repr(first["input"]))
    raise ConfigError(f"{file}: {key}: {problem}", found=found)


def policy_text() -> str:
    """Return ``policy.toml`` with every default, each key under the sentences that explain it."""
    lines = textwrap.wrap(
        "What this hospital allows a federation to ask of it, and to take away. The site's own software "
        "holds every plan and every answer against this file; what goes beyond it is refused with a code "
        "and written to the audit. After any change nothing runs until it is approved again: "
        "fedcxr-site approve",
        100,
    )
    text = ["# " + line for line in lines]
    for section, field in Policy.model_fields.items():
        part = field.annotation
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            continue
        text += ["", "", f"# {part.__doc__}", f"[{section}]"]
        for name, own in part.model_fields.items():
            words = textwrap.wrap(" ".join((own.description or "").split()), 100)
            text += ["", *("# " + line for line in words), f"{name} = {_toml(own.default)}"]
    return "\n".join(text) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{part}"' for part in value) + "]"
    return f"{value:_}" if isinstance(value, int) else str(value)


def check_plan(policy: Policy, config: RunConfig, site: SiteConfig, stage: str) -> None:
    """Hold a plan and what is asked of it against the policy.

    Raises:
        PolicyError: naming the plan's key, its value and the policy's limit.
    """
    unknown = set(known_keys(RunConfig)) - BOUNDED - HARMLESS
    if unknown:
        raise PolicyError(
            f"plans can set {min(unknown)}, which this policy does not know",
            fix="install a version of fedcxr whose policy knows it",
        )
    if stage not in policy.asked.stages:
        raise PolicyError(
            f"the site may not be asked to {stage}",
            found=f"policy.toml: asked.stages = {', '.join(policy.asked.stages)}",
            fix=_FIX,
        )
    if site.evaluate.min_cell < policy.answers.min_cell:
        raise PolicyError(
            "site.toml would tell of smaller numbers than policy.toml allows",
            found=f"evaluate.min_cell = {site.evaluate.min_cell}, "
            f"answers.min_cell = {policy.answers.min_cell}",
            fix="raise evaluate.min_cell in site.toml, or lower answers.min_cell and approve it",
        )
    for key, value, allowed, limit in _bounds(policy, config, site):
        if not allowed:
            raise PolicyError(
                f"the plan's {key} is beyond policy.toml", found=f"{key} = {_said(value)}, {limit}", fix=_FIX
            )


_FIX = "ask the centre for another plan, or change policy.toml and approve it"


Bound = tuple[str, Any, bool, str]
"""A key, its value, whether it is allowed, and the limit in words."""


def _bounds(policy: Policy, config: RunConfig, site: SiteConfig) -> Iterator[Bound]:
    """Yield (key, value, whether it is allowed, the limit in words) for every bounded key."""
    asked, training, answers = policy.asked, policy.training, policy.answers
    data, pet, train = config.data, config.pet, config.train

    def at_most(key: str, value: float, name: str, limit: float) -> Bound:
        return key, value, value <= limit, f"{name} = {limit}"

    foreign = [f for f in data.findings if asked.findings and f not in asked.findings and _may_label(site, f)]
    listed = ", ".join(asked.findings)
    yield "data.findings", ", ".join(foreign), not foreign, f"asked.findings = {listed}"
    yield (
        "data.clinical",
        ", ".join(data.clinical),
        asked.clinical or not data.clinical,
        "asked.clinical = false",
    )
    yield "data.text", data.text, asked.text or not data.text, "asked.text = false"
    for key, wanted in _redactions(config):
        yield key, wanted, _as_strict(wanted, site), f"text.redaction of site.toml = {site.text.redaction}"
    yield at_most("data.image_size", data.image_size, "asked.max_image_size", asked.max_image_size)
    own = config.model.weights
    yield "model.weights", own, training.own_weights or not own, "training.own_weights = false"
    here = "and site.toml names no {}: a plan does not choose files of this machine"
    yield "model.weights", own, site.model.weights is not None or not own, here.format("model.weights")
    text = config.model.text_weights
    yield "model.text_weights", text, training.own_weights or not text, "training.own_weights = false"
    known = site.model.text_weights is not None or not text
    yield "model.text_weights", text, known, here.format("model.text_weights")
    yield (
        "pet.method",
        pet.method,
        pet.method in training.methods,
        f"training.methods = {', '.join(training.methods)}",
    )
    yield at_most("pet.rank", pet.rank, "training.max_rank", training.max_rank)
    yield at_most("pet.bottleneck", pet.bottleneck, "training.max_rank", training.max_rank)
    yield at_most("train.batch_size", train.batch_size, "training.max_batch_size", training.max_batch_size)
    yield at_most("train.epochs", train.epochs, "training.max_epochs", training.max_epochs)
    yield at_most("train.steps", train.steps, "training.max_steps", training.max_steps)
    seen, least = train.steps * train.batch_size, training.min_studies
    few = f"which see {seen} studies, training.min_studies = {least}"
    yield "train.steps", train.steps, not train.steps or seen >= least, few
    fewest = f"federation.min_sites = {policy.federation.min_sites}"
    rounds, sites = config.rounds, policy.federation.min_sites
    yield "rounds.quorum", rounds.quorum, rounds.quorum >= sites, fewest
    yield "rounds.cohort", rounds.cohort, not rounds.cohort or rounds.cohort >= sites, fewest
    yield at_most("rounds.count", rounds.count, "federation.max_rounds", policy.federation.max_rounds)
    yield from _pretraining(policy, config, at_most)
    own_epochs, own_rank = config.personalise.epochs, config.personalise.rank
    yield at_most("personalise.epochs", own_epochs, "training.max_epochs", training.max_epochs)
    yield at_most("personalise.rank", own_rank, "training.max_rank", training.max_rank)
    codec = config.wire.codec
    yield "wire.codec", codec, codec in answers.codecs, f"answers.codecs = {', '.join(answers.codecs)}"
    replicates = config.evaluate.replicates
    yield at_most("evaluate.replicates", replicates, "asked.max_replicates", asked.max_replicates)


def _pretraining(
    policy: Policy, config: RunConfig, at_most: Callable[[str, float, str, float], Bound]
) -> Iterator[Bound]:
    pretrain, training = config.pretrain, policy.training
    together = pretrain.rounds + config.rounds.count
    yield at_most("pretrain.rounds", together, "federation.max_rounds", policy.federation.max_rounds)
    small = not pretrain.rounds or pretrain.parameters == "adapter" or "full" in training.methods
    methods = f"training.methods = {', '.join(training.methods)}, without full"
    yield "pretrain.parameters", pretrain.parameters, small, methods
    batch, most = pretrain.batch_size, training.max_batch_size
    yield at_most("pretrain.batch_size", batch, "training.max_batch_size", most)
    yield at_most("pretrain.epochs", pretrain.epochs, "training.max_epochs", training.max_epochs)
    yield at_most("pretrain.steps", pretrain.steps, "training.max_steps", training.max_steps)
    seen, least = pretrain.steps * batch, training.min_studies
    few = f"which see {seen} studies, training.min_studies = {least}"
    yield "pretrain.steps", pretrain.steps, not pretrain.steps or seen >= least, few


def _redactions(config: RunConfig) -> Iterator[tuple[str, Redaction]]:
    """Yield what a plan wants of reports, where it reads them."""
    if config.data.text:
        yield "data.redaction", config.data.redaction
    if config.pretrain.rounds and config.pretrain.task == "image-text":
        yield "pretrain.redaction", config.pretrain.redaction


def _as_strict(wanted: Redaction, site: SiteConfig) -> bool:
    order = get_args(Redaction)
    return order.index(wanted) >= order.index(site.text.redaction)


def _may_label(site: SiteConfig, finding: str) -> bool:
    """Whether this site may have labels of a finding; a public layout brings its own."""
    own = {*site.labels, *site.text.label}
    return finding in own or site.data.layout not in ("table", "folder")


def _said(value: object) -> str:
    return f'"{shortened(value, 60)}"' if isinstance(value, str) else str(value)
