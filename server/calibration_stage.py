"""The stage in which the sites calibrate the released adapter together, before it is tested.

Slope and bias of each finding are fitted on the sites' validation studies, never on test studies, by
sums over them (`server.calibrate`), and, where the plan compares, one temperature for all findings
(`server.temperature`). What was found stands in the ledger, so a resumed run asks nobody again, and
beside the release in ``calibration.json``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.adapter import AdapterState
from common.files import READABLE, write_atomic
from common.protocol import Instruction, Value
from server.calibrate import Calibration, Scaling
from server.disk import with_room
from server.exchange import Reply
from server.federation import Federation
from server.temperature import Temperature, TemperatureFit

FILE = "calibration.json"
_KEY, _SINGLE = "calibration", "temperature"


def calibration_stage(federation: Federation, state: AdapterState) -> Scaling:
    """Fit slope and bias of every finding over the sites, or return what this run has fitted before."""
    ledger, findings = federation.ledger, federation.config.data.findings
    known = ledger.get(_KEY)
    if known is not None and known.pop("adapter") == state.digest():
        return Scaling(**known)
    ledger.event("stage", "the sites calibrate the adapter together, on their validation studies")
    calibration = Calibration(findings)
    _exchange(federation, state, calibration)
    scaling = calibration.result
    if federation.config.evaluate.compare_calibration:
        single = TemperatureFit(findings)
        _exchange(federation, state, single)
        found = single.result
        ledger.put(_SINGLE, dataclasses.asdict(found))
        ledger.event("calibrated", _words(found), **dataclasses.asdict(found))
    ledger.put(_KEY, {"adapter": state.digest(), **dataclasses.asdict(scaling)})
    ledger.event("calibrated", _sentence(scaling), **dataclasses.asdict(scaling))
    return scaling


def _exchange(federation: Federation, state: AdapterState, fit: Calibration | TemperatureFit) -> None:
    """Ask the sites for sums, again and again, until the fit is done."""
    ledger, findings = federation.ledger, federation.config.data.findings
    plain = federation.instruction("calibrate", state=state)
    silent: set[str] = set()
    while not fit.done:
        asked = fit.ask()
        points = [asked.get(finding, (np.nan, np.nan)) for finding in findings]
        instruction = dataclasses.replace(plain, scaling=np.array(points, dtype=np.float64).T.ravel())
        names = [name for name in federation.names() if name not in silent]
        answers = _ask(federation, names, instruction)
        refused = fit.take(answers)
        for site, why in refused.items():
            ledger.event("evaluated", f"{site} is left out of the calibration: {why}", site=site)
        # Who was silent once is not counted from then on.
        silent |= {name for name in names if name not in answers or name in refused}


def on_the_wire(scaling: Scaling, findings: tuple[str, ...]) -> NDArray[np.float64] | None:
    """Return slopes, then biases, flat ``[2 F]``; None where no finding was calibrated."""
    if not scaling.sites:
        return None
    slope, bias = scaling.of(findings)
    return np.array([*slope, *bias], dtype=np.float64)


def temperature_on_the_wire(federation: Federation, findings: tuple[str, ...]) -> NDArray[np.float64] | None:
    """Return one slope for all findings, flat ``[2 F]`` with biases of zero; None where there is none.

    The one that `calibration_stage` found in this run.
    """
    known = federation.ledger.get(_SINGLE) or {}
    if not known.get("sites"):
        return None
    return np.array([known["slope"]] * len(findings) + [0.0] * len(findings), dtype=np.float64)


def write_calibration(scaling: Scaling, sha256: str, release: Path) -> None:
    """Write ``calibration.json`` beside the adapter whose file has that SHA-256.

    A calibrated probability is sigmoid(slope z + bias), z the adapter's logit of the finding.
    """
    facts: dict[str, Any] = {"adapter_sha256": sha256, "probability": "sigmoid(slope * logit + bias)"}
    facts["findings"] = {
        finding: {
            "slope": scaling.slope[finding],
            "bias": scaling.bias[finding],
            "fitted_at": list(scaling.sites.get(finding, ())),
            "left": scaling.left.get(finding, ""),
        }
        for finding in scaling.slope
    }
    write_atomic(release / FILE, (json.dumps(facts, indent=2) + "\n").encode(), READABLE)


def keep_calibration(federation: Federation, scaling: Scaling, sha256: str, folder: Path) -> None:
    """Write the calibration into the run's release, waiting for room where the disk is full."""
    patience = federation.ledger.patience
    with_room(lambda: write_calibration(scaling, sha256, folder / "release"), "the calibration", patience)


def _ask(federation: Federation, names: list[str], instruction: Instruction) -> dict[str, dict[str, Value]]:
    answers: dict[str, dict[str, Value]] = {}

    def receive(site: str, reply: Reply) -> None:
        if reply.code or reply.answer is None:
            text = f"{site} is left out of the calibration: {reply.code}"
            federation.ledger.event("evaluated", text, site=site, code=reply.code)
            return
        answers[site] = dict(reply.answer.metrics)

    federation.ask(names, instruction, receive)
    return answers


def _sentence(scaling: Scaling) -> str:
    done, of = len(scaling.sites), len(scaling.slope)
    text = f"calibrated {done} of {of} findings in {scaling.exchanges} exchanges"
    left = "; ".join(f"{finding} is left as it is: {why}" for finding, why in scaling.left.items())
    return f"{text}; {left}" if left else text


def _words(found: Temperature) -> str:
    if found.left:
        return f"no temperature for all findings: {found.left}"
    return f"one temperature for all findings, {1 / found.slope:.3g}, in {found.exchanges} exchanges"
