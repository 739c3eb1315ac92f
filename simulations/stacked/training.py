"""One round of local training at several sites in one pass; each site's result is its own.

What `client.train.train_round` does at one site after the other, over stacked adapters: the same studies
in the same order, the same loss, optimiser and learning rates. A site with fewer steps than others stands
aside when it has done them; one with a smaller batch is padded with studies that count for nothing. The
results equal those of training one by one up to the rounding of floating-point sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from client.data.dataset import SiteData
from client.prefix_cache import Batch, StudyInputs
from client.train import (
    LocalResult,
    autocast,
    keep_unowned_rows,
    labelled_studies,
    learning_rate_factor,
    masked_bce,
    positive_weights,
    shuffled_batches,
)
from common.adapter import AdapterState
from common.model.build import CxrModel
from common.phase import phase_of, trained_names
from common.seeds import torch_generator
from simulations.stacked.forward import StackedForward
from simulations.stacked.optimise import StackedOptimizer, clip


@dataclass(frozen=True)
class Task:
    """What one site is to train: the arguments of `client.train.train_round`."""

    model: CxrModel
    data: SiteData
    inputs: StudyInputs
    start: AdapterState
    round_number: int
    site: str
    proximal_mu: float = 0.0
    class_weights: NDArray[np.float64] | None = None
    learning_rate: float = 1.0


class Student:
    """One site on its way through a round: its studies in its own order, its share of the peak rate.

    Raises:
        DataError: if the site has no training study with a label of this run.
        SchemaError: if class weights of all sites were to come, and did not.
    """

    def __init__(self, task: Task) -> None:
        config, site, number = task.model.config, task.site, task.round_number
        train = config.train
        self.task = task
        self._indices = labelled_studies(task.data, site)
        self._labels = torch.from_numpy(task.data.labels)
        self.weights = positive_weights(task.data, train, task.class_weights)
        self._order = torch_generator(config.seed, "order", site, number)
        self._views = torch_generator(config.seed, "augment", site, number)
        self._shuffled: list[NDArray[np.int64]] = []
        self.steps = train.steps or -(-len(self._indices) // train.batch_size) * train.epochs
        self.losses: list[Tensor] = []
        self.threads = torch.get_num_threads()
        """What the site set for the thread it answers on."""

    def kind(self) -> tuple[object, ...]:
        """Return what sites must have alike to go through one pass: the shape of what the model reads."""
        self.task.model.load(self.task.start)  # a residual decides what of it may be kept
        spare = torch_generator(self.task.model.config.seed, "kind")
        with torch.no_grad():
            batch = self.task.inputs.batch(self._indices[:1], spare)
        of = (batch.images, *(() if batch.clinical is None else (batch.clinical,)))
        return (*(tuple(t.shape) for t in of), self.task.inputs.blocks, self.weights is None)

    def next_batch(self) -> tuple[Batch, Tensor]:
        """Return what the model reads of the next studies, and their labels ``[B, F]``."""
        if not self._shuffled:
            self._shuffled = shuffled_batches(
                self._indices, self.task.model.config.train.batch_size, self._order
            )
        rows = self._shuffled.pop(0)
        return self.task.inputs.batch(rows, self._views), self._labels[rows]

    def rate(self, step: int, peak: float) -> float:
        """Return the learning rate of a step, given its peak over the phase."""
        task, train = self.task, self.task.model.config.train
        phase = phase_of(task.model.config, task.round_number)
        progress = (phase.number - 1 + step / self.steps) / phase.rounds
        floor = min(train.min_lr, peak) if progress >= train.warmup else 0.0
        return task.learning_rate * max(peak * learning_rate_factor(train, progress), floor)


@dataclass
class _Group:
    """Students that go through one pass together."""

    first: Student
    kind: tuple[object, ...]
    places: list[int] = field(default_factory=list)

    def takes(self, student: Student, kind: tuple[object, ...]) -> bool:
        mine, other = self.first.task, student.task
        same = mine.model is other.model and mine.round_number == other.round_number
        return same and self.kind == kind and _same_residual(mine.start, other.start)


def train_stacked(students: Sequence[Student]) -> list[LocalResult]:
    """Train a round at every student's site, in as few passes as their kinds allow."""
    groups: list[_Group] = []
    for place, student in enumerate(students):
        kind = student.kind()
        group = next((g for g in groups if g.takes(student, kind)), None)
        if group is None:
            group = _Group(student, kind)
            groups.append(group)
        group.places.append(place)
    results: dict[int, LocalResult] = {}
    for group in groups:
        # Those with the most steps first: at every step the sites still training are the first rows.
        places = sorted(group.places, key=lambda place: -students[place].steps)
        results |= zip(places, _one_pass([students[place] for place in places]), strict=True)
    return [results[place] for place in range(len(students))]


