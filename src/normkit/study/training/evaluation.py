"""Makes runs from trained copies: losses and errors on each part of the data, and whether training succeeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normkit.study.task import Part, Task
from normkit.study.training.design import Design
from normkit.study.training.memory import CHUNK
from normkit.study.training.placement import to_device
from normkit.study.training.replicas import Replicas
from normkit.study.training.trial import Run, Trial, smooth

GUESSING = 0.95
"""A final training loss above this fraction of the loss of guessing counts as no better than guessing."""


@torch.no_grad()
def evaluate(
    task: Task, design: Design, trials: Sequence[Trial], copies: Replicas, losses: Tensor, chunk: int = CHUNK
) -> list[Run]:
    """Evaluate trained copies.

    Args:
        task, design, trials: as in the training.
        copies: the copies, one for each trial.
        losses: training losses, with a row for each step and a column for each trial.
        chunk: samples in one evaluation batch.
    """
    copies.train(False)
    # A model whose loss was not finite at some step is not evaluated, even if the loss became finite again.
    alive = [bool(losses[:, i].isfinite().all()) for i in range(len(trials))]
    validation = _scores(task, design, copies, task.validation, chunk) if any(alive) else []
    measured = any(alive) and trials[0].kind == "measure"
    test = _scores(task, design, copies, task.test, chunk) if measured else []
    probes = [task.probe(m) for m in copies.unstacked()] if measured and task.probe else [{} for _ in trials]
    training = _gap(task, design, copies, trials[0].batch_size, chunk) if measured else None
    runs = []
    for i, trial in enumerate(trials):
        curve = losses[:, i].tolist()
        if not alive[i]:
            runs.append(_diverged(task, trial, curve))
            continue
        state, message = _state(task, design, curve)
        ends = [part[i][0] for part in (validation, test) if part]
        if not all(map(math.isfinite, ends)):
            state, message = "untrained", f"the loss in evaluation was {ends[-1]}"
        runs.append(
            Run(
                trial,
                state,
                message,
                _rounded(curve),
                train_error=training.errors[i] if training else None,
                validation_error=_finite(validation[i][1]),
                validation_loss=_finite(validation[i][0]),
                test_error=test[i][1] if measured else None,
                recalibrated_error=training.recalibrated[i] if training and training.recalibrated else None,
                gap=_finite(training.gaps[i]) if training else None,
                probes={name: value for name, value in probes[i].items() if math.isfinite(value)},
            )
        )
    return runs


def _rounded(curve: Sequence[float]) -> tuple[float, ...]:
    """Losses as they are stored: with four digits, which is more than any conclusion needs."""
    return tuple(float(f"{loss:.4g}") for loss in curve)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _diverged(task: Task, trial: Trial, curve: list[float]) -> Run:
    """The run of a loss that was not finite: it is scored at chance level, not dropped."""
    end = next(i for i, loss in enumerate(curve) if not math.isfinite(loss))
    return Run(
        trial,
        "untrained",
        f"the loss was {curve[end]} at step {end + 1}",
        _rounded(curve[:end]),
        validation_error=task.chance,
        train_error=task.chance if trial.kind == "measure" else None,
        test_error=task.chance if trial.kind == "measure" else None,
    )


def _state(task: Task, design: Design, curve: list[float]) -> tuple[Literal["trained", "untrained"], str]:
    smoothed = smooth(curve, min(design.window, len(curve)))
    guess = smoothed[0] if task.guess_loss is None else task.guess_loss
    # If the loss of guessing is unknown, the loss must not have increased.
    bound = GUESSING * guess if task.guess_loss is not None else guess
    learned = smoothed[-1] < bound or len(smoothed) == 1
    return ("trained", "") if learned else ("untrained", "at the end no better than guessing")


def _scores(task: Task, design: Design, copies: Replicas, part: Part, chunk: int) -> list[tuple[float, float]]:
    """Mean loss and metric of each copy on a part; if the loss is not finite, the metric is that of guessing."""
    sums = [[0.0, 0.0] for _ in range(len(copies))]
    for inputs, targets in part.chunks(chunk):
        inputs, targets = to_device(design, inputs), to_device(design, targets)
        share = len(pytree.tree_leaves(targets)[0]) / len(part)
        for total, outputs in zip(sums, copies.outputs(inputs), strict=True):
            loss = float(task.loss(outputs, targets))
            total[0] += share * loss
            total[1] += share * (task.measured(outputs, targets) if math.isfinite(loss) else task.chance)
    return [(loss, metric) for loss, metric in sums]


class _Training(NamedTuple):
    """Measurements of each copy on some training samples."""

    errors: list[float]
    gaps: list[float]
    recalibrated: list[float]


def _gap(task: Task, design: Design, copies: Replicas, batch_size: int, chunk: int) -> _Training:
    """Error in evaluation mode; evaluation minus training loss; the test metric with recalibrated statistics.

    The last two come from one pass in training mode, which also averages the running statistics over its batches.
    """
    count = max(batch_size, min(design.gap_images, len(task.train)) // batch_size * batch_size)
    part = task.train.cut(torch.arange(count))
    evaluation = _scores(task, design, copies, part, chunk)
    training = [0.0] * len(copies)
    with copies.averaging() as numbered:
        copies.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for number, (inputs, targets) in enumerate(part.chunks(batch_size), start=1):
                numbered(number)
                inputs, targets = to_device(design, inputs), to_device(design, targets)
                for i, outputs in enumerate(copies.outputs(inputs)):
                    training[i] += float(task.loss(outputs, targets)) * batch_size / count
        copies.train(False)
        test = _scores(task, design, copies, task.test, chunk) if copies.statistics_modules() else []
    gaps = [loss - other for (loss, _), other in zip(evaluation, training, strict=True)]
    return _Training([metric for _, metric in evaluation], gaps, [metric for _, metric in test])
