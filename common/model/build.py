"""Build the model a run describes: frozen, hashed encoders with one PET method in them, and a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from common.adapter import AdapterSchema, AdapterState, Factors, schema_of
from common.config import RunConfig
from common.errors import ModelError
from common.findings import FINDINGS
from common.memory import keep_freed
from common.model.architecture import architecture_of
from common.model.base import initialise_head, load_base
from common.model.digest import tensor_digest
from common.model.fusion import TEXT_HEAD, Fusion, TextInput, build_fusion
from common.model.product import quicken
from common.model.text.encoder import TextTower, load_text_tower
from common.model.tower import Tower
from common.pet.targets import Cut, TextCut, is_final_norm
from common.pet.towers import TEXT, VISION, insert_towers

CLINICAL_WEIGHT = "clinical.weight"
"""Weights ``[F, 2 V]`` of the clinical variables and of the marks that they are missing."""

CHANNELS_LAST = ("resnet", "densenet", "efficientnet")
"""Families whose images lie with their channels next to each other in memory, which is faster; how much,
simulations/benchmarks/local_step.py measures."""
PREFIXES = {VISION: "", TEXT: "text."}
"""Tower -> what its tensors' names begin with; the image model's are those of the plain network."""
FUSION = "fusion."


class CxrModel:
    """Frozen encoders, an adapter in them, and a head with one logit per finding.

    There is an image encoder, and where the plan reads reports a text encoder and a fusion beside it.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.net, self.mean, self.std = load_base(config)
        self.channels = len(self.mean)
        self.head_name: str = self.net.pretrained_cfg["classifier"]
        self.arch = architecture_of(self.net)
        if self.arch.family in CHANNELS_LAST:
            self.net.to(memory_format=torch.channels_last)
        self.findings = config.data.findings
        head = self.net.get_submodule(self.head_name)
        initialise_head(head, config.seed)
        self.clinical = _clinical_head(config)
        self.text: TextTower | None = load_text_tower(config) if config.data.text else None
        self.fusion: Fusion | None = None
        self.towers = {VISION: Tower(self.net, PREFIXES[VISION], self.head_name)}
        if self.text is not None:
            self.fusion = build_fusion(config, head.in_features, self.text.width)
            self.towers[TEXT] = Tower(self.text.net, PREFIXES[TEXT])
        self.base_names = [name for tower in self.towers.values() for name in tower.base_names]
        self._base_originals: dict[str, Tensor] = {}
        self.base_digest = self.current_base_digest()
        self._insert_pet()
        self._initial = {n: p.detach().clone() for n, p in self.parameters.items()}

    def _insert_pet(self) -> None:
        cuts: dict[str, tuple[nn.Module, Cut]] = {VISION: (self.net, self.arch)}
        if self.text is not None:
            cuts[TEXT] = (self.text.net, TextCut(self.text.family, self.text.blocks, self.text.targets))
        for net, _ in cuts.values():
            net.requires_grad_(False)
        for net, _ in cuts.values():
            quicken(net)
        insert_towers(cuts, self.config)
        self.net.get_submodule(self.head_name).requires_grad_(True)
        if self.config.pet.final_norm:
            for name, parameter in self.net.named_parameters():
                if is_final_norm(name):
                    parameter.requires_grad_(True)
        self._name_parameters()
        for net, _ in cuts.values():
            net.eval()

    def _name_parameters(self) -> None:
        """Gather what travels under its names, and the schema of it."""
        encoder = self.towers[VISION].base_parameters() if moves_encoder(self.config) else ()
        named = [pair for tower in self.towers.values() for pair in tower.parameters()]
        if self.fusion is not None:
            named += [(f"{FUSION}{name}", p) for name, p in sorted(self.fusion.named_parameters())]
        if self.clinical is not None:
            named += [(CLINICAL_WEIGHT, p) for p in self.clinical.parameters()]
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in named if parameter.requires_grad or name in encoder
        }
        tuned = {name for name, parameter in named if parameter.requires_grad}
        by_finding = (f"{self.head_name}.", CLINICAL_WEIGHT, TEXT_HEAD)
        head = tuple(name for name in self.parameters if name.startswith(by_finding))
        self.schema = AdapterSchema(
            schema_of(self.parameters).shapes,
            head,
            fusion=tuple(n for n in self.parameters if n.startswith(FUSION) and n not in head),
            encoder=encoder,
            tuned=tuple(name for name in self.parameters if name in tuned),
        )
        originals = self._base_tensors()
        moved = {*self.towers[VISION].base_names} if encoder else set()
        self._base_originals = {
            n: tensor.clone() for n, tensor in originals.items() if n in moved or n in self.parameters
        }

    # ------------------------------------------------------------------ the frozen base

    def _base_tensors(self) -> dict[str, Tensor]:
        return {n: t for tower in self.towers.values() for n, t in tower.base_tensors().items()}

    def current_base_digest(self) -> str:
        """Hash the base as it stands in memory now.

        Where a method trains a base tensor itself (bitfit, norm, full) the value it started from
        counts: the trained one belongs to the adapter. How the text encoder numbers words counts too:
        with another tokenizer the same weights are another encoder.
        """
        tensors = {**self._base_tensors(), **self._base_originals}
        if self.text is not None:
            words = self.text.tokenize([finding.replace("_", " ") for finding in FINDINGS], len(FINDINGS))
            tensors[f"{PREFIXES[TEXT]}tokenizer"] = torch.from_numpy(words.ids)
        return tensor_digest(tensors)

    @property
    def base_numel(self) -> int:
        """Number of parameters of the frozen base, without the head and without buffers."""
        return sum(tower.base_numel for tower in self.towers.values())

    # ------------------------------------------------------------------ the adapter

    def state(self) -> AdapterState:
        """Copy the adapter out (fp32, CPU)."""
        tensors = {n: p.detach().float().cpu() for n, p in self.parameters.items()}
        return AdapterState({n: _copied(tensor) for n, tensor in tensors.items()}, {})

    def initial_state(self) -> AdapterState:
        """The adapter as first built from the run's seed."""
        return AdapterState({n: _copied(tensor.cpu()) for n, tensor in self._initial.items()}, {})

    def load(self, state: AdapterState) -> None:
        """Copy an adapter in, and lay its residual over the layers it belongs to.

        Raises:
            SchemaError: if names or shapes differ from this model's, or a residual fits no layer.
        """
        self.schema.check(state.tensors)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.tensors[name])
        self._lay_residual(state.residual)

    def _lay_residual(self, residual: Mapping[str, Factors]) -> None:
        text = PREFIXES[TEXT] if TEXT in self.towers else None
        for name, tower in self.towers.items():
            tower.lay(
                {
                    layer.removeprefix(tower.prefix): factors
                    for layer, factors in residual.items()
                    if (text is not None and layer.startswith(text)) == (name == TEXT)
                },
                self.device,
            )

    # ------------------------------------------------------------------ computing

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.net.parameters()).device

    def to(self, device: torch.device) -> CxrModel:
        """Move to a device."""
        for module in (self.net, self.clinical, self.text, self.fusion):
            if module is not None:
                module.to(device)
        return self

    def forward(
        self, images: Tensor, clinical: Tensor | None = None, text: TextInput | None = None
    ) -> Tensor:
        """Map normalised images ``[B, C, S, S]`` and scaled variables ``[B, 2 V]`` to logits ``[B, F]``.

        ``text`` is what `read_text` makes of the studies' reports; None: no study has one.
        """
        return self.suffix(self.prefix(images, 0), 0, clinical, text)

    def _beside(self, logits: Tensor, clinical: Tensor | None) -> Tensor:
        """Add what the clinical variables say: one linear head over image features and variables."""
        return logits if self.clinical is None else logits + self.clinical(clinical)

    def image_features(self, images: Tensor) -> Tensor:
        """Map normalised images ``[B, C, S, S]`` to the features ``[B, D]`` that the head reads."""
        return self.prefix(images, len(self.arch.blocks) + 1)

    def read_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run the text tower over tokens ``[B, L]``: ``[B, T]``, or ``[B, L, T]`` for cross-attention.

        Raises:
            ModelError: if the plan reads no reports.
        """
        if self.text is None or self.fusion is None:
            raise ModelError("this model reads no reports", fix="set data.text = true")
        hidden = self.text.hidden(ids, mask)
        return hidden if self.fusion.reads_tokens else self.text.pooled(hidden, mask)

    @property
    def text_is_frozen(self) -> bool:
        """Whether nothing in the text tower is trained; what it makes of a report may be cached."""
        return not any(name.startswith(PREFIXES[TEXT]) for name in self.parameters)

    @property
    def frozen_blocks(self) -> int:
        """How many leading blocks hold nothing trained in any round."""
        return min(self.frozen_cut(self.parameters), len(self.arch.blocks))

    def frozen_cut(self, trained: Iterable[str]) -> int:
        """Return how many leading blocks hold none of the parameters ``trained``.

        It is one more than there are blocks where only the head behind the pooled features is trained.
        """
        own = {name for name, _ in self.towers[VISION].parameters()} & {*trained}
        if not self._stem_is_frozen(own):
            return 0
        for i, block in enumerate(self.arch.blocks):
            if any(n.startswith(f"{block}.") for n in own):
                return i
        behind = all(n.startswith(f"{self.head_name}.") for n in own)
        return len(self.arch.blocks) + behind

    def _stem_is_frozen(self, trained: set[str]) -> bool:
        inside = (*(f"{b}." for b in self.arch.blocks), f"{self.head_name}.")
        return all(n.startswith(inside) or is_final_norm(n) for n in trained)

    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """Run the stem and the first ``blocks`` blocks; one more than there are pools too: ``[B, D]``.

        Of the last block it says what pooling reads: with token pooling of a ViT the class token alone.
        """
        last = self.arch.run(self.net, self.arch.stem(self.net, images), 0, blocks, to_pool=True)
        return self.arch.pool(self.net, last) if blocks > len(self.arch.blocks) else last

    def suffix(
        self, hidden: Tensor, blocks: int, clinical: Tensor | None = None, text: TextInput | None = None
    ) -> Tensor:
        """Run what ``prefix`` with the same ``blocks`` left out; returns logits ``[B, F]``."""
        count = len(self.arch.blocks)
        rest = self.arch.run(self.net, hidden, blocks, count, to_pool=True)
        image = rest if blocks > count else self.arch.pool(self.net, rest)  # [B, D]
        head = self.net.get_classifier()
        if self.fusion is None:
            return self._beside(head(image), clinical)
        return self._beside(self.fusion(image, text or self.fusion.no_text(len(image)), head), clinical)

    def train_mode(self, on: bool) -> None:
        """Switch dropout on or off; BatchNorm always stays with its frozen statistics."""
        if self.net.training == on:
            return
        self.net.train(on)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        if self.text is not None:
            self.text.train(on)


def _copied(tensor: Tensor) -> Tensor:
    """Copy a tensor into memory of its own, row by row whatever way it lay."""
    return tensor.clone(memory_format=torch.contiguous_format)


def moves_encoder(config: RunConfig) -> bool:
    """Whether a run pretrains the whole encoder, which then travels with the adapter."""
    return bool(config.pretrain.rounds) and config.pretrain.parameters == "encoder"


def _clinical_head(config: RunConfig) -> nn.Linear | None:
    """Make a linear head over ``[B, 2 V]`` that starts at zero: the image alone decides at first."""
    if not config.data.clinical:
        return None
    head = nn.Linear(2 * len(config.data.clinical), len(config.data.findings), bias=False)
    nn.init.zeros_(head.weight)
    return head


def build_model(config: RunConfig) -> CxrModel:
    """Build base, adapter and head; the process then keeps the memory that computing with it frees.

    Raises:
        ModelError: for an unknown backbone.
        WeightsError: if the weights do not fit it.
        TargetError: if a PET target matches nothing.
    """
    keep_freed()
    return CxrModel(config)
