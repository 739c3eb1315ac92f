"""The model card of a release: what it is, how it is opened, what comes out of it."""

from __future__ import annotations

from pathlib import Path

from common.adapter import AdapterState
from common.files import READABLE, write_atomic
from common.model.build import CxrModel, moves_encoder
from common.pet.towers import VISION, is_adapted
from server.encoder import ENCODER
from server.release_layout import opens_in_peft

_CLINICAL = """
`clinical.safetensors` belongs to it: the logits of the network plus W [z, m], where z are the
variables {} scaled by `common/clinical.py` (0 where missing) and m marks the missing ones.
"""

_ENCODER = """
Pretraining moved the encoder: `{}` holds it whole, in timm's layout. The adapter belongs on it, and
another plan can start from it (`model.weights`).
"""

_TEXT = """
## Reports

The model reads each study's report beside its image: what the redaction `{redaction}` leaves of it, its first
{length} tokens, through the text encoder `{encoder}`. {tower}

`fusion.safetensors` joins them. With x the features that the network's head reads, {read}:

{joined}

Where a study has no report, `fusion.missing_text` stands in for {stands}; without an image,
`fusion.missing_image` stands in for x.
"""

_JOINED = {
    "concatenate": "    logits = head(x) + fusion.text_head.weight t",
    "gated": "    z = sigmoid(fusion.gate.weight [x, t])\n"
    "    logits = head(z tanh(fusion.image.weight x) + (1 - z) tanh(fusion.text.weight t))",
    "cross-attention": "    logits = head(x + out(attention(query(x), key(H), value(H))))\n\n"
    "each of `fusion.query`, `fusion.key`, `fusion.value` and `fusion.out` a weight and a bias, four heads.",
}


def write_card(model: CxrModel, state: AdapterState, plan_digest: str, file: Path) -> None:
    """Write the card as Markdown."""
    write_atomic(file, _card(model, state, plan_digest).encode(), READABLE)


def _card(model: CxrModel, state: AdapterState, plan_digest: str) -> str:
    config = model.config
    method = config.pet.method
    findings = "\n".join(f"{i}. {name}" for i, name in enumerate(model.findings))
    beside = _CLINICAL.format(", ".join(config.data.clinical)) if config.data.clinical else ""
    beside += _ENCODER.format(ENCODER) if moves_encoder(config) else ""
    opened = (
        "`peft.PeftModel.from_pretrained(base, FOLDER)` opens it, where `base` is the timm network\n"
        "with `num_classes` equal to the number of findings and the base weights loaded."
        if opens_in_peft(method) and is_adapted(config, VISION)
        else "The tensors carry the timm network's own names; `common.model.build` loads them."
    )
    return f"""# fedcxr adapter

An adapter for chest radiographs, trained by {method} across sites that kept their images.

- backbone: `{config.model.backbone}`, {config.data.image_size} px, grey values normalised with
  mean {list(model.mean)} and standard deviation {list(model.std)}
- values in the adapter: {sum(t.numel() for t in state.tensors.values()):,}
- base digest: `{model.base_digest}`
- plan digest: `{plan_digest}`

{opened}
{beside}{_reports(model)}
## Output

One logit per finding, in this order; a sigmoid makes it a probability, uncalibrated:

{findings}

## Use

Research. Not a medical device, not validated for diagnosis. The run's `report.json` says at which
sites it was measured, and where it was worse than the site's own model.
"""


def _reports(model: CxrModel) -> str:
    """Say how reports are read and what becomes of them."""
    if model.text is None or model.fusion is None:
        return ""
    config, tower = model.config, model.text
    opened = (
        "`peft` opens its adapter from `text/` on the\ntransformers encoder."
        if opens_in_peft(config.pet.method)
        else "What was trained in it\nlies in `text/` under its own names."
    )
    if tower.encoder.layers > 1:
        states = f"the sum of the last {tower.encoder.layers} layers' hidden states"
    else:
        states = "the last hidden states"
    pooled = "their first token" if tower.encoder.pool == "cls" else "their mean over the report's tokens"
    tokens = model.fusion.reads_tokens
    return _TEXT.format(
        redaction=config.data.redaction,
        length=config.data.text_length,
        encoder=config.model.text_encoder,
        tower="It is as its authors left it." if model.text_is_frozen else opened,
        read=f"and H {states}" if tokens else f"and t of {states} {pooled}",
        joined=_JOINED[config.model.fusion],
        stands="H, as one token" if tokens else "t",
    )
