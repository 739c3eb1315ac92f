"""The resident site worker: it holds base, data and caches, and answers one instruction at a time.

The same object serves a simulation (called in-process) and a hospital (behind a local socket).
Nothing about a failure leaves the site but its code; the words go to the site's own log.
"""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.calibrate import platt_metrics
from client.data.dataset import SiteData, load_site_data
from client.evaluate import measure, predict, validation_figures
from client.local import baseline_file, load_local, train_local
from client.prefix_cache import StudyInputs
from client.site import SiteConfig
from client.train import train_round
from common.adapter import AdapterState
from common.code import code_digest
from common.codec import encode_update
from common.config import DataConfig, RunConfig, Scalar
from common.errors import DigestError, FedcxrError, RunError, SchemaError
from common.metrics.platt import calibrated
from common.model.build import CxrModel, build_model
from common.pet.phase import trained_names
from common.protocol import OWN_MODEL, Answer, Instruction, Stage, Value, metrics_to_wire

logger = logging.getLogger(__name__)


class ModelPool:
    """One built model per configuration and device, shared by all sites in a process."""

    def __init__(self) -> None:
        self._models: dict[str, CxrModel] = {}

    def get(self, config: RunConfig, device: torch.device) -> CxrModel:
        """Return the model of a run, built once; only the newest is kept."""
        key = f"{config.digest()} {device}"
        if key not in self._models:
            self._models = {key: build_model(config).to(device)}
        return self._models[key]


