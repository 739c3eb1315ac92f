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
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from client.arms import Arms, Measured
from client.asked import Asked, run_folder
from client.calibrate import platt_metrics
from client.data.dataset import SiteData, load_site_data
from client.evaluate import predict, validation_figures
from client.feedback import Sent, send
from client.held import FILE, whole
from client.label_counts import label_metrics
from client.local import train_local
from client.personalise import personalise
from client.prefix_cache import StudyInputs, activations_place
from client.pretrain.rounds import pretrain_round
from client.site import SiteConfig
from client.train import LocalResult, trained_by
from common.adapter import AdapterState
from common.code import code_digest
from common.codec import encode, for_models
from common.config import RunConfig, Scalar
from common.errors import DigestError, FedcxrError
from common.model.build import CxrModel, build_model
from common.phase import trained_names
from common.protocol import Answer, Instruction, Stage, Value
from common.sections import DataConfig, PretrainConfig
from common.threads import keep_to_torch

logger = logging.getLogger(__name__)


class ModelPool:
    """One built model per configuration and device, shared by all sites in a process."""

    def __init__(self) -> None:
        self._models: dict[tuple[RunConfig, torch.device], CxrModel] = {}

    def get(self, config: RunConfig, device: torch.device) -> CxrModel:
        """Return the model of a run, built once; only the newest is kept."""
        key = (config, device)
        if key not in self._models:
            self._models = {key: build_model(config).to(device)}
        return self._models[key]


