"""What averaging the updates of many sites costs: time beside memory bandwidth and Flower's own, and memory.

    python -m simulations.benchmarks.aggregation --sites 10 100 1000

Updates are those of LoRA of rank 16 on a ViT-B/16 with 14 findings, 2,370,062 values. Up to 100 sites each
has its own; 1,000 sites repeat a few distinct ones, so that nobody has to write 9.5 GB. The bound is numpy
adding a float64 vector to a float64 vector in place: it reads 16 bytes and writes 8 for each value, and
converts and scales nothing. Ours reads 4 bytes for each value of a site, converts them to float64, scales and
adds them, in parts that the cache holds. All of it runs on one thread; what is held against each other is
timed in turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import Tensor

from common.adapter import AdapterSchema
from common.config import RunConfig
from common.findings import FINDINGS
from common.protocol import Answer, Value
from common.wire import answer_from_records, answer_to_records
from server.admission import admit
from server.exchange import let_go
from server.geometry import geometry
from server.spool import Spool
from server.strategies.mean import weighted_mean
from server.update import Sender, l2_norm, named
from simulations.benchmarks.pairs import Ratio, paired, ratio, seconds

AT_LEAST = 0.6
"""Share of the bandwidth bound that the mean must reach."""
FLAT = 1.1
"""Times as much memory as with the fewest sites that the mean may need with the most."""
_SLACK = 8 << 20
"""Bytes that two measurements of the same memory may differ by."""
_FORMS = {"flower_array": "one array a site", "flower_tensors": "one array a tensor"}
_SITES_TIMED = 200
"""Fewest sites in all pairs of a number of sites together."""
_DISTINCT = 8
"""Distinct updates among repeated ones: more than any cache holds."""
_EXAMPLES = 20
_FINDINGS = tuple(FINDINGS)[:14]


def adapter(blocks: int) -> AdapterSchema:
    """Return LoRA's tensors of rank 16 on the linear layers of a ViT-B with so many blocks, and its head."""
    layers = {
        "attn.qkv": (2304, 768),
        "attn.proj": (768, 768),
        "mlp.fc1": (3072, 768),
        "mlp.fc2": (768, 3072),
    }
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for block in range(blocks):
        for layer, (out, inside) in layers.items():
            shapes.append((f"blocks.{block}.{layer}.lora_A.weight", (16, inside)))
            shapes.append((f"blocks.{block}.{layer}.lora_B.weight", (out, 16)))
    head = {"head.bias": (len(_FINDINGS),), "head.weight": (len(_FINDINGS), 768)}
    return AdapterSchema((*shapes, *head.items()), tuple(head))


def values(schema: AdapterSchema, seed: int) -> NDArray[np.float32]:
    """Draw an update."""
    return np.random.default_rng(seed).standard_normal(schema.numel, dtype=np.float32) * np.float32(1e-3)


class Repeated:
    """Updates of many sites that share a few vectors."""

    def __init__(self, schema: AdapterSchema, sites: int, distinct: Sequence[NDArray[np.float32]]) -> None:
        self.schema = schema
        self.distinct = [torch.from_numpy(one) for one in distinct]
        norms = [l2_norm(one) for one in distinct]
        self.senders = [
            Sender(f"site-{k:04d}", n, np.full(len(_FINDINGS), n), norms[k % len(norms)])
            for k, n in enumerate(range(_EXAMPLES, _EXAMPLES + sites))
        ]

    def read(self, place: int, start: int, stop: int) -> Tensor:
        """Return values of the sender at ``place``."""
        return self.distinct[place % len(self.distinct)][start:stop]

    def tensors(self, place: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return some tensors of the sender at ``place``."""
        whole = named(self.distinct[place % len(self.distinct)], self.schema)
        return {name: whole[name] for name in names if name in whole}


def bound(distinct: Sequence[NDArray[np.float32]], sites: int) -> Callable[[], NDArray[np.float64]]:
    """Return numpy's addition of as many float64 vectors, in place, to one that is new as a mean is."""
    wide = [one.astype(np.float64) for one in distinct]

    def work() -> NDArray[np.float64]:
        total = np.zeros(wide[0].size)
        for k in range(sites):
            np.add(total, wide[k % len(wide)], out=total)
        return total

    return work


# ---------------------------------------------------------------------- Flower's


def flower_replies(
    schema: AdapterSchema, sites: int, distinct: Sequence[NDArray[np.float32]], tensors: bool
) -> list[Message]:
    """Return what sites of Flower's FedAvg reply: the same updates as one array, or as one of each tensor."""
    records = []
    for one in distinct:
        parts = {name: part.numpy() for name, part in named(torch.from_numpy(one), schema).items()}
        records.append(ArrayRecord({n: Array(a) for n, a in (parts if tensors else {"values": one}).items()}))
    return [_reply(records[k % len(records)], _EXAMPLES + k) for k in range(sites)]


def _reply(arrays: ArrayRecord, examples: int) -> Message:
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples})})
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=1, dst_node_id=1, reply_to_message_id="", group_id="",
        created_at=0.0, ttl=1.0, message_type="train", src_task_id=1, dst_task_id=1,
    )  # fmt: skip
    return make_message(metadata=metadata, content=content)