class SiteWorker:
    """Answers instructions for one site."""

    def __init__(self, site: SiteConfig, pool: ModelPool | None = None) -> None:
        self.site = site
        self._pool = pool or ModelPool()
        self._data: dict[tuple[DataConfig, int], SiteData] = {}
        self._inputs: tuple[CxrModel, StudyInputs] | None = None
        self._local_scores: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._to_calibrate: tuple[str, NDArray[np.float32]] | None = None
        """What was asked with which adapter, and its probabilities on the validation studies."""
        self._stages: dict[Stage, Callable[[Instruction, RunConfig], Answer]] = {
            "enrol": self._enrol,
            "train": self._train,
            "local": self._local,
            "evaluate": self._evaluate,
            "calibrate": self._calibrate,
        }

    def handle(self, instruction: Instruction, run_config: Mapping[str, Scalar]) -> Answer:
        """Do what is asked and answer; every failure becomes a code."""
        try:
            if instruction.code_digest != code_digest():
                raise DigestError("this site runs other code than the server", fix="upgrade one")
            config = self._own_weights(RunConfig.from_flat(run_config))
            return self._stages[instruction.stage](instruction, config)
        except FedcxrError as error:
            return self._failed(instruction, error.code, str(error))
        except Exception:  # noqa: BLE001  (whatever it is, only a code may leave)
            return self._failed(instruction, "E_INTERNAL", traceback.format_exc())

    def base_digest(self, run_config: Mapping[str, Scalar]) -> str:
        """Return the digest of the frozen base this site has for a run.

        Raises:
            ModelError: if the model cannot be built here, or its weights are not there.
        """
        config = self._own_weights(RunConfig.from_flat(run_config))
        return self._pool.get(config, _device(self.site.device.name)).base_digest

    # ------------------------------------------------------------------ stages

    def _enrol(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Say what this site has: counts only."""
        data = self._site_data(config)
        self._model(instruction, config)
        metrics: dict[str, Value] = {
            f"{name}-studies": len(data.split[name]) for name in ("train", "validation", "test")
        }
        metrics["patients"] = len(set(data.patients.tolist()))
        metrics["owned"] = data.owned.astype(int).tolist()
        for reason, count in data.quarantined.items():
            metrics[f"quarantined.{reason}"] = count
        return Answer(self.site.name, metrics=metrics)

    def _train(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Train one round and return the delta of what the round trains."""
        data = self._site_data(config)
        model = self._model(instruction, config)
        inputs = self._study_inputs(model, data)
        start = self._received(instruction, model)
        before = time.monotonic()
        figures = self._validate(model, inputs, data, start)
        strategy = config.strategy
        result = train_round(
            model,
            data,
            inputs,
            start,
            instruction.round,
            self.site.name,
            strategy.proximal_mu if strategy.name == "fedprox" else 0.0,
        )
        names = trained_names(model.schema, config, instruction.round)
        delta = {n: result.state.tensors[n] - start.tensors[n] for n in names}
        flat = model.schema.select(names).pack(delta)
        positives, negatives = data.count_labels("train")
        metrics: dict[str, Value] = {
            "num-examples": len(data.labelled("train")),
            "labelled": (positives + negatives).tolist(),
            "loss": round(result.loss, 6),
            "steps": result.steps,
            "seconds": round(time.monotonic() - before, 3),
        }
        return Answer(self.site.name, update=encode_update(flat, config.wire), metrics=metrics | figures)

    def _local(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Train this site's own baseline; it stays here, unless the plan's matrix needs it elsewhere."""
        data = self._site_data(config)
        model = self._model(instruction, config)
        inputs = self._study_inputs(model, data)
        file = self._local_file(instruction)
        baseline = train_local(model, data, inputs, self.site.name, file, instruction.plan_digest)
        metrics: dict[str, Value] = {
            "steps": baseline.steps,
            "rounds-kept": baseline.rounds_kept,
        }
        if not config.evaluate.matrix or instruction.adapter is None:
            return Answer(self.site.name, metrics=metrics)
        start = self._received(instruction, model)
        delta = {name: baseline.state.tensors[name] - start.tensors[name] for name in model.schema.names}
        metrics["num-examples"] = len(data.labelled("train"))
        update = encode_update(model.schema.pack(delta), config.wire)
        return Answer(self.site.name, update=update, metrics=metrics)

    def _evaluate(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Measure a model on this site's validation or test studies."""
        data = self._site_data(config)
        model = self._model(instruction, config)
        inputs = self._study_inputs(model, data)
        indices = data.split[instruction.split]
        local = self._own_scores(instruction, model, inputs, indices)
        scores: NDArray[Any]
        binned_by = None
        if instruction.arm == "local":
            if local is None:
                raise RunError("this site has no local baseline of this plan to evaluate")
            scores, reference = local, None
        else:
            model.load(self._received(instruction, model))
            scores = predict(model, inputs, indices)
            reference = None if instruction.arm.startswith(OWN_MODEL) else local
            if instruction.scaling is not None:
                # Of the same studies in the same bins: two cuts through one ranking could isolate a few.
                binned_by, reference = scores, None
                scores = calibrated(scores, *self._scaling(instruction, model))
        metrics, gains = measure(
            scores,
            reference,
            data,
            indices,
            config.evaluate,
            config.seed,
            self.site.name,
            self.site.evaluate.min_cell,
            binned_by,
        )
        return Answer(self.site.name, metrics=metrics_to_wire(metrics, gains))

    def _calibrate(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Sum this site's validation studies at the slopes and biases that are asked for."""
        data = self._site_data(config)
        model = self._model(instruction, config)
        indices = data.split["validation"]
        key = hashlib.sha256(_asked_of(instruction)).hexdigest()
        if self._to_calibrate is None or self._to_calibrate[0] != key:
            inputs = self._study_inputs(model, data)
            model.load(self._received(instruction, model))
            self._to_calibrate = (key, predict(model, inputs, indices))
        slope, bias = self._scaling(instruction, model)
        asked = {f: (a, b) for f, a, b in zip(data.findings, slope, bias, strict=True) if not np.isnan(a + b)}
        scores, labels = self._to_calibrate[1], data.labels[indices]
        metrics = platt_metrics(scores, labels, data.findings, asked, self.site.evaluate.min_cell)
        return Answer(self.site.name, metrics=metrics)

    # ------------------------------------------------------------------ what it holds

    def _own_weights(self, config: RunConfig) -> RunConfig:
        """Read weights from where this site keeps them, not from where the plan's author does."""
        own = self.site.model.weights
        if own is None or not config.model.weights:
            return config
        return config.model_copy(update={"model": config.model.model_copy(update={"weights": str(own)})})

    def _site_data(self, config: RunConfig) -> SiteData:
        key = (config.data, config.seed)
        if key not in self._data:
            self._data = {key: load_site_data(self.site, *key)}
        return self._data[key]

    def _model(self, instruction: Instruction, config: RunConfig) -> CxrModel:
        if self.site.device.threads:
            torch.set_num_threads(self.site.device.threads)
        model = self._pool.get(config, _device(self.site.device.name))
        if model.base_digest != instruction.base_digest:
            raise DigestError(
                "the base here differs from the plan's",
                found=f"{model.base_digest[:12]}, expected {instruction.base_digest[:12]}",
                fix="install the weights the plan names",
            )
        return model

    def _study_inputs(self, model: CxrModel, data: SiteData) -> StudyInputs:
        if self._inputs is None or self._inputs[0] is not model:
            self._inputs = (model, StudyInputs(model, data, model.config.train))
        return self._inputs[1]

    def _received(self, instruction: Instruction, model: CxrModel) -> AdapterState:
        if instruction.adapter is None:
            raise SchemaError("the instruction carries no adapter")
        return AdapterState.join(model.schema.unpack(instruction.adapter), instruction.residual)

    def _scaling(
        self, instruction: Instruction, model: CxrModel
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Slopes and biases ``[F]`` of an instruction."""
        scaling, findings = instruction.scaling, len(model.findings)
        if scaling is None or scaling.shape != (2 * findings,) or scaling.dtype != np.float64:
            raise SchemaError("the instruction does not carry a slope and a bias for each finding")
        if np.isinf(scaling).any() or (
            instruction.stage == "evaluate" and not (scaling[:findings] > 0).all()
        ):
            raise SchemaError("the instruction carries slopes that keep no ranking")
        return scaling[:findings], scaling[findings:]

    def _validate(
        self, model: CxrModel, inputs: StudyInputs, data: SiteData, state: AdapterState
    ) -> dict[str, Value]:
        model.load(state)
        indices = data.split["validation"]
        scores = predict(model, inputs, indices)
        return validation_figures(scores, data.labels[indices], data.findings, self.site.evaluate.min_cell)

    def _own_scores(
        self,
        instruction: Instruction,
        model: CxrModel,
        inputs: StudyInputs,
        indices: NDArray[np.int64],
    ) -> NDArray[np.float32] | None:
        """Probabilities of this site's local baseline, kept for paired comparisons."""
        key = (instruction.plan_digest, instruction.split)
        if key not in self._local_scores:
            baseline = load_local(self._local_file(instruction), instruction.plan_digest)
            if baseline is None:
                return None
            model.load(baseline.state)
            self._local_scores[key] = predict(model, inputs, indices)
        return self._local_scores[key]

    def _local_file(self, instruction: Instruction) -> Path:
        return baseline_file(self.site.data.state, instruction.plan_digest)

    def _failed(self, instruction: Instruction, code: str, words: str) -> Answer:
        """Write the words to this site's own log and let only the code out."""
        log = self.site.data.state / "site.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {instruction.stage}\n{words}\n")
        logger.warning("%s refused with %s", instruction.stage, code)
        return Answer(self.site.name, code=code)


def _asked_of(instruction: Instruction) -> bytes:
    """Name the adapter of an instruction by everything it depends on, for a cache."""
    same = Instruction(
        "calibrate",
        instruction.plan_digest,
        instruction.code_digest,
        instruction.base_digest,
        adapter=instruction.adapter,
        residual=instruction.residual,
    )
    return same.signed_bytes()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