class SiteWorker:
    """Answers instructions for one site."""

    def __init__(self, site: SiteConfig, pool: ModelPool | None = None) -> None:
        self.site = site
        self._pool = pool or ModelPool()
        self._data: dict[tuple[DataConfig, int, PretrainConfig], SiteData] = {}
        self._inputs: tuple[CxrModel, StudyInputs] | None = None
        self._read: tuple[str, RunConfig] | None = None
        self._arms = Arms()
        self._to_calibrate: tuple[str, NDArray[np.float32]] | None = None
        """What was asked with which adapter, and its probabilities on the validation studies."""
        self.measured: Measured | None = None
        """Called with what is measured here; only the process that simulates a site sets it."""
        self._stages: dict[Stage, Callable[[Instruction, RunConfig], Answer]] = {
            "enrol": self._enrol,
            "pretrain": self._pretrain,
            "train": self._train,
            "local": self._local,
            "evaluate": self._evaluate,
            "calibrate": self._calibrate,
            "personalise": self._personalise,
        }

    def handle(self, instruction: Instruction, run_config: Mapping[str, Scalar]) -> Answer:
        """Do what is asked and answer; every failure becomes a code."""
        try:
            if instruction.code_digest != code_digest():
                raise DigestError("this site runs other code than the server", fix="upgrade one")
            config = self._plan(run_config)
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
        config = self._plan(run_config)
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
        if data.pool is not None:
            metrics["pretrain-studies"] = len(data.pool)
        metrics["owned"] = data.owned.astype(int).tolist()
        for reason, count in data.quarantined.items():
            metrics[f"quarantined.{reason}"] = count
        if config.train.class_weights == "federated":
            metrics |= label_metrics(data, self.site.evaluate.min_cell)
        return Answer(self.site.name, metrics=metrics)

    def _pretrain(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Pretrain one round without labels and return the delta of what the round moves."""
        asked, before = self._asked(instruction, config), time.monotonic()
        start, name, folder = asked.received(), self.site.name, asked.pretext_folder()
        result = pretrain_round(asked.model, asked.data, start, instruction.round, name, folder)
        metrics: dict[str, Value] = {"num-examples": len(asked.data.pool or ()), **_effort(result, before)}
        sent = _moved(asked, start, result)
        return Answer(name, update=sent.update, metrics=metrics | sent.metrics)

    def _train(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Train one round and return the delta of what the round trains."""
        asked, strategy = self._asked(instruction, config), config.strategy
        model, data, inputs, start = asked.model, asked.data, asked.inputs, asked.received()
        before = time.monotonic()
        model.load(start)
        indices = data.split["validation"]
        scores = predict(model, inputs, indices)
        figures = validation_figures(scores, data.labels[indices], data.findings, asked.min_cell)
        result = trained_by.get()(
            model,
            data,
            inputs,
            start,
            instruction.round,
            self.site.name,
            strategy.proximal_mu if strategy.name == "fedprox" else 0.0,
            instruction.class_weights,
            instruction.learning_rate,
        )
        positives, negatives = data.count_labels("train")
        metrics: dict[str, Value] = {
            "num-examples": len(data.labelled("train")),
            "labelled": (positives + negatives).tolist(),
            **_effort(result, before),
        }
        sent = _moved(asked, start, result)
        return Answer(self.site.name, update=sent.update, metrics=metrics | figures | sent.metrics)

    def _local(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Train this site's own baseline; it stays here, unless the plan's matrix needs it elsewhere."""
        asked = self._asked(instruction, config)
        baseline = train_local(
            asked.model,
            asked.data,
            asked.inputs,
            self.site.name,
            asked.local_file,
            asked.plan,
            asked.pretext_folder(alone=True),
            instruction.class_weights,
        )
        metrics: dict[str, Value] = {"steps": baseline.steps, "rounds-kept": baseline.rounds_kept}
        if not config.evaluate.matrix or instruction.adapter is None:
            return Answer(self.site.name, metrics=metrics)
        schema, start = asked.model.schema, asked.received()
        delta = {name: baseline.state.tensors[name] - start.tensors[name] for name in schema.names}
        metrics["num-examples"] = len(asked.data.labelled("train"))
        update = encode(schema.pack(delta), for_models(config.wire))
        return Answer(self.site.name, update=update, metrics=metrics)

    def _evaluate(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Measure a model on this site's validation or test studies."""
        figures = self._arms.measure(self._asked(instruction, config), self.measured)
        return Answer(self.site.name, metrics=figures)

    def _calibrate(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Sum this site's validation studies at the slopes and biases that are asked for."""
        asked = self._asked(instruction, config)
        data, indices = asked.data, asked.data.split["validation"]
        key = hashlib.sha256(_adapter_of(asked.instruction)).hexdigest()
        if self._to_calibrate is None or self._to_calibrate[0] != key:
            asked.model.load(asked.received())
            self._to_calibrate = (key, predict(asked.model, asked.inputs, indices))
        slope, bias = asked.scaling()
        points = {
            f: (a, b) for f, a, b in zip(data.findings, slope, bias, strict=True) if not np.isnan(a + b)
        }
        scores, labels = self._to_calibrate[1], data.labels[indices]
        metrics = platt_metrics(scores, labels, data.findings, points, asked.min_cell)
        return Answer(self.site.name, metrics=metrics)

    def _personalise(self, instruction: Instruction, config: RunConfig) -> Answer:
        """Make the released adapter this site's own; it stays here."""
        asked = self._asked(instruction, config)
        own = personalise(
            asked.model,
            asked.data,
            asked.inputs,
            asked.received(),
            self.site.name,
            asked.personal_file,
            instruction,
            asked.min_cell,
        )
        return Answer(self.site.name, metrics=own.metrics())

    # ------------------------------------------------------------------ what it holds

    def _asked(self, instruction: Instruction, config: RunConfig) -> Asked:
        data, model = self._site_data(config), self._model(instruction, config)
        held = run_folder(self.site, instruction) / FILE
        instruction = whole(instruction, model.schema, config, held)
        inputs = partial(self._study_inputs, instruction, model, data)
        return Asked(instruction, config, self.site, data, model, inputs)

    def _plan(self, run_config: Mapping[str, Scalar]) -> RunConfig:
        """Read what a message says of the plan; the last is kept, as every message of a run says the same."""
        told = repr(sorted(run_config.items()))  # by its words: 1, 1.0 and True are not the same
        if self._read is None or self._read[0] != told:
            self._read = told, RunConfig.from_flat(run_config)
        return self._own_weights(self._read[1])

    def _own_weights(self, config: RunConfig) -> RunConfig:
        """Read weights from where this site keeps them, not from where the plan's author does."""
        own = {
            name: str(path)
            for name in ("weights", "text_weights")
            if (path := getattr(self.site.model, name)) is not None and getattr(config.model, name)
        }
        return config.model_copy(update={"model": config.model.model_copy(update=own)}) if own else config

    def _site_data(self, config: RunConfig) -> SiteData:
        key = (config.data, config.seed, config.pretrain)
        if key not in self._data:
            self._data = {key: load_site_data(self.site, *key)}
        return self._data[key]

    def _model(self, instruction: Instruction, config: RunConfig) -> CxrModel:
        keep_to_torch()
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

    def _study_inputs(self, instruction: Instruction, model: CxrModel, data: SiteData) -> StudyInputs:
        if self._inputs is None or self._inputs[0] is not model:
            place = activations_place(self.site)
            self._inputs = (model, StudyInputs(model, data, model.config.train, place))
        whole = self._inputs[1]
        return whole.of_round(instruction.round) if instruction.stage == "train" else whole

    def _failed(self, instruction: Instruction, code: str, words: str) -> Answer:
        """Write the words to this site's own log and let only the code out."""
        log = self.site.data.state / "site.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {instruction.stage}\n{words}\n")
        logger.warning("%s refused with %s", instruction.stage, code)
        return Answer(self.site.name, code=code)


def _moved(asked: Asked, start: AdapterState, result: LocalResult) -> Sent:
    """Return what a round moved, as it travels."""
    names = trained_names(asked.model.schema, asked.config, asked.instruction.round)
    delta = {name: result.state.tensors[name] - start.tensors[name] for name in names}
    return send(delta, asked.model.schema.select(names), asked.config.wire, asked.owed())


def _effort(result: LocalResult, before: float) -> dict[str, Value]:
    seconds = round(time.monotonic() - before, 3)
    return {"loss": round(result.loss, 6), "steps": result.steps, "seconds": seconds}


def _adapter_of(instruction: Instruction) -> bytes:
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
