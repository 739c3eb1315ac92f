"""What the frozen-prefix cache saves: ``python -m simulations.benchmarks.prefix``.

A site's training epoch with the cache against one without, in turns, on a ViT-S/16 of twelve blocks with
LoRA in the last k of them, or with the head alone. Beside it stands the arithmetic bound: the floating-point
operations that torch counts in a forward and a backward pass of both, one divided by the other. Nothing that
leaves the frozen blocks out can be faster than that, if all operations run alike. Filling the cache, which is
done once per image and base, is shown in epochs without it.

Both ways a ViT is read are shown: at the mean of its patches, where every block runs whole, and at its class
token, where the last block runs on one token in either case. Training then costs so little that norms,
activations and the optimiser, which are no products, weigh more: the gain is greater, the share smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from client.activations import Place
from client.data.dataset import SiteData
from client.prefix_cache import StudyInputs
from client.train import autocast, masked_bce, train_round
from common.config import RunConfig
from common.model.build import CxrModel, build_model
from simulations.benchmarks.pairs import Ratio, paired, ratio, seconds
from simulations.run import quiet_libraries

SHARE = 0.85
"""Of the bound that training the last 2 and the last 4 blocks has to reach."""
HELD_TO = (("2", "avg"), ("4", "avg"))
"""What is trained, and the pooling: every block is run whole there."""
POOLS = {"avg": "mean", "token": "token"}


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    trained: str
    """``head``, ``all``, or how many of the last blocks have LoRA."""
    pool: str
    ratio: Ratio
    """An epoch without / with the cache."""
    bound: float
    """Operations without / with."""
    fill: float
    """Seconds that filling the cache takes / those of an epoch without it."""
    bytes_per_image: int
    apart: float
    """Distance of the trained adapters with and without / how far they came."""

    @property
    def share(self) -> float:
        """Of the bound."""
        return self.ratio.value / self.bound

    @property
    def missed(self) -> bool:
        """Whether it is held to the bound, and too far from it."""
        return (self.trained, self.pool) in HELD_TO and self.share < SHARE


def plan(trained: str, size: int, batch: int, cache: bool, pool: str = "avg") -> RunConfig:
    """Return the plan of one way of training ``trained``."""
    pet = {"head": "head"}.get(trained, "lora")
    scope = "all" if trained in ("head", "all") else f"last-{trained}"
    return RunConfig.from_flat(
        {
            "model.backbone": "timm:vit_small_patch16_224",
            "model.pool": pool,
            "data.image-size": size,
            "pet.method": pet,
            "pet.scope": scope,
            "train.batch-size": batch,
            "train.prefix-cache": cache,
        }
    )


def studies(count: int, size: int, findings: Sequence[str]) -> SiteData:
    """Return a site of noise: what is in a picture costs nothing."""
    generator = np.random.default_rng(0)
    rows = np.arange(count + 2)
    return SiteData(
        findings=tuple(findings),
        pixels=generator.integers(0, 256, (len(rows), size, size), dtype=np.uint8),
        labels=(generator.random((len(rows), len(findings))) < 0.5).astype(np.float32),
        patients=rows.astype(np.str_),
        clinical=np.zeros((len(rows), 0), dtype=np.float32),
        split={"train": rows[:count], "validation": rows[count:-1], "test": rows[-1:]},
        owned=np.ones(len(findings), dtype=bool),
    )


def operations(model: CxrModel, inputs: StudyInputs, data: SiteData, batch: int) -> int:
    """Count the floating-point operations of one training step's forward and backward pass."""
    rows = data.split["train"][:batch]
    model.load(model.initial_state())
    model.train_mode(True)
    labels = torch.from_numpy(data.labels[rows]).to(model.device)
    prepared = inputs.batch(rows, torch.Generator())
    with FlopCounterMode(display=False) as counted:
        with autocast(model, model.config.train):
            logits = inputs.logits(prepared)
        masked_bce(logits.float(), labels, None).backward()
    model.train_mode(False)
    return int(counted.get_total_flops())