def flower_mean(replies: list[Message]) -> ArrayRecord:
    """Return Flower's own mean.

    Raises:
        RuntimeError: if Flower makes none.
    """
    arrays, _ = FedAvg().aggregate_train(1, replies)
    if arrays is None:
        raise RuntimeError("Flower's FedAvg returned no arrays")
    return arrays


# ---------------------------------------------------------------------- from message to mean


def answers(schema: AdapterSchema, sites: int) -> Iterator[Answer]:
    """Yield the answer of one site after the other, each with an update of its own."""
    labelled = [_EXAMPLES] * len(_FINDINGS)
    figures: dict[str, Value] = {"num-examples": _EXAMPLES, "labelled": labelled, "loss": 0.5, "steps": 3}
    for k in range(sites):
        yield Answer(f"site-{k:04d}", update=values(schema, k), metrics=figures)


def spooled(schema: AdapterSchema, messages: Iterable[RecordDict], folder: Path) -> Spool:
    """Read, admit and spool what sites sent."""
    config = RunConfig.from_flat({"data.findings": ", ".join(_FINDINGS)})
    spool = Spool(schema, folder)
    for message in messages:
        answer = answer_from_records(message)
        spool.add(admit(answer, answer.site, schema, config, _EXAMPLES))
    return spool


@dataclass(frozen=True)
class Cost:
    """What a number of sites costs."""

    sites: int
    milliseconds: float
    """Of ours, for one site."""
    share_of_bound: Ratio
    """How many times as fast as the bound it is."""
    flower_array: Ratio
    """How many times as long Flower's takes, of one array per site."""
    flower_tensors: Ratio
    """And of one array per tensor."""


