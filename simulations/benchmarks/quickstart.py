"""A whole simulation against Flower's quickstart pattern with Ray and peft: ``python -m`` this module.

Both do the same: the same sites, images, network, trained parameters, local steps, batches, rounds and
cores, and every site evaluates on its validation studies every round. The pattern (quickstart_pattern.py)
is timed from when Ray and its workers are up, so what it takes to start them is not counted; nor are our
imports. Ours is the real simulation from its first line to its last, building the model and filling the
caches included; it validates once more when the rounds are over and then tests, which the pattern does not.
The bare loop does our local steps and evaluations and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from simulations.benchmarks.pairs import Ratio, ratio
from simulations.benchmarks.quickstart_task import Outcome, Task, prepare

ARMS: Mapping[str, int] = {"head": 0, "last-2": 2, "last-4": 4, "all": 12}
"""Arm -> blocks with LoRA, counted from the end."""
LIMITS: Mapping[str, float] = {"head": 20.0, "last-2": 3.0, "last-4": 2.0, "all": 1.1}
"""Arm -> how many times as long the pattern must take at least, in fp32."""
OVERHEAD = 1.05
"""How many times as long as its bare local steps the whole simulation may take."""
TURNS: Mapping[str, int] = {"head": 6, "last-2": 4, "last-4": 2, "all": 2}
"""Arm -> how often ours and its bare steps run for each run of the pattern, every second time the other way
round: the less there is to compute, the more a slow moment of the machine weighs."""
SIZES: Mapping[str, Mapping[str, Any]] = {
    "head": {"architecture": "vit_tiny_patch16_224", "studies": 1200, "epochs": 3, "batch": 32},
    "all": {"studies": 120},
}
"""Arm -> where its work differs from the others': a head takes so little that on sites as small a plan,
messages and a ledger are most of what either side does; all blocks take so much that fewer studies do."""
_GPU: Mapping[str, Any] = {
    "architecture": "vit_base_patch16_224",
    "image_size": 224,
    "studies": 256,
    "batch": 32,
}
"""The work on a GPU: ViT-B/16 at 224 in bf16."""


@dataclass(frozen=True)
class Row:
    """One arm at one precision."""

    arm: str
    precision: str
    gain: Ratio
    """The pattern's seconds over ours."""
    overhead: Ratio
    """Ours over the bare loop's."""
    pattern: Outcome
    ours: Outcome

    @property
    def missed(self) -> list[str]:
        """Limits that were missed; none are stated for bf16."""
        if self.precision != "fp32":
            return []
        missed = []
        if self.gain.value < LIMITS[self.arm]:
            missed.append(f"{self.arm}: {self.gain.value:.3g} times, expected {LIMITS[self.arm]:g}")
        if self.overhead.value > OVERHEAD:
            over = self.overhead.value
            missed.append(f"{self.arm}: {over:.3f} of the bare steps, expected {OVERHEAD} at most")
        return missed


def measure(arm: str, task: Task, pairs: int) -> Row:
    """Do the work in the three ways in turns; the pattern has a process of its own, as Ray has.

    Ours and the bare loop are short and differ by little: they run ``TURNS`` times for each pattern.
    """
    gains: list[tuple[float, float]] = []
    overheads: list[tuple[float, float]] = []
    turns = TURNS[arm]
    for _ in range(pairs):
        told = run_apart(["pattern"], task)
        for turn in range(turns):
            told |= run_apart(["ours", "bare"] if turn % 2 == 0 else ["bare", "ours"], task)
            overheads.append((told["bare"].seconds, told["ours"].seconds))
        ours = [seconds for _, seconds in overheads[-turns:]]
        gains.append((fmean(ours), told["pattern"].seconds))
    precision = "bf16" if task.bf16 else "fp32"
    return Row(arm, precision, ratio(gains), ratio(overheads), told["pattern"], told["ours"])


