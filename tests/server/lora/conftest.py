"""Two adapted layers that no transposition leaves alone, and sites that drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.adapter import AdapterState, schema_of
from server.update import SiteUpdate

OUT, IN, RANK = 7, 11, 3
CHANNELS_OUT, CHANNELS_IN, KERNEL = 9, 4, (3, 2)
SHAPES = {
    "blocks.0.fc1.lora_A.weight": (RANK, IN),
    "blocks.0.fc1.lora_B.weight": (OUT, RANK),
    "head.bias": (2,),
    "layer1.0.conv1.lora_A.weight": (RANK, CHANNELS_IN, *KERNEL),
    "layer1.0.conv1.lora_B.weight": (CHANNELS_OUT, RANK, 1, 1),
}
LAYERS = {"blocks.0.fc1": (OUT, IN), "layer1.0.conv1": (CHANNELS_OUT, CHANNELS_IN * 6)}


class Federation:
    """Sites whose adapters drift from a common start by a given amount."""

    schema = schema_of({n: torch.empty(s) for n, s in SHAPES.items()}, ["head.bias"])
    layers = LAYERS
    rank = RANK

    def start(self, seed: int = 0) -> AdapterState:
        """A drawn, B zero, as LoRA begins."""
        generator = torch.Generator().manual_seed(seed)
        return AdapterState(
            {
                n: torch.zeros(s) if "lora_B" in n else torch.randn(s, generator=generator)
                for n, s in SHAPES.items()
            },
            {},
        )

    def updates(self, seed: int, examples=(5, 70, 11), drift: float = 0.3, names=None) -> list[SiteUpdate]:
        generator = torch.Generator().manual_seed(1000 + seed)
        deltas = [
            {n: drift * torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in examples
        ]
        return [
            SiteUpdate(f"s{i}", n, np.array([n, n]), {k: d[k] for k in names or SHAPES})
            for i, (n, d) in enumerate(zip(examples, deltas, strict=True))
        ]

    def dense_mean(self, before: AdapterState, updates: list[SiteUpdate], layer: str) -> np.ndarray:
        """M = sum_i w_i B_i A_i as one matrix in float64, straight from its definition."""
        total = sum(u.num_examples for u in updates)
        a, b = self.factors(before, updates, layer)
        return sum(u.num_examples / total * (b_i @ a_i) for u, a_i, b_i in zip(updates, a, b, strict=True))

    def factors(self, before, updates, layer) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Each site's A_i and B_i after its training."""
        both = []
        for side in "AB":
            name = f"{layer}.lora_{side}.weight"
            start = before.tensors[name].numpy()
            own = [start + u.delta[name].numpy() if name in u.delta else start for u in updates]
            both.append([o.astype(np.float64).reshape(len(o), -1) for o in own])
        return both[0], both[1]

    def low_rank(self, state: AdapterState, layer: str) -> np.ndarray:
        """B A of a state, dense."""
        a = state.tensors[f"{layer}.lora_A.weight"].numpy().astype(np.float64)
        b = state.tensors[f"{layer}.lora_B.weight"].numpy().astype(np.float64)
        return b.reshape(len(b), -1) @ a.reshape(len(a), -1)

    def residual(self, state: AdapterState, layer: str) -> np.ndarray:
        """The residual of a layer, dense; zero where there is none."""
        if layer not in state.residual:
            return np.zeros(self.layers[layer])
        kept = state.residual[layer]
        return kept.left.numpy().astype(np.float64) @ kept.right.numpy().astype(np.float64)


@pytest.fixture(scope="session")
def federation() -> Federation:
    return Federation()