def measure(
    trained: str, pool: str, count: int, size: int, batch: int, pairs: int, device: torch.device
) -> Finding:
    """Train an epoch with and without the cache in turns, after one of each to warm up."""
    config = plan(trained, size, batch, cache=True, pool=pool)
    model = build_model(config).to(device)
    data = studies(count, size, model.findings)
    start = model.initial_state()
    with tempfile.TemporaryDirectory() as folder:
        kept = StudyInputs(model, data, config.train, Place(Path(folder), 10**11))
        plain = StudyInputs(model, data, plan(trained, size, batch, cache=False, pool=pool).train)

        def epoch(inputs: StudyInputs) -> object:
            result = train_round(model, data, inputs, start, 1, "site").state
            if device.type == "cuda":
                torch.cuda.synchronize()
            return result

        fill = seconds(lambda: kept.batch(data.split["train"][:batch], torch.Generator()))
        apart = _apart(model, data, kept, plain)
        bound = operations(model, plain, data, batch) / operations(model, kept, data, batch)
        times = paired(lambda: epoch(kept), lambda: epoch(plain), pairs)
        size_on_disk = sum(file.stat().st_size for file in Path(folder).glob("*.data"))
    slow = float(np.median([without for _, without in times]))
    return Finding(trained, pool, ratio(times), bound, fill / slow, size_on_disk // count, apart)


def _apart(model: CxrModel, data: SiteData, kept: StudyInputs, plain: StudyInputs) -> float:
    start = model.initial_state()
    with_it, without = (train_round(model, data, i, start, 1, "site").state.tensors for i in (kept, plain))
    between = sum(float((with_it[n] - without[n]).square().sum()) for n in without)
    come = sum(float((without[n] - start.tensors[n]).square().sum()) for n in without)
    return float((between / come) ** 0.5)


HEAD = (
    f"{'trained':8}{'read at':9}{'without / with the cache':48}{'bound':>8}"
    f"{'share':>7}{'filling':>9}{'kB/image':>10}{'apart':>8}"
)


def line(finding: Finding) -> str:
    """Lay one row of the table out.

    >>> line(Finding("2", "avg", Ratio(3.4, 3.3, 3.5, 6), 3.6, 0.9, 38000, 0.001)).split()[-5:]
    ['3.6', '94%', '0.90', '38.0', '0.10%']
    """
    # A head's step is no more than a product with the features: its bound says nothing.
    bound = "" if finding.trained == "head" else f"{finding.bound:.3g}"
    share = "" if finding.trained == "head" else f"{finding.share:.0%}"
    return (
        f"{finding.trained:8}{POOLS[finding.pool]:9}{finding.ratio!s:48}{bound:>8}{share:>7}"
        f"{finding.fill:9.2f}{finding.bytes_per_image / 1000:10.1f}{finding.apart:8.2%}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if training the last 2 or 4 blocks stays further from the bound than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=256)
    parser.add_argument("--size", type=int, default=112, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--trained", nargs="+", default=["head", "2", "4", "6", "all"])
    parser.add_argument("--pools", nargs="+", choices=[*POOLS], default=[*POOLS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=None)
    chosen = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        _say("not run: no GPU")
        return 0
    where = "one GPU" if device.type == "cuda" else f"{os.cpu_count()} cores, {chosen.threads} threads"
    _say(f"ViT-S/16 of 12 blocks at {chosen.size} px, LoRA of rank 8 in the last k blocks or a head alone;")
    _say(f"{chosen.studies} studies in batches of {chosen.batch}; {where}. An epoch of training:")
    _say(HEAD)
    findings = []
    for pool in chosen.pools:
        for trained in chosen.trained:
            of = (chosen.studies, chosen.size, chosen.batch, chosen.pairs, device)
            findings.append(measure(trained, pool, *of))
            _say(line(findings[-1]))
    _say("bound: operations without / with; share: of it that is reached; filling: epochs without, once;")
    _say("apart: distance of the adapters trained with and without, against how far they came")
    missed = [f.trained for f in findings if f.missed]
    if any((f.trained, f.pool) in HELD_TO for f in findings):
        told = f"missed for the last {', '.join(missed)} blocks" if missed else "held"
        held = " and ".join(trained for trained, _ in HELD_TO)
        _say(f"limit: the last {held} blocks, read at the mean, at {SHARE:.0%} of the bound or more: {told}")
    if chosen.json:
        told_of = [{**vars(f), "ratio": vars(f.ratio), "share": f.share} for f in findings]
        chosen.json.write_text(json.dumps(told_of, indent=1))
    return int(bool(missed))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
