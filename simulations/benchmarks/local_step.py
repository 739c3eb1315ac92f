"""What each choice in the local training step is worth: ``python -m simulations.benchmarks.local_step``.

Steps (forward, backward, AdamW) with a choice of ours against the same steps without it, in turns, after some
of each to warm up; the cache of frozen activations is filled likewise. The last row is a choice that was not
made: ``torch.compile`` of every block in place of the first two, and how many steps its compiling takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before peft)
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from client.frozen import ImagePrefix
from client.streams import side_by_side
from client.train import masked_bce
from common.config import RunConfig
from common.memory import freed_given_back
from common.model.build import CxrModel, build_model
from common.model.product import onednn_is_faster, plain_products
from common.pet.fused import FusedLinear
from simulations.benchmarks.pairs import Ratio, paired, ratio, seconds
from simulations.run import quiet_libraries

VIT, CNN = "vit_small_patch16_224", "densenet121"
_FREED = 8 << 20
"""Bytes: not less than what a step of these frees at once, and glibc adapts itself to that."""


def _as_it_is(model: CxrModel) -> None:
    """Leave a model alone."""


def _without_fused(model: CxrModel) -> None:
    fused: list[nn.Module] = [module for module in model.net.modules() if isinstance(module, FusedLinear)]
    for module in fused:
        module.__class__ = PeftLinear


def _with_whole_last_block(model: CxrModel) -> None:
    model.arch = dataclasses.replace(model.arch, finish=None)


def _with_memory_given_back() -> AbstractContextManager[None]:
    return freed_given_back(_FREED)


def _with_rows_first(model: CxrModel) -> None:
    model.net.to(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Choice:
    """One choice, and how it is taken back."""

    words: str
    backbone: str = VIT
    scope: str = "all"
    undo: Callable[[CxrModel], None] = _as_it_is
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """What the steps without it run in."""


CHOICES = {
    "products": Choice("linear layers by oneDNN, not MKL", around=plain_products),
    "lora": Choice("LoRA as one product, not peft's branch", undo=_without_fused),
    "token": Choice("last two blocks, at the class token", scope="last-2", undo=_with_whole_last_block),
    "memory": Choice("last two blocks, freed memory kept", scope="last-2", around=_with_memory_given_back),
    "channels": Choice("a DenseNet's channels last in memory", backbone=CNN, undo=_with_rows_first),
}


@dataclass(frozen=True)
class Row:
    """How long the steps take without a choice, over with it."""

    choice: str
    words: str
    ratio: Ratio
    compiling: float | None = None
    """Steps that its compiling takes, where there is any."""


def model_of(choice: Choice, size: int) -> CxrModel:
    """Build the model of a choice, with everything as we run it."""
    plan: dict[str, Any] = {
        "model.backbone": f"timm:{choice.backbone}",
        "data.image-size": size,
        "pet.scope": choice.scope,
    }
    return build_model(RunConfig.from_flat(plan))


def steps_of(model: CxrModel, batch: int, count: int) -> Callable[[], None]:
    """Return what takes ``count`` steps on noise; the blocks before those that are trained have run."""
    generator = torch.Generator().manual_seed(0)
    size, cut = model.config.data.image_size, model.frozen_blocks
    images = torch.randn(batch, model.channels, size, size, generator=generator)
    labels = torch.randint(0, 2, (batch, len(model.findings)), generator=generator).float()
    optimizer = torch.optim.AdamW(model.parameters.values(), fused=True)
    with torch.no_grad():
        hidden = model.prefix(images, cut) if cut else images
    model.train_mode(True)

    def work() -> None:
        for _ in range(count):
            logits = model.suffix(hidden, cut) if cut else model.forward(hidden)
            optimizer.zero_grad(set_to_none=True)
            masked_bce(logits, labels, None).backward()
            optimizer.step()

    return work


def measure(name: str, size: int, batch: int, count: int, pairs: int) -> Row:
    """Time the steps of a choice with and without it."""
    choice = CHOICES[name]
    other = model_of(choice, size)
    choice.undo(other)
    with_it = steps_of(model_of(choice, size), batch, count)
    steps = steps_of(other, batch, count)

    def without() -> None:
        with choice.around():
            steps()

    with_it()
    without()
    return Row(name, choice.words, ratio(paired(with_it, without, pairs)))


def measure_filling(size: int, count: int, pairs: int) -> Row:
    """Time a frozen ViT that all threads run together over one that they run side by side."""
    choice = Choice("frozen blocks: studies side by side on threads")
    model = model_of(choice, size)
    prefix = ImagePrefix(model, len(model.arch.blocks))
    studies = count * prefix.together * min(prefix.streams, torch.get_num_threads())
    images = torch.randn(studies, model.channels, size, size, generator=torch.Generator().manual_seed(0))

    def fill(streams: int) -> None:
        with prefix.at_rest():
            deque(side_by_side(prefix.say, images.split(prefix.together), streams), maxlen=0)

    fill(prefix.streams)
    fill(1)
    return Row("filling", choice.words, ratio(paired(lambda: fill(prefix.streams), lambda: fill(1), pairs)))


def measure_compiled(size: int, batch: int, count: int, pairs: int) -> Row:
    """Time steps that torch has compiled over ours.

    Its compiler does not take our products, so it makes its own of torch's.

    Raises:
        RuntimeError: where torch cannot compile here.
    """
    choice = Choice("all of it; torch.compile in its place")
    compiled = model_of(choice, size)
    for block in compiled.arch.blocks:
        compiled.net.get_submodule(block).compile()
    ours, steps = steps_of(model_of(choice, size), batch, count), steps_of(compiled, batch, count)

    def instead() -> None:
        with plain_products():
            steps()

    first = seconds(instead)
    ours()
    instead()
    times = paired(ours, instead, pairs)
    later = sorted(took for _, took in times)[len(times) // 2]
    return Row("compile", choice.words, ratio(times), max(first - later, 0.0) / later * count)


def line(row: Row) -> str:
    """Lay a row out.

    >>> line(Row("lora", "LoRA as one product", Ratio(1.5, 1.4, 1.6, 5), compiling=20.2))[-32:]
    'pairs); compiling takes 20 steps'
    """
    compiling = "" if row.compiling is None else f"; compiling takes {row.compiling:.0f} steps"
    return f"{row.words:48}{row.ratio}{compiling}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*CHOICES, "filling", "compile"]
    parser.add_argument("--choices", nargs="+", choices=every, default=every)
    parser.add_argument("--size", type=int, default=112, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="timed together")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(chosen.threads)
    _say(f"training steps at {chosen.size} px in batches of {chosen.batch}, {chosen.threads} threads;")
    _say("how many times as long they take without what is named:")
    rows = []
    for name in chosen.choices:
        if name == "products" and not onednn_is_faster():
            _say("oneDNN for linear layers: not run, it is chosen on AMD's and Hygon's processors alone")
            continue
        settings = (chosen.size, chosen.batch, chosen.steps, chosen.pairs)
        if name == "compile":
            try:
                row = measure_compiled(*settings)
            except RuntimeError as error:  # without a C++ compiler, for one
                _say(f"torch.compile: not run, {type(error).__name__}")
                continue
        elif name == "filling":
            row = measure_filling(chosen.size, chosen.steps, chosen.pairs)
        else:
            row = measure(name, *settings)
        rows.append(row)
        _say(line(row))
    if chosen.json:
        told = [{"choice": r.choice, "compiling": r.compiling, **vars(r.ratio)} for r in rows]
        chosen.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
