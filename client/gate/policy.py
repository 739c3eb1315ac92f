"""What a hospital allows a federation to ask and to take away: ``policy.toml``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator

from common.config import known_keys
from common.errors import ConfigError, LabelError, closest
from common.findings import canonical
from common.overrides import read_toml, shortened
from common.protocol import Stage
from common.sections import Mean, Names, Positive, Section

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
    means: Annotated[tuple[Mean, ...], Field(min_length=1)] = ("weighted", "trimmed")
    """How the changes of the sites may become one (strategy.mean of a plan). weighted: their mean.
    trimmed: their mean without the largest and smallest, number by number. The one left out, median,
    takes the one in the middle: where the sites are an odd number, each number that the others receive is
    one site's own, though nobody is told whose."""
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