def compare(schema: AdapterSchema, sites: int, pairs: int) -> Cost:
    """Time ours against the bound and against Flower's, in turns."""
    distinct = [values(schema, k) for k in range(min(_DISTINCT, sites))]
    updates, pairs = Repeated(schema, sites, distinct), max(pairs, _SITES_TIMED // sites)

    def ours() -> Tensor:
        return weighted_mean(updates)

    times = paired(ours, bound(distinct, sites), pairs)
    flower = []
    for tensors in (False, True):
        replies = flower_replies(schema, sites, distinct, tensors)
        flower.append(ratio(paired(ours, lambda replies=replies: flower_mean(replies), pairs)))  # type: ignore[misc]
    return Cost(sites, 1e3 * float(np.median([a for a, _ in times])) / sites, ratio(times), *flower)


@dataclass(frozen=True)
class Way:
    """What the whole way of some updates costs, in milliseconds for one site."""

    sites: int
    take_in: float
    mean: float
    angles: float
    of_bound: Ratio
    """How many times as fast as the bound the mean from the spool is."""
    flower: Ratio
    """How many times as long Flower's mean alone takes as taking in and averaging."""


def whole_way(schema: AdapterSchema, sites: int, pairs: int, folder: Path) -> Way:
    """Time messages of distinct updates through admission, spool, mean and angles."""
    sent = [answer_to_records(answer) for answer in answers(schema, sites)]
    with spooled(schema, sent, folder) as spool:
        distinct = [values(schema, k) for k in range(min(_DISTINCT, sites))]
        of_bound = ratio(paired(lambda: weighted_mean(spool), bound(distinct, sites), pairs))
        mean = weighted_mean(spool)
        averaging = np.median([seconds(lambda: weighted_mean(spool)) for _ in range(3)])
        angles = seconds(lambda: geometry(spool, mean))
    replies = flower_replies(schema, sites, [values(schema, k) for k in range(sites)], tensors=True)
    taking: list[float] = []

    def ours() -> None:
        opened: list[Spool] = []
        taking.append(seconds(lambda: opened.append(spooled(schema, sent, folder))))
        with opened[0] as spool:
            weighted_mean(spool)

    flower = ratio(paired(ours, lambda: flower_mean(replies), pairs))
    each = 1e3 / sites
    return Way(sites, each * float(np.median(taking)), each * averaging, each * angles, of_bound, flower)


# ---------------------------------------------------------------------- memory


def peak(way: str, blocks: int, sites: int, folder: str) -> int:
    """Return by how many bytes the memory of a fresh process grows at most while it takes in and averages."""
    quiet()
    schema = adapter(blocks)
    _averaged(way, schema, 2, Path(folder))  # what is imported and allocated once
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    _averaged(way, schema, sites, Path(folder))
    return _memory("VmHWM") - before


def _averaged(way: str, schema: AdapterSchema, sites: int, folder: Path) -> None:
    if way == "spool":
        with spooled(schema, _messages(schema, sites), folder) as spool:
            geometry(spool, weighted_mean(spool))
    elif way == "repeated":
        updates = Repeated(schema, sites, [values(schema, k) for k in range(_DISTINCT)])
        geometry(updates, weighted_mean(updates))
    else:
        replies = []
        for k in range(sites):
            replies += flower_replies(schema, 1, [values(schema, k)], tensors=True)
        flower_mean(replies)


def _messages(schema: AdapterSchema, sites: int) -> Iterator[RecordDict]:
    """Yield one site's message after the other; what was read is let go of, as a round does."""
    for answer in answers(schema, sites):
        message = answer_to_records(answer)
        yield message
        let_go(message)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def peak_apart(way: str, blocks: int, sites: int, folder: Path) -> int:
    """Measure ``peak`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, way, blocks, sites, str(folder)).result()


# ---------------------------------------------------------------------- the table


def quiet() -> None:
    """Keep Flower's log to itself."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns 1 if a limit was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=12, help="blocks of the network; 12: 2.37 M values")
    parser.add_argument("--own", type=int, default=100, help="sites beyond which updates are repeated")
    parser.add_argument("--folder", type=Path, help="where spools lie; they need 9.5 MB for each own update")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    quiet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    schema = adapter(chosen.blocks)
    _say(f"{schema.numel:,} values a site; {os.cpu_count()} cores, 1 thread; {chosen.pairs} pairs or more")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as made:
        found = _measured(schema, chosen, Path(made))
    torch.set_num_threads(threads)
    missed = _missed(found)
    for line in missed:
        _say(f"MISSED: {line}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({**found, "missed": missed}, indent=1))
    return bool(missed)


def _measured(schema: AdapterSchema, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"values": schema.numel, "mean": [], "way": [], "memory": {}}
    _say("\nThe mean of updates in memory: ms a site; speed as a share of the bound; how many times as long")
    _say("Flower's FedAvg takes of one array a site, and of one array a tensor")
    for sites in chosen.sites:
        cost = compare(schema, sites, chosen.pairs)
        found["mean"].append(asdict(cost))
        ratios = (cost.share_of_bound, cost.flower_array, cost.flower_tensors)
        _say(f"{sites:6,} sites  {cost.milliseconds:7.3f} ms  " + "  ".join(map(_short, ratios)))
    own = [sites for sites in chosen.sites if sites <= chosen.own]
    _say(
        "\nThe whole way of own updates: ms a site to read, admit and spool, for the mean from the spool, for"
    )
    _say("norms and angles; speed of that mean as a share of the bound; how many times as long Flower's mean")
    _say("alone takes as the first two (it checks nothing and keeps every reply in memory)")
    for sites in own:
        way = whole_way(schema, sites, max(3, chosen.pairs // 2), folder)
        found["way"].append(asdict(way))
        parts = "  ".join(f"{part:7.3f}" for part in (way.take_in, way.mean, way.angles))
        _say(f"{sites:6,} sites  {parts} ms  {_short(way.of_bound)}  {_short(way.flower)}")
    _say("\nPeak memory beyond the start, MB: ours by the spool, ours of repeated updates, Flower's FedAvg")
    for sites in chosen.sites:
        ways = {"spool": sites in own, "repeated": True, "flower": sites in own}
        peaks = {
            way: peak_apart(way, chosen.blocks, sites, folder) if measured else None
            for way, measured in ways.items()
        }
        found["memory"][sites] = peaks
        _say(f"{sites:6,} sites  " + "  ".join(_megabytes(peaks[way]) for way in ways))
    return found


def _missed(found: dict[str, Any]) -> list[str]:
    """Name the limits that the numbers do not keep."""
    missed = []
    for cost in found["mean"]:
        share = cost["share_of_bound"]["value"]
        if share < AT_LEAST:
            missed.append(f"{cost['sites']} sites: {share:.2f} of the bound, expected {AT_LEAST} or more")
        slower = [form for form in _FORMS if cost[form]["low"] <= 1]
        missed += [f"{cost['sites']} sites: not ahead of Flower's, {_FORMS[form]}" for form in slower]
    for way in ("spool", "repeated"):
        peaks = [peaks[way] for _, peaks in sorted(found["memory"].items()) if peaks[way] is not None]
        if peaks and max(peaks) > FLAT * peaks[0] + _SLACK:
            missed.append(f"memory grows with the sites ({way}): {', '.join(map(_megabytes, peaks))} MB")
    return missed


def _short(found: Ratio) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _megabytes(count: int | None) -> str:
    return "not run" if count is None else f"{count / 1e6:7.1f}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
