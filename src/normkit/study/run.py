"""Trains one configuration and evaluates it."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.design import Design
from normkit.study.task import Split, Task

GUESSING = 0.95
"""A final training loss above this part of log(classes) is no better than guessing."""


@dataclass(frozen=True)
class Job:
    """One training run: `tune` runs choose the rate on validation images, `measure` runs also see the test."""

    kind: Literal["tune", "measure"]
    method: str
    batch_size: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Run:
    """What came of a job. Losses are those of the training batches; errors are fractions, in evaluation mode.

    `state` is "trained", "untrained" (loss not finite, or no better than guessing at the end) or "failed" (it
    raised, died or took too long; `message` says what, `trace` where). What was not measured is None. `gap` is the
    loss in evaluation mode minus the loss in training mode, `recalibrated_error` the test error after running
    statistics were computed anew.
    """

    job: Job
    state: Literal["trained", "untrained", "failed"]
    message: str = ""
    losses: tuple[float, ...] = ()
    train_error: float | None = None
    validation_error: float | None = None
    validation_loss: float | None = None
    test_error: float | None = None
    recalibrated_error: float | None = None
    gap: float | None = None
    trace: str = ""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Run:
        """The run that `dataclasses.asdict` was made from."""
        return cls(**(data | {"job": Job(**data["job"]), "losses": tuple(data["losses"])}))


def batches(images: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Indices of the images of each step: one shuffled pass after another, cut into equal batches.

    >>> batches(6, 4, 3, seed=0).shape
    torch.Size([3, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch_size // images)
    stream = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    return stream[: steps * batch_size].view(steps, batch_size)


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` losses, one for each step from step `window` on.

    >>> smooth([4.0, 2.0, 0.0], 2)
    [3.0, 1.0]
    """
    return [math.fsum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]


def execute(task: Task, design: Design, job: Job) -> Run:
    """`train`; whatever it raises becomes a failed run with the message, so that the study goes on."""
    try:
        return train(task, design, job)
    except Exception as error:
        return Run(job, "failed", f"{type(error).__name__}: {error}", trace=traceback.format_exc())


def train(task: Task, design: Design, job: Job) -> Run:
    """Train the model of one job from its seed and evaluate it at the end."""
    model = task.build(job.method, job.seed)
    optimizer = _optimizer(model, design, job.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, design.steps)
    losses: list[float] = []
    for index in batches(len(task.train), job.batch_size, design.steps, job.seed):
        loss = _step(model, optimizer, task.train.inputs[index], task.train.labels[index])
        losses.append(float(f"{loss:.4g}"))
        if not math.isfinite(loss):
            return _broken(task, job, losses)
        schedule.step()
    return _evaluate(task, design, job, model, losses)


@dataclass(frozen=True)
class Timing:
    """Methods whose steps are timed side by side."""

    batch_size: int
    methods: tuple[str, ...]


def time_steps(task: Task, design: Design, timing: Timing) -> dict[str, list[float]]:
    """Seconds per training step of each method, taken in turns so that a slow moment hits all alike.

    The rate is 0: the arithmetic is that of training, and no method drifts into other numbers meanwhile.
    """
    models = {method: task.build(method, design.tuning_seeds[0]) for method in timing.methods}
    optimizers = {method: _optimizer(model, design, rate=0.0) for method, model in models.items()}
    warm_up = 5
    seconds: dict[str, list[float]] = {method: [] for method in models}
    order = batches(len(task.train), timing.batch_size, design.time_rounds + warm_up, design.tuning_seeds[0])
    for count, index in enumerate(order):
        inputs, labels = task.train.inputs[index], task.train.labels[index]
        for method, model in models.items():
            start = time.perf_counter()
            _step(model, optimizers[method], inputs, labels)
            if count >= warm_up:
                seconds[method].append(time.perf_counter() - start)
    return seconds


def _optimizer(model: nn.Module, design: Design, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=design.momentum)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def _broken(task: Task, job: Job, losses: list[float]) -> Run:
    """A run whose loss left the finite numbers is charged with guessing, not dropped."""
    return Run(
        job,
        "untrained",
        f"the loss was {losses[-1]} at step {len(losses)}",
        tuple(losses[:-1]),
        train_error=task.chance,
        validation_error=task.chance,
        test_error=task.chance if job.kind == "measure" else None,
    )


@torch.no_grad()
def _evaluate(task: Task, design: Design, job: Job, model: nn.Module, losses: list[float]) -> Run:
    model.eval()
    learned = smooth(losses, design.window)[-1] < GUESSING * math.log(task.classes)
    state: Literal["trained", "untrained"] = "trained" if learned else "untrained"
    message = "" if learned else "at the end no better than guessing"
    validation_loss, validation_error = _judge(model, task.validation)
    result = Run(
        job,
        state,
        message,
        tuple(losses),
        train_error=_judge(model, task.train)[1],
        validation_error=validation_error,
        validation_loss=validation_loss if math.isfinite(validation_loss) else None,
    )
    if job.kind == "tune":
        return result
    test_error = _judge(model, task.test)[1]
    gap, recalibrated = _gap(task, design, model, job.batch_size)
    return replace(result, test_error=test_error, gap=gap, recalibrated_error=recalibrated)


def _judge(model: nn.Module, part: Split) -> tuple[float, float]:
    """Mean loss and error on a part."""
    logits = model(part.inputs)
    wrong = (logits.argmax(1) != part.labels).double().mean()
    return F.cross_entropy(logits, part.labels).item(), wrong.item()


def _gap(task: Task, design: Design, model: nn.Module, batch_size: int) -> tuple[float | None, float | None]:
    """Evaluation minus training loss on the same images, and the test error with statistics computed anew.

    One pass in training mode serves both: cumulative averaging (momentum None) turns it into a recalibration.
    """
    count = max(batch_size, design.gap_images // batch_size * batch_size)
    part = Split(task.train.inputs[:count], task.train.labels[:count])
    evaluation, _ = _judge(model, part)
    keepers = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    for module in keepers:
        module.reset_running_stats()  # type: ignore[operator]
        module.momentum = None  # type: ignore[assignment]
    model.train()
    chunks = zip(part.inputs.split(batch_size), part.labels.split(batch_size), strict=True)
    training = math.fsum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in chunks) / len(part)
    model.eval()
    gap = evaluation - training
    return gap if math.isfinite(gap) else None, _judge(model, task.test)[1] if keepers else None
