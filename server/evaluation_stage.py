"""The last stage: every model is measured on every site's test studies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import fmean
from typing import Any

from common.adapter import AdapterState
from common.errors import FedcxrError
from common.protocol import (
    CALIBRATED,
    FEDERATED,
    LOCAL,
    OWN_BIAS,
    OWN_MODEL,
    PERSONALISED,
    TEMPERATURE,
    WITHOUT,
    Split,
)
from server.admission import admit_results
from server.calibrate import Scaling
from server.calibration_stage import on_the_wire, temperature_on_the_wire
from server.exchange import Reply
from server.federation import Federation
from server.local_models import local_models, read_adapter
from server.report_words import number


def evaluation_stage(
    federation: Federation, chosen: AdapterState, folder: Path, scaling: Scaling | None
) -> None:
    """Measure the released adapter, what it is compared with, and what was made of it."""
    config = federation.config
    if config.evaluate.local:
        _test(federation, LOCAL, LOCAL, None)
    _test(federation, FEDERATED, FEDERATED, chosen)
    for file in sorted((folder / "arms").glob("*.safetensors")):
        _test(federation, file.stem, file.stem, read_adapter(file))
    if scaling is not None:
        _calibrated(federation, chosen, scaling)
    if config.personalise.method != "none":
        _test(federation, PERSONALISED, PERSONALISED, chosen)
    if config.evaluate.missing_modality:
        for what, arm in WITHOUT.items():
            _test(federation, arm, arm.replace("-", " "), chosen, missing=what)
    if config.evaluate.matrix:
        for site, model in local_models(folder):
            # At its own site it is the arm "local".
            _test(federation, f"{OWN_MODEL}{site}", f"the model of {site} elsewhere", model, without=site)


def _calibrated(federation: Federation, chosen: AdapterState, scaling: Scaling) -> None:
    """Measure the adapter with its probabilities scaled, and with what that is compared with."""
    findings = federation.config.data.findings
    points = on_the_wire(scaling, findings)
    if points is not None:
        _test(federation, CALIBRATED, CALIBRATED, chosen, scaling=points)
    if not federation.config.evaluate.compare_calibration:
        return
    single = temperature_on_the_wire(federation, findings)
    if single is not None:
        _test(federation, TEMPERATURE, "one temperature", chosen, scaling=single)
    if points is not None:
        _test(federation, OWN_BIAS, "calibrated, with each site's own bias", chosen, scaling=points)


def evaluate_arm(
    federation: Federation,
    arm: str,
    state: AdapterState | None,
    split: Split,
    without: str = "",
    **how: Any,
) -> dict[str, dict[str, Any]]:
    """Measure one model at every site but ``without``; returns site -> metrics as they came over the wire.

    ``how`` are fields of the instruction, such as what its probabilities are scaled by; see
    `common.protocol.Instruction`.
    """
    results: dict[str, dict[str, Any]] = {}
    instruction = federation.instruction("evaluate", state=state, arm=arm, split=split)
    instruction = dataclasses.replace(instruction, **how)

    def receive(site: str, reply: Reply) -> None:
        code = reply.code
        if reply.answer is not None and not code:
            try:
                results[site] = admit_results(reply.answer.metrics, federation.config.data.findings)
            except FedcxrError as error:
                code = error.code
        if code:
            text = f"{site} did not measure {arm}: {code}"
            federation.ledger.event("evaluated", text, site=site, code=code)
            return
        federation.ledger.put_evaluation(arm, split, site, results[site])

    federation.ask([name for name in federation.names() if name != without], instruction, receive)
    return results


def _test(
    federation: Federation,
    arm: str,
    called: str,
    state: AdapterState | None,
    without: str = "",
    **how: Any,
) -> None:
    results = evaluate_arm(federation, arm, state, "test", without, **how)
    scores = [m["macro-auroc"] for m in results.values() if "macro-auroc" in m]
    mean = f"mean test AUROC {number(fmean(scores))}" if scores else "no defined AUROC"
    federation.ledger.event("tested", f"{called}: {mean} over {len(scores)} sites", arm=arm)
