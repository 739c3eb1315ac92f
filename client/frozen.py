"""The frozen parts of a model: what is in them, whether they repeat themselves, and what they say.

When every parameter that a round trains sits behind block k, the blocks before it give the same output for
the same image from round to round. What they hold is the base, whose digest both sides know, and whatever
PET tensors do not move meanwhile: in a probe all of them. The name of a part therefore holds the digests of
both, and no output is ever used for a part with other values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from client.streams import STREAMS
from common.errors import ModelError
from common.model.build import PREFIXES, CxrModel
from common.model.digest import tensor_digest
from common.pet.targets import is_final_norm
from common.pet.towers import TEXT, VISION

TOGETHER = {"cpu": 16}
"""Device -> studies that go through a frozen part together, always as many: what a part says of a study then
does not depend on which others are asked for, to the last bit. More are no faster on a CPU, and the last of a
site's are filled up to that number."""
_TOGETHER_ELSEWHERE = 32


class Frozen(ABC):
    """Some modules of a network in which nothing moves for the time being."""

    def __init__(
        self, model: CxrModel, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
    ) -> None:
        self._model = model
        self._modules = modules
        self._tensors = {name: tensors[name] for name in sorted(tensors)}
        self.is_random = any(_is_random(module) for module in modules.values())
        """Whether dropout or stochastic depth may leave out a part of it while training."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._model.device

    @property
    def together(self) -> int:
        """How many studies go through it at once."""
        return TOGETHER.get(self.device.type, _TOGETHER_ELSEWHERE)

    @property
    def streams(self) -> int:
        """How many times as many may go through it side by side."""
        return STREAMS if self.device.type == "cpu" else 1

    @property
    def is_overlaid(self) -> bool:
        """Whether a residual lies over one of its layers."""
        return any(name in self._modules for tower in self._model.towers.values() for name in tower.laid)

    @property
    def stamp(self) -> tuple[int, ...]:
        """What changes whenever something is written into what is not the base's own."""
        return tuple(tensor._version for tensor in self._tensors.values())

    def name(self) -> dict[str, Any]:
        """Return all that decides what it says, as it stands now."""
        config = self._model.config
        told: dict[str, Any] = {
            "base": self._model.base_digest,
            "backbone": config.model.backbone,
            "size": config.data.image_size,
            "device": self._model.device.type,
            "torch": torch.__version__,
            "timm": version("timm"),
        }
        if self._tensors:
            told |= {"pet": config.pet.model_dump(mode="json"), "lora": config.lora.model_dump(mode="json")}
            told["values"] = tensor_digest(self._tensors)
        return told | self._described()

    def check_still(self) -> None:
        """See that nothing in it is about to be trained.

        Raises:
            ModelError: if something is: what is kept of it would go stale.
        """
        for name, tensor in self._tensors.items():
            if tensor.requires_grad:
                raise ModelError(
                    "a trained parameter lies in the part of the model whose output is kept",
                    found=name,
                    fix="take the inputs of that round: StudyInputs.of_round",
                )

    @torch.no_grad()
    def say(self, *batch: Tensor) -> Tensor:
        """Run up to ``together`` studies, filled up to as many; fp32 and eval mode, whatever is around."""
        count, whole = len(batch[0]), self.together
        filled = [torch.cat([part, part.new_zeros(whole - count, *part.shape[1:])]) for part in batch]
        with self.at_rest(), torch.autocast(self._model.device.type, enabled=False):
            return self._run(*filled)[:count]

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep the model in eval mode until the block ends."""
        training = self._model.net.training
        self._model.train_mode(False)
        try:
            yield
        finally:
            self._model.train_mode(training)

    @abstractmethod
    def _run(self, *batch: Tensor) -> Tensor: ...

    @abstractmethod
    def _described(self) -> dict[str, Any]: ...


class ImagePrefix(Frozen):
    """The image encoder up to a cut, as `CxrModel.prefix` counts it."""

    def __init__(self, model: CxrModel, cut: int) -> None:
        self.cut = cut
        blocks = model.arch.blocks
        behind = (*(f"{block}." for block in blocks[cut:]), f"{model.head_name}.")

        def inside(name: str) -> bool:
            return not f"{name}.".startswith(behind) and (cut > len(blocks) or not is_final_norm(name))

        tower = model.towers[VISION]
        moved = {name: p for name, p in tower.parameters() if name in model.parameters}
        tensors = {name: t for name, t in (*tower.added(), *moved.items()) if inside(name)}
        modules = {name: module for name, module in model.net.named_modules() if inside(name)}
        super().__init__(model, modules, tensors)

    def _run(self, *batch: Tensor) -> Tensor:
        return self._model.prefix(batch[0], self.cut)

    def _described(self) -> dict[str, Any]:
        model = self._model
        pooled = {"pool": model.config.model.pool} if self.cut > len(model.arch.blocks) else {}
        seen = {"fit": model.config.data.fit, "mean": model.mean, "std": model.std}
        return {"part": "image", "cut": self.cut, **seen, **pooled}


class TextReader(Frozen):
    """The whole text tower, read as the fusion reads it."""

    def __init__(self, model: CxrModel) -> None:
        tower = model.towers[TEXT]
        moved = {name: p for name, p in tower.parameters() if name in model.parameters}
        modules = {f"{PREFIXES[TEXT]}{name}": m for name, m in tower.net.named_modules()}
        super().__init__(model, modules, {**dict(tower.added()), **moved})

    def _run(self, *batch: Tensor) -> Tensor:
        return self._model.read_text(*batch)

    def _described(self) -> dict[str, Any]:
        data, model = self._model.config.data, self._model.config.model
        read = {"redaction": data.redaction, "length": data.text_length}
        return {"part": "text", "encoder": model.text_encoder, "fusion": model.fusion, **read}


def _is_random(module: nn.Module) -> bool:
    """Whether a module may leave something out at random while training."""
    share = getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
    return bool(share or getattr(module, "drop_prob", None))
