"""The forward pass of several sites at once: one base, each site's own adapter and studies.

``S`` sites, ``B`` studies of each, ``N`` values of an adapter, ``F`` findings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from client.prefix_cache import Batch, StudyInputs
from common.adapter import AdapterState
from common.model.build import CxrModel
from simulations.stacked.attention import FoldedAttention


class StackedForward:
    """Maps stacked adapters ``[S, N]`` and stacked studies to logits ``[S, B, F]``.

    What every site has alike, the frozen base and the adapter tensors that a round does not train, is
    there once; a product with it runs over the studies of all sites together.
    """

    def __init__(self, model: CxrModel, names: Sequence[str], starts: Sequence[AdapterState]) -> None:
        """Lay the trained ``names`` of all ``starts`` end to end, one row for each site."""
        self._model = model
        self.names = tuple(names)
        self._shapes = [tuple(model.parameters[name].shape) for name in names]
        self.sizes = [math.prod(shape) for shape in self._shapes]
        packed = [torch.cat([start.tensors[name].reshape(-1).float() for name in names]) for start in starts]
        self.start = torch.stack(packed).to(model.device)
        self._whole = _Whole(model)
        called = {id(parameter): name for name, parameter in self._whole.named_parameters()}
        self._called = {name: called[id(parameter)] for name, parameter in model.parameters.items()}
        self._fixed = {
            self._called[name]: torch.stack([start.tensors[name] for start in starts]).to(model.device)
            for name in model.parameters
            if name not in self.names and _differs(name, starts)
        }

    def logits(self, adapters: Tensor, batches: Sequence[Batch], inputs: StudyInputs) -> Tensor:
        """Return logits ``[S, B, F]`` for the first sites' ``batches``, of which the shortest is padded.

        A batch with fewer than ``B`` studies repeats its first one; what is said of those is no site's.
        """
        sites, width = len(batches), max(len(batch.images) for batch in batches)
        parts = adapters.split(self.sizes, dim=1)
        trained = {
            self._called[name]: part.unflatten(1, shape) if shape else part.squeeze(1)
            for name, part, shape in zip(self.names, parts, self._shapes, strict=True)
        }
        fixed = {name: tensor[:sites] for name, tensor in self._fixed.items()}
        studies = [_stacked([batch.images for batch in batches], width)]
        clinical = [batch.clinical for batch in batches if batch.clinical is not None]
        if clinical:
            studies.append(_stacked(clinical, width))

        def one_site(parameters: dict[str, Tensor], images: Tensor, clinical: Tensor | None = None) -> Tensor:
            batch = batches[0]._replace(images=images, clinical=clinical)
            logits: Tensor = functional_call(self._whole, parameters, (inputs, batch))
            return logits

        with FoldedAttention():
            return vmap(one_site)(trained | fixed, *studies)

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """Cut one site's row ``[N]`` back into named tensors on the CPU."""
        parts = row.detach().cpu().split(self.sizes)
        cut = zip(self.names, parts, self._shapes, strict=True)
        return {name: part.reshape(shape).clone() for name, part, shape in cut}


class _Whole(nn.Module):
    """Every module that holds a parameter of the model, so that all can be put in by name."""

    def __init__(self, model: CxrModel) -> None:
        super().__init__()
        self.net, self.clinical = model.net, model.clinical

    def forward(self, inputs: StudyInputs, batch: Batch) -> Tensor:
        """Return logits ``[B, F]``."""
        return inputs.logits(batch)


def _differs(name: str, starts: Sequence[AdapterState]) -> bool:
    first = starts[0].tensors[name]
    return any(not torch.equal(first, other.tensors[name]) for other in starts[1:])


def _stacked(parts: Sequence[Tensor], width: int) -> Tensor:
    """Stack ``[b, ...]`` to ``[S, width, ...]``; a short part repeats its first row."""
    rows = []
    for part in parts:
        missing = width - len(part)
        rows.append(torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part)
    return torch.stack(rows)