def _one_pass(students: Sequence[Student]) -> list[LocalResult]:
    first = students[0].task
    model, config = first.model, first.model.config
    train, names = config.train, trained_names(model.schema, config, first.round_number)
    torch.set_num_threads(students[0].threads)
    model.load(first.start)
    # Nothing is dropped at random and statistics are frozen, so training mode would change nothing.
    model.train_mode(False)
    for parameter in model.parameters.values():
        parameter.requires_grad_(False)
    forward = StackedForward(model, names, [student.task.start for student in students])
    rows = forward.start.clone()
    optimizer = StackedOptimizer(rows, train)
    anew = {*model.schema.head, *model.schema.fusion}
    by_name = [torch.full((size,), name in anew) for name, size in zip(names, forward.sizes, strict=True)]
    in_head = torch.cat(by_name).to(model.device)
    for step in range(students[0].steps):
        busy = [student for student in students if step < student.steps]
        adapters = rows[: len(busy)].requires_grad_()
        with torch.enable_grad():
            loss = _losses(forward, adapters, busy)
            (gradient,) = torch.autograd.grad(loss.sum(), adapters)
        adapters.requires_grad_(False)
        for student, own in zip(busy, loss.detach().unbind(), strict=True):
            student.losses.append(own)
        if first.proximal_mu:
            gradient.add_(adapters - forward.start[: len(busy)], alpha=first.proximal_mu)
        if train.grad_clip:
            clip(gradient, train.grad_clip)
        optimizer.step(adapters, gradient, _rates(busy, step, in_head))
    return [_result(student, forward, row) for student, row in zip(students, rows, strict=True)]


def _losses(forward: StackedForward, adapters: Tensor, students: Sequence[Student]) -> Tensor:
    """Return each student's loss on its next studies, ``[k]``."""
    first = students[0].task
    drawn = [student.next_batch() for student in students]
    width = max(len(labels) for _, labels in drawn)
    # What pads a batch has no label: NaN is masked.
    padded = [torch.nn.functional.pad(y, (0, 0, 0, width - len(y)), value=torch.nan) for _, y in drawn]
    labels = torch.stack(padded).to(first.model.device)
    with autocast(first.model, first.model.config.train):
        logits = forward.logits(adapters, [batch for batch, _ in drawn], first.inputs)
    known = [student.weights for student in students if student.weights is not None]
    if not known:
        return vmap(lambda said, told: masked_bce(said, told, None))(logits.float(), labels)
    weights = torch.stack(known).to(first.model.device)
    return vmap(masked_bce)(logits.float(), labels, weights)


def _rates(students: Sequence[Student], step: int, in_head: Tensor) -> Tensor:
    """Return learning rates ``[k, 1]``, or ``[k, N]`` where the head has its own."""
    train = students[0].task.model.config.train

    def of(peak: float) -> Tensor:
        rates = [[student.rate(step, peak)] for student in students]
        return torch.tensor(rates, dtype=torch.float32, device=in_head.device)

    if not train.head_lr or train.head_lr == train.lr:
        return of(train.lr)
    return torch.where(in_head, of(train.head_lr), of(train.lr))


def _result(student: Student, forward: StackedForward, row: Tensor) -> LocalResult:
    task = student.task
    moved = AdapterState({**task.start.tensors, **forward.unpack(row)}, {})
    kept = keep_unowned_rows(moved, task.start, task.model, task.data)
    losses = torch.stack(student.losses).tolist()
    return LocalResult(AdapterState(kept, task.start.residual), float(np.mean(losses)), student.steps)


def _same_residual(one: AdapterState, other: AdapterState) -> bool:
    if one.residual is other.residual:
        return True
    if one.residual.keys() != other.residual.keys():
        return False
    pairs = ((factors, other.residual[name]) for name, factors in one.residual.items())
    return all(torch.equal(a.left, b.left) and torch.equal(a.right, b.right) for a, b in pairs)
