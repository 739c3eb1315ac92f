"""One round of pretraining at a site: no label is read, and what only the task needs stays here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.augment import augment, normalise, to_float
from client.data.dataset import SiteData
from client.data.unlabelled import Unlabelled
from client.pretrain.contrast import ImageText
from client.pretrain.masked import MaskedImage
from client.pretrain.pretext import load_pretext, save_pretext
from client.train import LocalResult, autocast
from common.adapter import AdapterState
from common.errors import DataError
from common.model.build import CxrModel
from common.model.pretext import check_pretraining
from common.phase import Phase, phase_of, trained_names
from common.seeds import derive, torch_generator

WEIGHT_DECAY = 0.05
"""Of matrices in the encoder and in what is thrown away (He et al. 2022, table 8); an adapter has none."""
_BETAS = (0.9, 0.95)
_WARMUP = 0.05
"""Share of pretraining with a rising learning rate: what is thrown away begins at random."""

Loss = Callable[[NDArray[np.int64], torch.Generator], Tensor]
"""From positions in the pool to the task's loss."""


def pretrain_round(
    model: CxrModel, data: SiteData, start: AdapterState, round_number: int, site: str, keep: Path
) -> LocalResult:
    """Move the round's tensors from ``start`` by the plan's task on the site's unlabelled images.

    The decoder or the projections begin from the run's seed, the same at every site, and lie in ``keep``
    between rounds. Randomness derives from the run's seed, the site and the round: a repeated round gives
    the same bits.

    Raises:
        DataError: if the site has nothing to pretrain on.
        ModelError: if the task does not go with the model; as `check_pretraining`.
        CheckpointError: if what lies in ``keep`` is damaged.
    """
    config, pool = model.config, data.pool
    if not pool:
        what = "image with a report" if config.pretrain.task == "image-text" else "image"
        raise DataError(
            f"site {site}: there is no {what} that pretraining may use",
            fix="see [unlabelled] and [columns] in site.toml",
        )
    check_pretraining(model)
    pretrain, seed = config.pretrain, config.seed
    names, phase = trained_names(model.schema, config, round_number), phase_of(config, round_number)
    model.load(start)
    for name, parameter in model.parameters.items():
        parameter.requires_grad_(name in names)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        task, loss_of = _task(model, pool, names)
        load_pretext(task, keep, round_number)
        parameters = [*(model.parameters[name] for name in names), *task.parameters()]
        optimizer = _optimizer(model, names, task)
        order = torch_generator(seed, "order", site, round_number)
        draw = torch_generator(seed, pretrain.task, site, round_number)
        torch.manual_seed(derive(seed, "dropout", site, round_number))
        model.train_mode(True)
        batches = _batches(len(pool), pretrain.batch_size, pretrain.epochs, pretrain.steps, order)
        losses: list[float] = []
        for step, batch in enumerate(batches):
            _set_learning_rate(optimizer, pretrain.lr, _progress(phase, step / len(batches)))
            with autocast(model, config.train):
                loss = loss_of(batch, draw)
            losses.append(loss.item())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.train.grad_clip:
                nn.utils.clip_grad_norm_(parameters, config.train.grad_clip)
            optimizer.step()
    model.train_mode(False)
    save_pretext(task, keep, round_number)
    state = AdapterState(model.state().tensors, start.residual)
    return LocalResult(state, float(np.mean(losses)), len(losses))


def _task(model: CxrModel, pool: Unlabelled, names: tuple[str, ...]) -> tuple[nn.Module, Loss]:
    """Return what is thrown away afterwards, and the loss of some images of the pool."""
    strength = model.config.train.augment

    def images(chosen: NDArray[np.int64], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(pool.pixels[pool.rows[chosen]]))
        grey = augment(to_float(pixels.to(model.device)), strength, draw)
        return normalise(grey, model.mean, model.std, model.channels), grey

    if model.config.pretrain.task == "masked-image":
        masked = MaskedImage(model, model.config.pretrain.mask).to(model.device)

        def painted(chosen: NDArray[np.int64], draw: torch.Generator) -> Tensor:
            loss: Tensor = masked(*images(chosen, draw), draw)
            return loss

        return masked, painted
    paired = ImageText(model, pool, names).to(model.device)

    def matched(chosen: NDArray[np.int64], draw: torch.Generator) -> Tensor:
        loss: Tensor = paired(images(chosen, draw)[0], torch.from_numpy(chosen))
        return loss

    return paired, matched


def _batches(
    count: int, size: int, epochs: int, steps: int, order: torch.Generator
) -> list[NDArray[np.int64]]:
    """Deal the pool into batches, shuffled anew each epoch; as many as the plan's steps or epochs take."""
    batches: list[NDArray[np.int64]] = []
    wanted = steps or epochs * -(-count // size)
    while len(batches) < wanted:
        shuffled = torch.randperm(count, generator=order).numpy()
        batches += [shuffled[i : i + size] for i in range(0, count, size)]
    return batches[:wanted]


def _optimizer(model: CxrModel, names: tuple[str, ...], task: nn.Module) -> torch.optim.Optimizer:
    """Begin AdamW anew, as every round does; vectors and adapters do not decay."""
    moved = [model.parameters[name] for name in names]
    encoder = model.config.pretrain.parameters == "encoder"
    decayed = [p for p in ([*moved] if encoder else []) + [*task.parameters()] if p.ndim > 1]
    known = {id(p) for p in decayed}
    plain = [p for p in [*moved, *task.parameters()] if id(p) not in known]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=model.config.pretrain.lr, betas=_BETAS)


def _progress(phase: Phase, within: float) -> float:
    """Return how much of all rounds of pretraining is done, given the share of this one."""
    return (phase.number - 1 + within) / phase.rounds


def _set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, progress: float) -> None:
    """Warm up over the first twentieth of pretraining, then follow a cosine to zero."""
    factor = 0.5 * (1 + float(np.cos(np.pi * progress)))
    if progress < _WARMUP:
        factor = (progress + 1e-3) / (_WARMUP + 1e-3)
    for group in optimizer.param_groups:
        group["lr"] = peak * factor
