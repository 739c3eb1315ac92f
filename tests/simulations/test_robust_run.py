"""A site that lies within what admission lets through moves a weighted mean, and hardly a median."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message

from common.adapter import AdapterState
from common.wire import answer_from_records, answer_to_records
from simulations.engine import run_inline


def reversed_tenfold(reply: Message) -> Message:
    """North sends minus ten times its update."""
    answer = answer_from_records(reply.content)
    if reply.metadata.message_type == "train.round" and answer.site == "north":
        assert answer.update is not None
        reply.content = answer_to_records(replace(answer, update=(-10 * answer.update).astype(np.float32)))
    return reply


def test_a_liar_is_outvoted(
    tiny: Any, tiny_sites: dict[str, Path], tmp_path: Path, final_adapter: Callable[[Path], AdapterState]
) -> None:
    """Of a finding that two sites annotate the median is the mean of both: nobody can be outvoted."""
    pulled = {}
    for mean in ("weighted", "median"):
        config = tiny(
            pet={"method": "head"},
            rounds={"quorum": 3, "count": 1},
            strategy={"mean": mean},
            data={"findings": ["edema", "effusion"]},
        ).run_config(3)
        heads = {}
        for name, tamper in (("honest", lambda reply: reply), ("lied to", reversed_tenfold)):
            folder = tmp_path / mean / name
            run_inline(config, tiny_sites, folder, tamper)
            state = final_adapter(folder)
            heads[name] = torch.cat([state.tensors[key].flatten() for key in sorted(state.tensors)])
        moved = torch.linalg.vector_norm(heads["honest"])
        pulled[mean] = float(torch.linalg.vector_norm(heads["lied to"] - heads["honest"]) / moved)
    assert pulled["weighted"] > 2 and pulled["median"] < 1, pulled
