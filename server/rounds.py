"""The round loop: cohort, deadline, quorum, admission, aggregate, commit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.adapter import AdapterSchema, AdapterState
from common.errors import FedcxrError, QuorumError
from common.pace import Pace, is_over, keep_pace, pace_of
from common.phase import phase_of, trained_names
from common.protocol import CODEC_ERROR, Answer
from common.seeds import numpy_generator
from server.admission import admit
from server.checkpoint import Checkpoint, commit, sound_rounds
from server.disk import with_room
from server.downlink import broadcast
from server.exchange import Reply
from server.facts.reasons import reason_of, words_of
from server.federation import Federation
from server.geometry import drift, geometry
from server.measures import Measure, from_record, of_validation
from server.spool import Spool
from server.strategies.strategy import aggregate

_SLOW = 2.0
"""Seconds beyond which a commit must have waited for the disk."""


def train_rounds(federation: Federation, initial: AdapterState, folder: Path) -> list[Checkpoint]:
    """Run every round that is not yet committed; returns all committed rounds in order.

    A round commits or it did not happen: after a crash the run goes on from the last
    committed round and, with the same sites, ends in the same bits.

    Raises:
        QuorumError: if not one round reached its quorum.
        CheckpointError: if the folder holds another plan's rounds.
    """
    done = list(sound_rounds(folder, federation.plan_digest))
    federation.ledger.reset_rounds([checkpoint.record for checkpoint in done])
    if done:
        text = f"resumed after round {done[-1].round}"
        federation.ledger.event("resumed", text, round=done[-1].round)
    federation.committed = len(done)
    state, memory = (done[-1].state, done[-1].memory) if done else (initial, {})
    config = federation.config
    pace = pace_of(done[-1].record if done else None)
    for number in range(len(done) + 1, config.last_round + 1):
        if is_over(pace, config):
            text = f"stopped after round {number - 1}: no better validation in {pace.waited} rounds"
            federation.ledger.event("stopped", text, round=number - 1)
            break
        federation.enrol_late()
        with Spool(_schema_of(federation, number), folder) as spool:
            checkpoint, measures, pairs = _one_round(federation, number, state, memory, pace, spool)
        _keep(federation, checkpoint, folder)
        federation.committed = number
        details = {"drift": _drift(initial, checkpoint.state), **pairs}
        federation.ledger.put_round(checkpoint.record, measures, details)
        facts = {key: value for key, value in checkpoint.record.items() if key != "round"}
        federation.ledger.event("round", _sentence(checkpoint.record), round=number, **facts)
        state, memory, pace = checkpoint.state, checkpoint.memory, pace_of(checkpoint.record)
        done.append(checkpoint)
    trained = [one for one in done if phase_of(config, one.round).kind != "pretrain"]
    if all(checkpoint.record["status"] == "abandoned" for checkpoint in trained):
        raise QuorumError(
            "no round reached its quorum, so there is no model",
            found=f"{len(done)} rounds abandoned, quorum {federation.config.rounds.quorum}",
            fix="see the rejections above; lower rounds.quorum or mend the sites",
        )
    return done


def _keep(federation: Federation, checkpoint: Checkpoint, folder: Path) -> None:
    """Commit a round; on a full disk its outcome stays in memory until there is room."""
    number, began = checkpoint.round, time.monotonic()
    what = f"round {number}"
    with_room(lambda: commit(folder, checkpoint, federation.plan_digest), what, federation.ledger.patience)
    waited = time.monotonic() - began
    if waited > _SLOW:
        text = f"Round {number}: waited {waited:.0f} s for room on the centre's disk"
        federation.ledger.event("disk", text, round=number, seconds=round(waited, 1))


def _one_round(
    federation: Federation,
    number: int,
    state: AdapterState,
    memory: dict[str, Tensor],
    pace: Pace,
    spool: Spool,
) -> tuple[Checkpoint, list[Measure], dict[str, Any]]:
    """Carry out a round; returns what is committed, and the numbers and arrays that tell of it."""
    config, ledger = federation.config, federation.ledger
    pretraining = phase_of(config, number).kind == "pretrain"
    cohort = federation.cohort(numpy_generator(config.seed, "cohort", number))
    if pretraining:
        cohort = _with_images(federation, cohort)
    rejected: dict[str, str] = {}
    answers: dict[str, Answer] = {}
    payload: dict[str, int] = {}

    def receive(site: str, reply: Reply) -> None:
        code = reply.code
        reason = reason_of(code) if code else ""
        if reply.answer is not None and not code:
            try:
                known = federation.sites[site]
                registered = known.pretrain_studies if pretraining else known.train_studies
                update = admit(reply.answer, site, spool.schema, config, registered, pretraining)
                spool.add(update)
                payload[site] = 0 if reply.answer.update is None else int(reply.answer.update.nbytes)
                answers[site] = dataclasses.replace(reply.answer, update=None)
            except FedcxrError as error:
                code, reason = error.code, words_of(error)
        if code:
            rejected[site] = code
            text = f"Round {number}: {site} left out, {code}: {reason}"
            facts = {"code": code, "reason": reason, "up": reply.up}
            ledger.event("rejected", text, round=number, site=site, **facts)
            return
        text = f"Round {number}: {site} returned {size_text(reply.up)}, {update.num_examples} studies"
        ledger.event("returned", text, round=number, site=site, up=reply.up)

    started = time.monotonic()
    absent = [] if config.rounds.cohort else [name for name in federation.sites if name not in cohort]
    text = f"Round {number}: asking {len(cohort)} sites"
    text += f", without {', '.join(absent)}" if absent else ""
    ledger.event("asked", text, round=number, cohort=cohort, deadline=config.rounds.deadline)
    instruction = federation.instruction("pretrain" if pretraining else "train", number, state)
    instruction = dataclasses.replace(instruction, learning_rate=pace.learning_rate)
    replies, missing, exchange = federation.ask(cohort, instruction, receive)
    record: dict[str, Any] = {
        "round": number,
        "cohort": cohort,
        "returned": sorted(answers),
        "missing": missing,
        "rejected": dict(sorted(rejected.items())),
        "up": sum(reply.up for reply in replies.values()),
        "down": exchange.down,
        "payload": dict(sorted(payload.items())),
        "loss": {} if pretraining else _metric(answers, "loss"),
        "pretext_loss": _metric(answers, "loss") if pretraining else {},
        "validation_before": _metric(answers, "validation-auroc"),
        "steps": _metric(answers, "steps"),
        "examples": {sender.site: sender.num_examples for sender in spool.senders},
        "mean": config.strategy.mean,
        "codec_error": _metric(answers, CODEC_ERROR),
        "update_norm": {sender.site: sender.norm for sender in spool.senders},
        "lora_error": None,
        "status": "committed" if len(answers) >= config.rounds.quorum else "abandoned",
    }
    record["pace"] = asdict(keep_pace(pace, config, number, record["validation_before"]))
    measures: list[Measure] = []
    pairs: dict[str, Any] = {}
    if record["status"] == "committed":
        outcome = aggregate(state, spool, memory, config)
        sent = broadcast(state, outcome.state, memory | outcome.memory, spool.schema, config.wire)
        federation.stepped(state, sent.state, sent.change)
        state, memory = sent.state, sent.memory
        record["lora_error"] = outcome.lora_error
        shape = geometry(spool, outcome.mean)
        measures.append(Measure("aggregate-norm", "", "", number, shape.norm))
        measures += [Measure("cosine", "", site, number, value) for site, value in shape.cosines.items()]
        if shape.pairs:
            pairs = {"pairs": {"sites": shape.sites, "cosines": _rounded(shape.pairs)}}
    record["seconds"] = round(time.monotonic() - started, 3)
    measures += from_record(record)
    for site, reply in replies.items():
        measures.append(Measure("seconds", "", site, number, round(reply.seconds, 3)))
        measures.append(Measure("up", "", site, number, reply.up))
    for site in cohort:
        measures.append(Measure("down", "", site, number, exchange.sent[federation.sites[site].node]))
    for site, answer in answers.items():
        measures += of_validation(site, number - 1, answer.metrics)
    return Checkpoint(number, state, memory, record), measures, pairs


def _schema_of(federation: Federation, number: int) -> AdapterSchema:
    """Return the tensors a round trains."""
    return federation.schema.select(trained_names(federation.schema, federation.config, number))


def _with_images(federation: Federation, cohort: Sequence[str]) -> list[str]:
    """Return the sites that have something to pretrain on.

    Raises:
        QuorumError: if none has.
    """
    able = [name for name in cohort if federation.sites[name].pretrain_studies]
    if not able:
        raise QuorumError(
            "no site has an image that the plan's pretraining may use",
            found=f"pretrain.task = {federation.config.pretrain.task!r}",
            fix="set pretrain.rounds = 0, or see [unlabelled] and [columns] of the sites",
        )
    return able


def _rounded(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in rows]


def _drift(initial: AdapterState, state: AdapterState) -> dict[str, Any]:
    moved = drift(initial.tensors, state.tensors)
    return {"blocks": [*moved], "values": [round(value, 6) for value in moved.values()]}


def _sentence(record: Mapping[str, Any]) -> str:
    number, cohort, returned = record["round"], record["cohort"], record["returned"]
    parts = [f"Round {number}: {len(returned)} of {len(cohort)} sites"]
    parts += [f"{site} missed the deadline" for site in record["missing"]]
    parts += [f"{site} left out ({code})" for site, code in record["rejected"].items()]
    if record["status"] == "abandoned":
        return ", ".join([*parts, "below quorum: abandoned, the adapter stays as it was"])
    parts.append(f"{size_text(record['up'])} up, {size_text(record['down'])} down")
    scores = record["validation_before"]
    if scores:
        before = "start" if number == 1 else f"after round {number - 1}"
        parts.append(f"validation AUROC {np.mean(list(scores.values())):.3f} ({before})")
    return ", ".join(parts)


def _metric(answers: Mapping[str, Answer], key: str) -> dict[str, Any]:
    return {s: a.metrics[key] for s, a in sorted(answers.items()) if key in a.metrics}


def size_text(count: float) -> str:
    """Write bytes for people.

    >>> size_text(48_200), size_text(2_370_062)
    ('48 kB', '2.4 MB')
    """
    for unit in ("B", "kB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} MB"
