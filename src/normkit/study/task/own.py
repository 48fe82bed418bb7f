"""Measures a task whose training step or evaluation is the user's own function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit.errors import ArgumentError
from normkit.study.task.part import Loader, Part, call

Move = Callable[[Any], Any]
"""Moves a batch to the device of the model."""


@dataclass(frozen=True)
class Values:
    """The measurements of a model on a part: the reported metric is one of them."""

    loss: float
    metric: float
    name: str
    others: dict[str, float]


@dataclass(frozen=True)
class _Moved:
    """The batches of a loader on the device of the model."""

    loader: Loader
    move: Move

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self.move, self.loader)


def measure(task: Any, model: nn.Module, part: Part, size: int, move: Move = lambda batch: batch) -> Values:
    """Measure a model in evaluation mode, with `evaluate` if the task has it, else with the losses of `training_step`.

    Args:
        task: a `Task` with one of the two.
        model: the model.
        part: the data.
        size: samples in a batch.
        move: see `Move`.

    Raises:
        ArgumentError: `evaluate` gives no numbers by name.
    """
    model.eval()
    with torch.no_grad():
        if task.evaluate is None:
            loss, metric = _means(task, model, part, size, move)
            return Values(loss, metric, "loss", {})
        found = task.evaluate(model, _Moved(part.loader(size), move))
    model.eval()
    if not isinstance(found, Mapping) or not found:
        raise ArgumentError(f"evaluate must give {{name: value}}, got {found!r:.80}: return the metric by its name")
    values = {str(name): _number(name, value) for name, value in found.items()}
    name = task.metric_name if task.metric_name in values else next(iter(values))
    others = {key: value for key, value in values.items() if key not in (name, "loss")}
    return Values(values.get("loss", values[name]), values[name], name, others)


def _number(name: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"evaluate must give numbers, got {value!r:.80} for {name!r}: return its mean") from error


def _means(task: Any, model: nn.Module, part: Part, size: int, move: Move) -> tuple[float, float]:
    """Loss and metric as means over the samples."""
    assert task.training_step is not None
    total = [0.0, 0.0]
    for index, batch in zip(torch.arange(len(part)).split(size), _Moved(part.loader(size), move), strict=True):
        share = len(index) / len(part)
        loss = float(task.training_step(model, batch))
        metric = loss
        if task.metric is not None:
            inputs, targets = part.split(batch)
            metric = task.measured(call(model, inputs), targets) if math.isfinite(loss) else loss
        total[0] += share * loss
        total[1] += share * metric
    return total[0], total[1]
