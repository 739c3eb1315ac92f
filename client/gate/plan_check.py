"""A plan held against what a hospital allows.

Every key of a plan is either bounded here or listed as harmless. A key that is neither, because
somebody added it to plans later, is refused until it stands in one of the two lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

from client.gate.policy import Policy
from client.site import SiteConfig
from common.config import RunConfig, known_keys
from common.errors import PolicyError
from common.overrides import shortened
from common.sections import Redaction

BOUNDED = frozenset(
    {
        "data.findings", "data.image_size", "data.clinical", "data.text", "data.redaction",
        "data.fraction", "data.shots",
        "model.weights", "model.backbone", "model.text_weights", "model.text_encoder",
        "pet.method", "pet.rank", "pet.bottleneck",
        "train.batch_size", "train.epochs", "train.steps",
        "strategy.max_update_norm", "strategy.mean",
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
        "strategy.name", "strategy.trim",
        "strategy.proximal_mu", "strategy.server_lr", "strategy.beta1",
        "strategy.beta2", "strategy.tau", "strategy.max_examples",
        "rounds.sites", "rounds.deadline", "rounds.select", "rounds.probe", "rounds.patience",
        "pretrain.mask", "pretrain.lr",
        "personalise.lr", "personalise.proximal_mu",
        "wire.keep", "wire.feedback", "wire.entropy", "wire.downlink", "evaluate.missing_modality",
    }
)  # fmt: skip
"""Keys that change how training goes, not what may leave nor what it costs by orders of magnitude."""


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
    mean, means = config.strategy.mean, policy.federation.means
    yield "strategy.mean", mean, mean in means, f"federation.means = {', '.join(means)}"
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
