"""The adapter: the trained tensors that travel, whatever the PET method, and their schema."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from common.errors import SchemaError
from common.model.digest import tensor_digest


@dataclass(frozen=True)
class AdapterSchema:
    """Tensor names and shapes in wire order; every value is fp32."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    head: tuple[str, ...] = ()
    """Tensors whose first dimension is one row per finding."""
    fusion: tuple[str, ...] = ()
    """Tensors beside the head that begin anew with every run: they join towers, or stand in for one."""
    encoder: tuple[str, ...] = ()
    """Tensors of the base that pretraining moves; empty where none does."""
    tuned: tuple[str, ...] | None = None
    """Tensors that training moves; None: all."""

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in wire order."""
        return tuple(name for name, _ in self.shapes)

    @property
    def numel(self) -> int:
        """Number of values."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def select(self, names: Iterable[str]) -> AdapterSchema:
        """Keep the named tensors, in this schema's order."""
        kept = set(names)
        return AdapterSchema(
            tuple((n, s) for n, s in self.shapes if n in kept),
            tuple(n for n in self.head if n in kept),
            tuple(n for n in self.fusion if n in kept),
            tuple(n for n in self.encoder if n in kept),
            None if self.tuned is None else tuple(n for n in self.tuned if n in kept),
        )

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise SchemaError unless ``tensors`` has exactly these names and shapes."""
        if set(tensors) != set(self.names):
            missing, extra = set(self.names) - set(tensors), set(tensors) - set(self.names)
            raise SchemaError(
                "tensor names differ from the adapter's schema",
                found=f"{len(missing)} missing, {len(extra)} unexpected",
            )
        for name, shape in self.shapes:
            if tuple(tensors[name].shape) != shape:
                raise SchemaError(
                    f"tensor {name!r} has another shape than the schema",
                    found=f"{tuple(tensors[name].shape)}, expected {shape}",
                )

    def pack(self, tensors: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Lay the tensors end to end: one flat fp32 vector ``[numel]``."""
        self.check(tensors)
        if not self.shapes:
            return np.zeros(0, dtype=np.float32)
        flat = torch.cat([tensors[name].detach().reshape(-1).float() for name in self.names])
        return flat.cpu().numpy()

    def unpack(self, flat: NDArray[np.floating]) -> dict[str, Tensor]:
        """Cut a flat vector ``[numel]`` back into named fp32 tensors.

        Raises:
            SchemaError: if the vector has another length or is not one-dimensional.
        """
        if flat.ndim != 1 or flat.size != self.numel:
            raise SchemaError(
                "an adapter vector has another shape than the schema",
                found=f"{tuple(flat.shape)}, expected ({self.numel},)",
            )
        vector = torch.from_numpy(flat.astype(np.float32, copy=True))
        sizes = [math.prod(shape) for _, shape in self.shapes]
        parts = vector.split(sizes) if sizes else ()
        return {
            name: part.reshape(shape).clone() for (name, shape), part in zip(self.shapes, parts, strict=True)
        }


@dataclass(frozen=True)
class Factors:
    """A low-rank matrix ``left [out, k] @ right [k, in]`` kept beside a frozen layer."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class AdapterState:
    """What a model needs beyond its base: the adapter, and fedex's residual where there is one."""

    tensors: dict[str, Tensor]
    residual: dict[str, Factors]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def plus(self, delta: Mapping[str, Tensor]) -> AdapterState:
        """Return the adapter with a partial ``delta`` added; what it does not name stays."""
        moved = {name: self.tensors[name] + value for name, value in delta.items()}
        return AdapterState({**self.tensors, **moved}, self.residual)

    def digest(self) -> str:
        """SHA-256 over every tensor, the residual included."""
        return tensor_digest(self._flat())

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """Serialise as safetensors."""
        return save({n: t.contiguous() for n, t in self._flat().items()}, dict(metadata or {}))

    @classmethod
    def from_bytes(cls, data: bytes) -> AdapterState:
        """Read what ``to_bytes`` wrote."""
        return cls._split(load(data))

    def residual_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The residual as named matrices, for the wire."""
        return {n: t.numpy() for n, t in self._flat().items() if n.startswith(_RESIDUAL)}

    @classmethod
    def join(cls, tensors: dict[str, Tensor], residual: Mapping[str, NDArray[np.float32]]) -> AdapterState:
        """Put adapter tensors and the wire form of a residual back together.

        Raises:
            SchemaError: if a residual is not one left and one right matrix per layer.
        """
        arrays = {name: torch.from_numpy(np.array(a)) for name, a in residual.items()}
        return cls._split({**tensors, **arrays})

    @classmethod
    def _split(cls, flat: Mapping[str, Tensor]) -> AdapterState:
        tensors = {n: t for n, t in flat.items() if not n.startswith(_RESIDUAL)}
        layers = {n.removeprefix(_RESIDUAL).rpartition(".")[0] for n in flat if n not in tensors}
        pairs = {f"{_RESIDUAL}{layer}.{side}" for layer in layers for side in ("left", "right")}
        matrices = all(flat[n].ndim == 2 for n in flat if n not in tensors)
        if not matrices or pairs != set(flat) - set(tensors):
            raise SchemaError("a residual is not one left and one right matrix per layer")
        residual = {
            layer: Factors(flat[f"{_RESIDUAL}{layer}.left"], flat[f"{_RESIDUAL}{layer}.right"])
            for layer in sorted(layers)
        }
        return cls(tensors, residual)

    def _flat(self) -> dict[str, Tensor]:
        flat = dict(self.tensors)
        for layer, factors in self.residual.items():
            flat[f"{_RESIDUAL}{layer}.left"] = factors.left
            flat[f"{_RESIDUAL}{layer}.right"] = factors.right
        return flat


_RESIDUAL = "residual:"


def schema_of(tensors: Mapping[str, Tensor], head: Iterable[str] = ()) -> AdapterSchema:
    """Describe named tensors, in the order given."""
    return AdapterSchema(tuple((n, tuple(t.shape)) for n, t in tensors.items()), tuple(head))
