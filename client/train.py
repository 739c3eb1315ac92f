"""One round of local training: a straight line from the received adapter to the one sent back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from client.data.dataset import SiteData
from client.evaluate import macro_auroc, predict
from client.prefix_cache import StudyInputs, drop_modalities
from common.adapter import AdapterState
from common.class_weights import MAX_CLASS_WEIGHT, balanced
from common.errors import DataError, SchemaError
from common.model.build import CxrModel
from common.phase import phase_of, trained_names
from common.sections import TrainConfig
from common.seeds import derive, torch_generator


@dataclass(frozen=True)
class LocalResult:
    """Where a round of local training ended."""

    state: AdapterState
    loss: float
    """Mean over the round's steps."""
    steps: int


def train_round(
    model: CxrModel,
    data: SiteData,
    inputs: StudyInputs,
    start: AdapterState,
    round_number: int,
    site: str,
    proximal_mu: float = 0.0,
    class_weights: NDArray[np.float64] | None = None,
    learning_rate: float = 1.0,
) -> LocalResult:
    """Train the round's tensors from ``start`` on the site's training studies.

    The optimiser starts fresh; the learning rate follows the phase of the run, times ``learning_rate``.
    Randomness derives from the run's seed, the site and the round, so a repeated round gives the same
    bits. ``class_weights`` ``[F]`` are those of all sites together, where the plan has them.

    ``proximal_mu`` adds mu / 2 ||w - w_start||^2 (FedProx, Li et al. 2020, eq. 2).

    Raises:
        DataError: if the site has no training study with a label of this run.
    """
    config = model.config
    train, seed = config.train, config.seed
    names, phase = trained_names(model.schema, config, round_number), phase_of(config, round_number)
    model.load(start)
    anchor = [start.tensors[name].to(model.device) for name in names]
    parameters = [model.parameters[name] for name in names]
    for name, parameter in model.parameters.items():
        parameter.requires_grad_(name in names)
    optimizer = _optimizer(model, names, train)
    indices = labelled_studies(data, site)
    labels = torch.from_numpy(data.labels).to(model.device)
    weights = positive_weights(data, train, class_weights)
    weights = None if weights is None else weights.to(model.device)
    order = torch_generator(seed, "order", site, round_number)
    views = torch_generator(seed, "augment", site, round_number)
    absent = torch_generator(seed, "modality", site, round_number)
    per_epoch = -(-len(indices) // train.batch_size)
    steps = train.steps or per_epoch * train.epochs
    losses: list[Tensor] = []
    best: tuple[float, AdapterState] | None = None
    with torch.random.fork_rng(devices=_cuda(model)):
        torch.manual_seed(derive(seed, "dropout", site, round_number))
        model.train_mode(True)
        shuffled: list[NDArray[np.int64]] = []
        for step in range(steps):
            if not shuffled:
                shuffled = shuffled_batches(indices, train.batch_size, order)
            batch = shuffled.pop(0)
            progress = (phase.number - 1 + step / steps) / phase.rounds
            _set_learning_rate(optimizer, train, progress, learning_rate)
            with autocast(model, train):
                without = drop_modalities(inputs.told(batch), train.modality_dropout, absent)
                logits = inputs.logits(inputs.batch(batch, views, without))
            loss = masked_bce(logits.float(), labels[batch], weights)
            losses.append(loss.detach())
            if proximal_mu:
                drift = zip(parameters, anchor, strict=True)
                loss = loss + proximal_mu / 2 * torch.stack([(p - a).square().sum() for p, a in drift]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if train.grad_clip:
                torch.nn.utils.clip_grad_norm_(parameters, train.grad_clip)
            optimizer.step()
            if train.select == "best-validation" and (not shuffled or step == steps - 1):
                best = _better(best, model, data, inputs)
                model.train_mode(True)
    model.train_mode(False)
    trained = best[1] if best else model.state()
    return LocalResult(
        AdapterState(keep_unowned_rows(trained, start, model, data), start.residual),
        float(torch.stack(losses).double().mean()),
        steps,
    )


trained_by: ContextVar[Callable[..., LocalResult]] = ContextVar("trained_by", default=train_round)
"""What trains a round for whoever asks here: `train_round`, unless several sites are trained in one pass."""


def masked_bce(logits: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
    """Mean binary cross-entropy over the annotated labels: sum(mask * BCE) / sum(mask).

    Logits and labels are ``[B, F]``; NaN means not annotated. ``positive_weight`` is ``[F]``.
    """
    mask = ~labels.isnan()
    target = torch.where(mask, labels, torch.zeros_like(labels))
    if positive_weight is not None:
        positive_weight = positive_weight.to(logits.device)
    each = functional.binary_cross_entropy_with_logits(
        logits, target, reduction="none", pos_weight=positive_weight
    )
    return torch.where(mask, each, torch.zeros_like(each)).sum() / mask.sum().clamp(min=1)


def autocast(model: CxrModel, train: TrainConfig) -> Any:
    """Return the mixed-precision context the plan asks for on this device."""
    kind = model.device.type
    automatic = kind == "cuda" and torch.cuda.is_bf16_supported()
    if train.precision == "bf16" or (train.precision == "auto" and automatic):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()


def labelled_studies(data: SiteData, site: str) -> NDArray[np.int64]:
    """Return the training studies that carry a label of this run.

    Raises:
        DataError: if there is none.
    """
    indices = data.labelled("train")
    if not len(indices):
        raise DataError(
            f"site {site}: no training study carries a label of this run",
            found=f"{len(data.split['train'])} training studies",
            fix="check [labels] in site.toml against the plan's data.findings",
        )
    return indices


def positive_weights(
    data: SiteData, train: TrainConfig, together: NDArray[np.float64] | None = None
) -> Tensor | None:
    """Return the weight ``[F]`` of a study that has a finding, as the plan asks; None: all count alike.

    Raises:
        SchemaError: if the plan asks for the weights of all sites together, and they did not come.
    """
    if train.class_weights == "none":
        return None
    if train.class_weights == "federated":
        if together is None or together.shape != (len(data.findings),):
            raise SchemaError("the plan weighs classes by all sites' counts, and the instruction has none")
        return torch.from_numpy(np.clip(together, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)).float()
    return torch.from_numpy(balanced(*data.count_labels("train"))).float()


def _optimizer(model: CxrModel, names: tuple[str, ...], train: TrainConfig) -> torch.optim.Optimizer:
    head = {*model.schema.head, *model.schema.fusion}
    groups = [
        {"params": [model.parameters[n] for n in names if n not in head], "peak": train.lr},
        {
            "params": [model.parameters[n] for n in names if n in head],
            "peak": train.head_lr or train.lr,
        },
    ]
    groups = [group for group in groups if group["params"]]
    # One kernel for all tensors: on a CPU four times as fast as torch's default, a call for each.
    fused = model.device.type in ("cpu", "cuda")
    decay = train.weight_decay
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=decay, fused=fused)
    return torch.optim.AdamW(groups, lr=train.lr, weight_decay=decay, fused=fused)


def learning_rate_factor(train: TrainConfig, progress: float) -> float:
    """Return the share of the peak learning rate at ``progress`` in [0, 1) of a phase."""
    if progress < train.warmup:
        return (progress + 1e-3) / (train.warmup + 1e-3)
    if train.schedule != "cosine":
        return 1.0  # after a plateau the server lowers it
    rest = (progress - train.warmup) / (1 - train.warmup)
    return 0.5 * (1 + float(np.cos(np.pi * rest)))


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, train: TrainConfig, progress: float, share: float
) -> None:
    factor = learning_rate_factor(train, progress)
    for group in optimizer.param_groups:
        floor = min(train.min_lr, group["peak"]) if progress >= train.warmup else 0.0
        group["lr"] = share * max(group["peak"] * factor, floor)


def shuffled_batches(
    indices: NDArray[np.int64], size: int, generator: torch.Generator
) -> list[NDArray[np.int64]]:
    """Deal studies into batches of at most ``size``, in an order drawn anew."""
    shuffled = indices[torch.randperm(len(indices), generator=generator).numpy()]
    return [shuffled[i : i + size] for i in range(0, len(shuffled), size)]


def _better(
    best: tuple[float, AdapterState] | None, model: CxrModel, data: SiteData, inputs: StudyInputs
) -> tuple[float, AdapterState]:
    """Keep the better of two adapters on validation; without a defined score, the later one."""
    indices = data.split["validation"]
    score = macro_auroc(predict(model, inputs, indices), data.labels[indices])
    if best is None or score is None or score > best[0]:
        return (-np.inf if score is None else score), model.state()
    return best


def keep_unowned_rows(
    trained: AdapterState, start: AdapterState, model: CxrModel, data: SiteData
) -> dict[str, Tensor]:
    """Put back head rows of findings this site does not annotate: decay must not move them."""
    tensors = dict(trained.tensors)
    foreign = torch.from_numpy(~data.owned)
    for name in model.schema.head:
        row = tensors[name].clone()
        row[foreign] = start.tensors[name][foreign]
        tensors[name] = row
    return tensors


def _cuda(model: CxrModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
