"""Leave one site out: for each site a federation of all the others, and its model measured at that site.

It says what a hospital can expect that takes the released adapter without having taken part. Each
federation has a folder of its own, ``held-out/SITE``, and goes on where it was left; its model is measured
at the site that was left out (arm ``held-out``) and at those that trained it (``all-but:SITE``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from client.app import worker_for
from client.data.dataset import SiteData
from client.personalise import gain_over_released
from client.site import load_site
from client.worker import ModelPool, SiteWorker
from common.adapter import AdapterState
from common.code import code_digest
from common.config import RunConfig
from common.errors import ConfigError, SiteError
from common.files import write_atomic
from common.model.build import build_model
from common.overrides import read_toml
from common.protocol import FEDERATED, RELEASED, Answer, Instruction
from server.checkpoint import read
from server.ledger import Ledger
from server.local_models import read_adapter
from server.report_held_out import ALL_BUT, HELD_OUT
from server.strategies.strategy import check_strategy
from simulations.view import View

Federate = Callable[[RunConfig, Mapping[str, Path], Path], None]
"""Carries out a plan at some sites, in a folder."""
FOLDER = "held-out"
_ADAPTER = "adapter.safetensors"
"""Its presence says that a federation is finished."""


def leave_one_out(
    config: RunConfig, files: Mapping[str, Path], folder: Path, federate: Federate, view: View
) -> None:
    """Train a federation without each site and measure all of them; the results go to the run's ledger.

    ``folder`` is that of the finished run of all sites. What is finished is not done again.

    Raises:
        ConfigError: if there are fewer than two sites.
        FedcxrError: whatever stops one of the runs; nothing committed is lost.
    """
    check_leave_out(files, config)
    for left_out in files:
        place = folder / FOLDER / left_out
        if not (place / _ADAPTER).is_file():
            others = {name: _apart(file, left_out) for name, file in files.items() if name != left_out}
            plan = training_only(config, len(others))
            view.say(f"held out: training without {left_out}")
            with view.follow(place, f"without {left_out}", plan.last_round):
                federate(plan, others, place)
            write_atomic(place / _ADAPTER, _chosen(place).to_bytes())
            worker_for.cache_clear()  # each held the studies of a site
    view.say("held out: measuring every model at every site")
    _measure(config, files, folder)


def check_leave_out(files: Mapping[str, Path], config: RunConfig) -> None:
    """Refuse to leave one site out where what is left could not be averaged.

    Raises:
        ConfigError: if there are fewer than two sites, or too few for the plan's mean without one.
    """
    if len(files) < 2:
        raise ConfigError("the arm held-out needs at least two sites", found=str(len(files)))
    check_strategy(training_only(config, len(files) - 1))


def training_only(config: RunConfig, sites: int) -> RunConfig:
    """Return the plan of the same training at so many sites, and nothing beyond what makes its adapter."""
    rounds = {"sites": sites, "quorum": min(config.rounds.quorum, sites)}
    plain: dict[str, Any] = {
        "local": False,
        "matrix": False,
        "pooled": False,
        "missing_modality": False,
        "calibrate": "none",
        "compare_calibration": False,
    }
    mean = config.strategy.mean if sites > 1 else "weighted"  # of one site every mean is the same
    return config.model_copy(
        update={
            "strategy": config.strategy.model_copy(update={"mean": mean}),
            "rounds": config.rounds.model_copy(update=rounds),
            "evaluate": config.evaluate.model_copy(update=plain),
            "personalise": config.personalise.model_copy(update={"method": "none"}),
        }
    )


def _apart(file: Path, left_out: str) -> Path:
    """Describe a site once more, with the same studies and caches and a state of its own.

    Federations of as many sites are one plan, and what a site keeps of a plan is not to meet another's.
    """
    body = read_toml(file)
    body["data"]["state"] = f"state-without-{left_out}"
    other = file.with_name(f"site-without-{left_out}.toml")
    write_atomic(other, tomli_w.dumps(body).encode())
    return other


def _chosen(place: Path) -> AdapterState:
    """Read the adapter that a finished run released, with its residual."""
    ledger = Ledger(place / "ledger.sqlite")
    try:
        released, plan = ledger.get("released")["round"], ledger.get("plan_digest")
    finally:
        ledger.close()
    return read(place / "checkpoints", released, plan).state


def _measure(config: RunConfig, files: Mapping[str, Path], folder: Path) -> None:
    """Measure every model at every site and write it to the run's ledger."""
    released = _chosen(folder)
    adapters = {site: read_adapter(folder / FOLDER / site / _ADAPTER) for site in files}
    # Scores of different models make no one ranking over the sites, so cells of them are not asked for.
    single = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"pooled": False})})
    model, pool = build_model(config), ModelPool()
    ledger = Ledger(folder / "ledger.sqlite")
    plain = Instruction("evaluate", ledger.get("plan_digest"), code_digest(), model.base_digest)
    try:
        for site, file in files.items():
            desk = _Desk(SiteWorker(load_site(file), pool), single)
            desk.ask(_carrying(plain, model.schema.pack(released.tensors), released, FEDERATED))
            together = desk.scores
            for left_out, state in adapters.items():
                arm = HELD_OUT if left_out == site else f"{ALL_BUT}{left_out}"
                answer = desk.ask(_carrying(plain, model.schema.pack(state.tensors), state, arm))
                ledger.put_evaluation(arm, "test", site, desk.against(together, answer))
        ledger.event("tested", f"held out: measured over {len(files)} sites", arm=HELD_OUT)
    finally:
        ledger.close()


def _carrying(plain: Instruction, adapter: NDArray[np.float32], state: AdapterState, arm: str) -> Instruction:
    return dataclasses.replace(plain, adapter=adapter, residual=state.residual_arrays(), arm=arm)


class _Desk:
    """One site's worker, and the probabilities of what it measured last: only a simulation sees them."""

    def __init__(self, worker: SiteWorker, config: RunConfig) -> None:
        self._worker, self._config = worker, config
        self._worker.measured = self._take
        self._data: SiteData | None = None
        self._indices = np.zeros(0, dtype=np.int64)
        self.scores = np.zeros((0, 0), dtype=np.float32)

    def _take(
        self, instruction: Instruction, scores: NDArray[Any], data: SiteData, indices: NDArray[np.int64]
    ) -> None:
        self.scores, self._data, self._indices = scores, data, indices

    def ask(self, instruction: Instruction) -> Answer:
        """Have something measured.

        Raises:
            SiteError: if the worker answers with a code.
        """
        answer = self._worker.handle(instruction, self._config.to_flat())
        if answer.code:
            site = self._worker.site
            raise SiteError(
                f"{site.name} did not measure {instruction.arm}: {answer.code}",
                fix=f"see {site.data.state / 'site.log'}",
            )
        return answer

    def against(self, released: NDArray[np.float32], answer: Answer) -> dict[str, Any]:
        """Return what was measured last, with its paired difference to the model of all sites."""
        if self._data is None:
            raise SiteError(f"{answer.site} has measured nothing yet")
        site, config = self._worker.site, self._config
        floor = site.evaluate.min_cell
        gain = gain_over_released(self.scores, released, self._data, self._indices, config, site.name, floor)
        if gain is None:
            return dict(answer.metrics)
        paired = [round(value, 3) for value in (gain.difference, *gain.interval)]
        return {**answer.metrics, f"gain.{RELEASED}": paired, f"gain-se.{RELEASED}": round(gain.se, 4)}
