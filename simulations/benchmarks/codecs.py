"""What each codec sends, and what it costs: ``python -m simulations.benchmarks.codecs``.

First the bytes. Two sites train LoRA on a ViT-B/16 (rank 16 on qkv, proj, fc1, fc2 and a head of 14
findings: 2,370,062 parameters) for a few real rounds. The base has random weights, and images are small:
neither changes how many numbers travel. The very updates of these rounds then pass through every codec, with
what it loses owed from round to round as at a site. Counted is the payload of one site and round; Flower's
own wrapping of a message is told beside it.

Then what it costs: the grid ``codecs`` (`fedcxr-simulate benchmark codecs`), in which only the codec differs,
over three seeds, with paired differences to fp32. Stated limits:

    int8: at least 3.9 times fewer bytes than fp32, and an AUROC inside fp32's interval
    a setting of topk: under 100 kB per site and round

``--grid FOLDER`` keeps the grid and goes on with it; ``--bytes-only`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.app import worker_for
from client.feedback import Owed, send
from common.adapter import AdapterSchema
from common.config import RunConfig
from common.model.build import build_model
from common.pet.budget import trained_parameters
from common.phase import trained_names
from common.protocol import CODEC_ERROR
from common.sections import WireConfig
from common.wire import answer_from_records
from server.ledger import Ledger
from simulations.engine import run_inline
from simulations.make_site import make_site

if TYPE_CHECKING:
    from simulations.benchmark.summary import Summary

LEAST_RATIO = 3.9
MOST_BYTES = 100_000
PUBLISHED_FULL = 94_300_000
"""Parameters of full fine-tuning in the published comparison beside 2.37 million."""
FINDINGS = (
    "atelectasis, cardiomegaly, consolidation, edema, effusion, emphysema, fibrosis, hernia, infiltration, "
    "mass, nodule, pleural_thickening, pneumonia, pneumothorax"
)
CODECS: Mapping[str, WireConfig] = {
    "fp32": WireConfig(),
    "fp16": WireConfig(codec="fp16"),
    "int8": WireConfig(codec="int8"),
    "int8, deflated": WireConfig(codec="int8", entropy=True),
    "top 2 %": WireConfig(codec="topk", keep=0.02),
    "top 1 %": WireConfig(codec="topk", keep=0.01),
    "top 1 %, deflated": WireConfig(codec="topk", keep=0.01, entropy=True),
}
Updates = Mapping[tuple[str, int], NDArray[np.float32]]
"""(Site, round) -> the update as trained."""


@dataclass(frozen=True)
class Cost:
    """What one codec takes of the same updates."""

    codec: str
    payload: float
    """Bytes per site and round."""
    ratio: float
    """How many times fewer than fp32."""
    full: float
    """How many times fewer than full fine-tuning of the same backbone in fp32."""
    error: float
    """Relative L2 error of an update with what is owed, a mean over sites and rounds."""
    owed: float
    """What is owed after the last round, relative to all that was moved."""


def plan(backbone: str, rank: int, rounds: int, steps: int, batch: int, side: int) -> RunConfig:
    """Return the plan whose updates are measured."""
    return RunConfig.build(
        {
            "data": {"findings": FINDINGS, "image_size": side},
            "model": {"backbone": backbone},
            "pet": {"method": "lora", "rank": rank, "targets": "qkv, proj, fc1, fc2"},
            "lora": {"alpha": 2.0 * rank},
            "train": {"steps": steps, "batch_size": batch},
            "rounds": {"count": rounds},
            "evaluate": {"local": False, "pooled": False, "replicates": 20},
        }
    )


def real_updates(config: RunConfig, sites: int, folder: Path) -> tuple[Updates, int]:
    """Run a plan in fp32; returns every update, and the bytes Flower adds to a reply."""
    side = max(config.data.image_size, 32)
    files = {
        f"site-{number}": make_site(folder / f"site-{number}", f"site-{number}", 40, number, size=side)
        for number in range(1, sites + 1)
    }
    updates: dict[tuple[str, int], NDArray[np.float32]] = {}

    def watch(message: Any) -> Any:
        if message.has_content():
            answer = answer_from_records(message.content)
            if answer.update is not None:
                updates[answer.site, int(message.metadata.group_id)] = answer.update
        return message

    run_inline(config, files, folder / "run", watch)
    worker_for.cache_clear()  # each held a model and the studies of a site
    ledger = Ledger(folder / "run" / "ledger.sqlite")
    record = ledger.rounds()[0]
    ledger.close()
    return updates, round((record["up"] - sum(record["payload"].values())) / len(record["payload"]))


def costs(updates: Updates, schemas: Mapping[int, AdapterSchema], full: int, folder: Path) -> list[Cost]:
    """Send the same updates by every codec; ``full`` is the parameters of full fine-tuning."""
    plain = float(np.mean([4 * update.size for update in updates.values()]))
    found = []
    for place, (name, wire) in enumerate(CODECS.items()):
        payloads, errors, owed, moved = [], [], 0.0, 0.0
        for site in sorted({site for site, _ in updates}):
            rounds = sorted(number for other, number in updates if other == site)
            for number in rounds:
                schema = schemas[number]
                at = Owed(folder / str(place) / site, number, "tune")
                sent = send(schema.unpack(updates[site, number]), schema, wire, at)
                payloads.append(sent.update.nbytes)
                errors.append(float(sent.metrics.get(CODEC_ERROR, 0.0)))  # type: ignore[arg-type]
            left = Owed(folder / str(place) / site, rounds[-1] + 1, "tune").load()
            owed += sum(float(tensor.double().square().sum()) for tensor in left.values())
            total = np.sum([updates[site, number].astype(np.float64) for number in rounds], axis=0)
            moved += float(np.square(total).sum())
        payload = float(np.mean(payloads))
        share = (owed / moved) ** 0.5 if moved else 0.0
        found.append(Cost(name, payload, plain / payload, 4 * full / payload, float(np.mean(errors)), share))
    return found


def missed(found: Sequence[Cost]) -> list[str]:
    """Return the limits on bytes that were missed, in words."""
    by_name = {cost.codec: cost for cost in found}
    words = []
    if by_name["int8"].ratio < LEAST_RATIO:
        words.append(f"int8 takes {by_name['int8'].ratio:.2f} times fewer bytes, not {LEAST_RATIO}")
    if not any(cost.payload < MOST_BYTES for cost in found):
        words.append(f"no setting takes less than {MOST_BYTES:,} bytes")
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; returns 1 if a stated limit was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="timm:vit_base_patch16_224")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bytes-only", action="store_true")
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    config = plan(chosen.backbone, chosen.rank, chosen.rounds, chosen.steps, chosen.batch, chosen.side)
    with tempfile.TemporaryDirectory() as place:
        updates, wrapping = real_updates(config, chosen.sites, Path(place))
        schema = build_model(config).schema
        schemas = {n: schema.select(trained_names(schema, config, n)) for n in range(1, chosen.rounds + 1)}
        whole = config.model_copy(update={"pet": config.pet.model_copy(update={"method": "full"})})
        full = trained_parameters(whole)
        found = costs(updates, schemas, full, Path(place) / "owed")
        _show(found, schema.numel, full, wrapping, chosen.sites, chosen.rounds)
        told: dict[str, Any] = {
            "parameters": schema.numel,
            "full": full,
            "wrapping": wrapping,
            "codecs": [asdict(cost) for cost in found],
        }
        failures = missed(found)
        if not chosen.bytes_only:
            summary = _grid(chosen.grid or Path(place) / "grid", chosen.seeds)
            told["grid"] = _show_grid(summary)
            failures += _outside(summary)
    for words in failures:
        _say(f"missed: {words}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({**told, "missed": failures}, indent=1) + "\n")
    return bool(failures)


def _show(found: Sequence[Cost], numel: int, full: int, wrapping: int, sites: int, rounds: int) -> None:
    _say(f"{os.cpu_count()} cores. {numel:,} parameters; {rounds} rounds at {sites} sites, real updates.")
    _say(f"Full fine-tuning of this backbone: {full:,} parameters, {4 * full / 1e6:.0f} MB in fp32 "
         f"(of {PUBLISHED_FULL / 1e6:.1f} million: {4 * PUBLISHED_FULL / 1e6:.0f} MB). "
         f"Flower adds {wrapping} bytes to a reply.")  # fmt: skip
    _say(f"{'codec':<20}{'bytes a site and round':>24}{'fp32 / it':>12}{'full / it':>12}"
         f"{'rel. error':>12}{'owed at the end':>17}")  # fmt: skip
    for cost in found:
        _say(f"{cost.codec:<20}{cost.payload:>24,.0f}{cost.ratio:>12.2f}{cost.full:>12,.0f}"
             f"{cost.error:>12.4f}{cost.owed:>17.4f}")  # fmt: skip


def _grid(folder: Path, seeds: Sequence[int]) -> Summary:
    """Run the grid ``codecs``, or what is left of it."""
    from simulations.benchmark.cells import expand
    from simulations.benchmark.grid import load_grid
    from simulations.benchmark.results import write_tables
    from simulations.benchmark.run_cell import place_of_cell
    from simulations.benchmark.runner import run_grid
    from simulations.benchmark.summary import summarise, write_summary
    from simulations.run import quiet_libraries

    quiet_libraries()
    grid, experiment = load_grid("codecs", [f"benchmark.seeds={list(seeds)}"])
    found = run_grid(expand(grid, experiment), folder, os.cpu_count() or 1, lambda cell, result: None)
    write_tables(found, folder)
    summary = summarise(experiment.title, grid, found, lambda cell: place_of_cell(cell, folder))
    write_summary(summary, folder)
    return summary


def _show_grid(summary: Summary) -> list[dict[str, Any]]:
    from server.report_words import signed
    from simulations.benchmark.words import spoken

    against = {row.contrast.name: row.difference for row in summary.against_reference}
    seeds = max((line.seeds for line in summary.lines), default=0)
    _say("")
    _say(f"{summary.title}: {seeds} seeds, {len(summary.sites)} sites, differences paired")
    _say(f"{'':<24}{'AUROC':<28}{'minus fp32':<30}{'bytes a site and round':>24}")
    rows = []
    for line in summary.lines:
        gap, score = against.get(line.label), line.scores.get("federated", {}).get("auroc")
        within = f" ({signed(gap.interval[0])} to {signed(gap.interval[1])})" if gap and gap.interval else ""
        words = f"{signed(gap.value)}{within}" if gap else ""
        _say(f"{line.label:<24}{spoken(score):<28}{words:<30}{line.payload:>24,}")
        rows.append(
            {
                "variant": line.label,
                "auroc": None if score is None else asdict(score),
                "difference": None if gap is None else asdict(gap),
                "payload": line.payload,
                "parameters": line.trained_parameters,
            }
        )
    return rows


def _outside(summary: Summary) -> list[str]:
    """Say it where the AUROC of int8 lies outside the interval of fp32."""
    scores = {line.label: line.scores.get("federated", {}).get("auroc") for line in summary.lines}
    first, second = scores.get("fp32"), scores.get("int8")
    if first is None or second is None or first.interval is None:
        return ["the grid was not finished"]
    low, high = first.interval
    return [] if low <= second.value <= high else ["the AUROC of int8 lies outside the interval of fp32"]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
