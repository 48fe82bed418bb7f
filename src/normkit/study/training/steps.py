"""The steps of a training: batches, schedule, averages of the weights, and early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normkit.study.task import Task
from normkit.study.task.recipe import CHECKS, factors
from normkit.study.training.copies.optimizers import advance
from normkit.study.training.copies.replicas import Batch, Replicas, Rows
from normkit.study.training.copies.stacked import Stacked
from normkit.study.training.design import Design
from normkit.study.training.diverged import tolerant
from normkit.study.training.evaluation import validation_metrics
from normkit.study.training.placement import to_device
from normkit.study.training.trial import Trial, batches


class Steps:
    """The training steps of some copies, each by a call with its number.

    Args:
        task, design: as in `Trainer.execute`.
        trials: one for each copy.
        copies: with their optimizers.
        chunk: samples in one evaluation batch.
    """

    def __init__(self, task: Task, design: Design, trials: Sequence[Trial], copies: Replicas, chunk: int) -> None:
        self.task, self.design, self.copies = task, design, copies
        self.batch_size = trials[0].batch_size
        self.count = design.steps_at(self.batch_size)
        self.factors = factors(task.schedule, task.warmup, self.count)
        copies.clip = task.clip
        forwards, weights = self.count * task.accumulate, task.train.weights
        each = [batches(len(task.train), t.batch_size, forwards, t.seed, weights) for t in trials]
        self.order = torch.stack(each, dim=1)
        self.average = None if task.ema is None else Average(copies, task.ema)
        self.stopping = None if task.patience is None else EarlyStopping(task, design, copies, self.count, chunk)

    def __call__(self, step: int) -> Tensor:
        """Make a step; returns the losses before it."""
        copies, task = self.copies, self.task
        copies.scale_rates(self.factors[step])
        each = task.accumulate
        rows = self.order[step * each : (step + 1) * each]
        # Stacked copies do not branch on values; if their loss raises an error, they are trained one after the other.
        loss = task.loss if task.loss is None or isinstance(copies, Stacked) else tolerant(task.loss)
        # Without a loss there is a `training_step`, which computes it.
        losses = copies.step_over(loss, [self._batch(index) for index in rows])  # type: ignore[arg-type]
        for scheduler in copies.schedulers:
            advance(scheduler, self._ends_epoch(step))
        if self.average is not None:
            self.average.update()
        return losses

    def stopped(self, step: int, losses: Tensor) -> bool:
        """Whether training ends after this step: a loss is not finite, or the validation data have shown no progress.

        Many metrics raise an error for values that are not finite.
        """
        if self.stopping is None:
            return False
        return not bool(losses.isfinite().all()) or self.stopping.check(step, self.average)

    def finish(self) -> None:
        """Give the copies the weights that are evaluated."""
        if self.stopping is not None and self.stopping.best is not None:
            assign(self.copies, self.stopping.best)
        elif self.average is not None:
            assign(self.copies, self.average.values)

    def _batch(self, index: Tensor) -> Batch:
        return batch_of(self.task, self.design, index, stacked=isinstance(self.copies, Stacked))

    def _ends_epoch(self, step: int) -> bool:
        size = self.batch_size * self.task.accumulate
        return (step + 1) * size // len(self.task.train) > step * size // len(self.task.train)


def batch_of(task: Task, design: Design, index: Tensor, *, stacked: bool) -> Batch:
    """The inputs and targets of each copy, whose samples are a row of `index`; of an own step batches and None."""
    if task.training_step is not None:
        return Rows([to_device(design, task.train.batch(row)) for row in index]), None
    if stacked or task.train.collate is None:
        inputs, targets = to_device(design, task.train.take(index))
        return inputs, targets
    # Batches of several lengths cannot be stacked.
    pairs = [to_device(design, task.train.take(row)) for row in index]
    return Rows([inputs for inputs, _ in pairs]), Rows([targets for _, targets in pairs])


class Average:
    """The exponential moving average of the weights and buffers of all copies.

    Its decay rises to the given one as (1 + n) / (10 + n) with the steps n, so that it forgets the first weights.
    """

    def __init__(self, copies: Replicas, decay: float) -> None:
        self.copies, self.decay, self.steps = copies, decay, 0
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        now = self.copies.tensors()
        if not self.values:
            self.values = {name: tensor.detach().clone() for name, tensor in now.items()}
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, tensor in now.items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.values[name].copy_(tensor)


class EarlyStopping:
    """Checks a single copy on the validation data, and keeps its best weights."""

    def __init__(self, task: Task, design: Design, copies: Replicas, steps: int, chunk: int) -> None:
        self.task, self.design, self.copies, self.chunk = task, design, copies, chunk
        self.every = max(1, steps // CHECKS)
        self.best: dict[str, Tensor] | None = None
        self.least, self.waited = float("inf"), 0

    def check(self, step: int, average: Average | None) -> bool:
        """Check after a step, if it is time; returns whether to stop."""
        if (step + 1) % self.every:
            return False
        own = {name: tensor.detach().clone() for name, tensor in self.copies.tensors().items()}
        if average is not None:
            assign(self.copies, average.values)
        self.copies.train(False)
        (value,) = validation_metrics(self.task, self.design, self.copies, self.chunk)
        self.copies.train()
        value *= self.design.sign
        if value < self.least:
            self.least, self.waited = value, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.copies.tensors().items()}
        else:
            self.waited += 1
        assign(self.copies, own)
        assert self.task.patience is not None
        return self.waited >= self.task.patience


@torch.no_grad()
def assign(copies: Replicas, values: dict[str, Tensor]) -> None:
    """Give the copies other weights and buffers, in place."""
    for name, tensor in copies.tensors().items():
        tensor.copy_(values[name])


def example(task: Task, design: Design, batch_size: int) -> Any:
    """The first inputs and targets of the training data, on the device of a design."""
    return to_device(design, task.train.take(task.train.first(batch_size)))


def same_shapes(task: Task, batch_size: int) -> bool:
    """Whether some batches that a `collate_fn` makes have the same shapes, so that those of copies can be stacked."""
    order = batches(len(task.train), min(batch_size, len(task.train)), 8, seed=0)
    shapes = [
        [leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(task.train.batch(index))]
        for index in order
    ]
    return all(shape == shapes[0] and None not in shape for shape in shapes)