def run_apart(kinds: Sequence[str], task: Task) -> dict[str, Outcome]:
    """Do the work in some ways in a fresh process.

    Raises:
        SystemExit: if it does not finish, with the end of what it said.
    """
    source, target = (Path(task.folder) / name for name in ("task.json", "outcome.json"))
    source.write_text(json.dumps(asdict(task)), encoding="utf-8")
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "simulations.benchmarks.quickstart_task", str(source), str(target)]
    done = subprocess.run([*command, *kinds], capture_output=True, text=True, check=False)
    if not target.is_file():
        raise SystemExit(f"{kinds} did not finish:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    told = json.loads(target.read_text(encoding="utf-8"))
    return {kind: Outcome(**told[kind]) for kind in kinds}


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out in words and figures."""
    lines = []
    for row in rows:
        lines += [
            f"{row.arm}, {row.precision}",
            f"  the pattern takes as many times as long as ours: {row.gain}",
            f"  ours takes, of the bare local steps:             {row.overhead}",
            f"  at the end, the pattern: loss {row.pattern.loss:.3f}, AUROC {row.pattern.auroc:.3f}; "
            f"ours: loss {row.ours.loss:.3f}, AUROC {row.ours.auroc:.3f}",
        ]
        if row.pattern.steps is not None:
            lines.append(
                f"  steps are {row.pattern.steps:.0%} of what the pattern's workers do when they train"
            )
    return "\n".join(lines)


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 if a limit was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--studies", type=int, help="per site")
    parser.add_argument("--epochs", type=int, help="local epochs per round")
    parser.add_argument("--rounds", type=int, default=Task.rounds)
    parser.add_argument("--size", type=int, default=Task.image_size, help="side of the images in pixels")
    parser.add_argument("--architecture", default=Task.architecture, help="timm's name of a 12-block ViT")
    both = ["fp32", "bf16"]
    parser.add_argument("--precisions", nargs="+", choices=both, default=both, help="on a CPU")
    parser.add_argument("--plain", action="store_true", help="ours by torch's own products, as the pattern's")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        _say("not run: no GPU")
        return 0
    cores = os.cpu_count() or 1
    _say(f"{cores} cores, a ViT of 12 blocks, 8 sites, {chosen.rounds} rounds")
    precisions = ["bf16"] if chosen.device == "cuda" else chosen.precisions
    if chosen.device == "cpu" and "bf16" in precisions and not has_bf16():
        _say("bf16: not run, the processor does not have it")
        precisions = [precision for precision in precisions if precision != "bf16"]
    rows: list[Row] = []
    for arm in chosen.arms:
        with tempfile.TemporaryDirectory() as folder:
            task = _task(arm, folder, chosen, cores)
            prepare(task)
            _say(f"{arm}: {task.studies} studies a site, {task.epochs} epochs, batches of {task.batch}")
            for precision in precisions:
                rows.append(measure(arm, replace(task, bf16=precision == "bf16"), chosen.pairs))
                _say(table(rows[-1:]))
    missed = [] if chosen.device == "cuda" else [line for row in rows for line in row.missed]
    if chosen.json is not None:
        told = [asdict(row) for row in rows]
        chosen.json.write_text(json.dumps({"cores": cores, "rows": told}, indent=1), encoding="utf-8")
    for line in missed:
        _say(f"missed: {line}")
    return 1 if missed else 0


def _task(arm: str, folder: str, chosen: argparse.Namespace, cores: int) -> Task:
    size = {"architecture": chosen.architecture, "image_size": chosen.size, "rounds": chosen.rounds}
    given = {name: getattr(chosen, name) for name in ("studies", "epochs") if getattr(chosen, name)}
    own = {**SIZES.get(arm, {}), **(_GPU if chosen.device == "cuda" else {})}
    where = {"cores": cores, "device": chosen.device, "plain": chosen.plain, "last": ARMS[arm]}
    return Task(folder, **{**size, **own, **given, **where})


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
