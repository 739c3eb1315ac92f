"""Many small sites trained in one pass over their stacked adapters, against one by one.

    python -m simulations.benchmarks.stacked --sites 32 --stack 8 32

Every site is a real worker with phantoms of its own, asked for a round of training as the server asks it:
it measures itself, trains and encodes its update. Both ways have warm caches, the same threads and the
same instruction, and are timed in turns. What one way sends is compared with what the other does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.app import worker_for
from client.worker import ModelPool, SiteWorker
from common.code import code_digest
from common.config import RunConfig
from common.overrides import merge
from common.protocol import Answer, Instruction
from simulations.benchmarks.pairs import Ratio, paired, ratio
from simulations.experiment import Experiment
from simulations.prepare import prepare_sites
from simulations.run import quiet_libraries
from simulations.stacked.meeting import Meeting

APART = 1e-2
"""Most that an update of one way may differ from the other's, as a share of its length. AdamW divides a
gradient by its own size, so it does the same with rounding where a gradient is almost zero."""
BATCH = 8
SIZE = 96

ARMS: Mapping[str, dict[str, Any]] = {
    "head": {"pet": {"method": "head"}},
    "LoRA in the last 2 blocks": {"pet": {"scope": "last-2"}},
    "LoRA in all blocks": {},
    "LoRA in all blocks, SGD": {"train": {"optimizer": "sgd", "lr": 0.01}},
}


@dataclass(frozen=True)
class Row:
    """One arm at one size of stack."""

    arm: str
    stack: int
    faster: Ratio
    """Seconds one by one / seconds in passes of ``stack`` sites."""
    apart: float
    """The largest distance between a site's updates, as a share of the update's length."""
    studies_per_second: float
    """In passes, from the median pair."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 if the two ways train different adapters."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--studies", type=int, default=24, help="studies of a site, of which 70 %% train")
    parser.add_argument("--stack", type=int, nargs="+", default=[8, 32], help="sites in one pass")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS][:3], metavar="ARM")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="as train.precision")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        _say("not run: no GPU")
        return 0
    quiet_libraries()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files = prepare_sites(_experiment(chosen, {}), Path(folder) / "sites")
        _say(
            f"{chosen.sites} sites of {chosen.studies} studies, {chosen.backbone} at {chosen.size} px, "
            f"batch {BATCH}, {chosen.device}; {os.cpu_count()} cores, "
            f"{chosen.threads or os.cpu_count()} threads"
        )
        _say(f"{'trained':<28}{'stack':>6}  one by one / in one pass                       apart  studies/s")
        for arm in chosen.arms:
            config = _experiment(chosen, ARMS[arm]).run_config(len(files))
            for row in measure(arm, config, files, chosen.device, chosen.stack, chosen.pairs):
                rows.append(row)
                words = f"{row.arm:<28}{row.stack:>6}  {row.faster!s:<44}{row.apart:>8.1e}"
                _say(f"{words}{row.studies_per_second:>11.0f}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    apart = [f"{row.arm}: {row.apart:.1e}" for row in rows if not row.apart <= APART]
    said = f"updates differ by more than {APART:g}: {', '.join(apart)}"
    _say(said if apart else f"both ways send the same updates, within {APART:g} of their length")
    return bool(apart)


def measure(
    arm: str, config: RunConfig, files: Mapping[str, Path], device: str, stacks: Sequence[int], pairs: int
) -> list[Row]:
    """Time a round of training at all sites both ways; the workers are this arm's own."""
    flat, pool = config.to_flat(), ModelPool()
    workers = []
    for file in files.values():
        site = worker_for(file).site
        on = site.device.model_copy(update={"name": device})
        workers.append(SiteWorker(site.model_copy(update={"device": on}), pool))
    base = workers[0].base_digest(flat)
    model = pool.get(config, torch.device(device))
    instruction = Instruction(
        "train",
        config.plan_digest(base, code_digest()),
        code_digest(),
        base,
        round=1,
        adapter=model.schema.pack(model.initial_state().tensors),
    )
    calls = [partial(worker.handle, instruction, flat) for worker in workers]

    def alone() -> list[Answer]:
        return _waited_for(device, lambda: [call() for call in calls])

    rows, expected = [], alone()
    studies = float(np.sum([answer.metrics["num-examples"] for answer in expected]))
    for stack in stacks:

        def together(stack: int = stack) -> list[Answer]:
            where = Meeting(stack)
            groups = [calls[i : i + stack] for i in range(0, len(calls), stack)]
            return _waited_for(device, lambda: [a for group in groups for a in where.answer(group)])

        apart = max(distance(a, b) for a, b in zip(expected, together(), strict=True))
        times = paired(together, alone, pairs)
        speed = studies / float(np.median([first for first, _ in times]))
        rows.append(Row(arm, stack, ratio(times), apart, round(speed, 1)))
    return rows


def distance(one: Answer, other: Answer) -> float:
    """Return how far two updates are apart, as a share of the first's length; infinite without one."""
    if one.update is None or other.update is None:
        return float("inf")
    mine, theirs = one.update.astype(np.float64), other.update.astype(np.float64)
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(mine))


def _waited_for(device: str, work: Callable[[], list[Answer]]) -> list[Answer]:
    answers = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return answers


def _experiment(chosen: argparse.Namespace, arm: dict[str, Any]) -> Experiment:
    sites = {
        f"site{i:03d}": {"phantom": {"studies": chosen.studies, "seed": i + 1, "size": chosen.size}}
        for i in range(chosen.sites)
    }
    tree = {
        "arms": ["federated"],
        "threads": chosen.threads,
        "data": {"image_size": chosen.size},
        "model": {"backbone": chosen.backbone},
        "train": {"batch_size": BATCH, "precision": chosen.precision},
        "rounds": {"count": 2},
        "sites": sites,
    }
    return Experiment.build(merge(tree, arm))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
