"""Measures a task whose training step or evaluation is the user's own function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normkit.errors import ArgumentError
from normkit.study.task.metric import LOSS, Metric, named
from normkit.study.task.part import Loader, Part, call
from normkit.study.task.recipe import checked_loss
from normkit.study.task.scoring import direction, guess
from normkit.study.task.scoring.scores import number, of_metric

UNTRAINED = 1024
"""The samples at most on which an untrained model is measured."""
Move = Callable[[Any], Any]
"""Moves a batch to the device of the model."""


@dataclass(frozen=True)
class Values:
    """The measurements of a model on a part: the reported metric is one of them.

    The loss is None if `evaluate` does not give it: another value has another scale, and perhaps another direction.
    """

    loss: float | None
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
    return Values(values.get("loss"), values[name], name, others)


def _number(name: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"evaluate must give numbers, got {value!r:.80} for {name!r}: return its mean") from error


def _means(task: Any, model: nn.Module, part: Part, size: int, move: Move) -> tuple[float, float]:
    """The loss as a mean over the samples, and the metric."""
    total = 0.0
    score = None if task.metric is None else of_metric(task.metric)
    for index, batch in zip(torch.arange(len(part)).split(size), _Moved(part.loader(size), move), strict=True):
        total += len(index) / len(part) * float(checked_loss(task.training_step(model, batch)))
        if score is not None and math.isfinite(total):
            inputs, targets = part.split(batch)
            score.update(call(model, inputs), targets)
    return total, total if score is None or not math.isfinite(total) else number("metric", score.compute(), len(part))


class OwnScheme:
    """How a task is scored that the user's own functions measure; see `Scheme`, which has the same attributes.

    Args:
        task: a `Task` with `own`.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self._guesses: dict[str, Values] = {}

    @property
    def higher_is_better(self) -> bool:
        """The direction of the metric: as the task says, or as its metric states; else lower is better."""
        stated = None if self.task.metric is None else direction.known_higher(self.task.metric)
        return bool(stated if self.task.higher_is_better is None else self.task.higher_is_better)

    @property
    def reported(self) -> Metric:
        """The metric's name and direction, and how its values are written."""
        found = self._guess("test")
        name = self.task.metric_name or found.name
        if self.task.evaluate is None and self.task.metric is not None and not self.task.metric_name:
            name = direction.name_of(self.task.metric)
        share = direction.looks_share(name) and 0 <= found.metric <= 1
        return Metric(
            LOSS.name if name == "loss" else named(name),
            share if self.task.share is None else self.task.share,
            self.higher_is_better,
        )

    def guess(self, name: str) -> float:
        """The metric of an untrained model on a part."""
        return self._guess(name).metric

    def beats_guess(self, name: str, value: float) -> bool:
        """Whether a metric on a part is better than that of an untrained model by its interval."""
        metric, found = self.reported, self.guess(name)
        known = guess.Guess(found, abs(found))
        count = len(getattr(self.task, name))
        return guess.beats(value, known, count, share=metric.share, higher=metric.higher_is_better)

    def _guess(self, name: str) -> Values:
        if name not in self._guesses:
            part = getattr(self.task, name)
            # Random samples: the data may be sorted.
            some = part.cut(guess.representative(part, UNTRAINED))
            self._guesses[name] = measure(self.task, self.task.build("none", 0), some, self.task.evaluation_batch or 64)
        return self._guesses[name]

    def check(self) -> None:
        """Find mistakes before hours of training.

        Raises:
            ArgumentError: a metric that is no finite number, or whose name looks like the other direction.
        """
        for name in ("test", "validation"):
            found = self._guess(name)
            if not math.isfinite(found.metric):
                raise ArgumentError(
                    f"{found.name} must be a finite number, got {found.metric} on the {name} data from an untrained "
                    "model: check what it divides by"
                )
        name = str(self.reported.name)
        if self.task.higher_is_better is None and not self.higher_is_better and direction.looks_higher(name):
            raise ArgumentError(
                f"a metric named {name!r} needs its direction, got higher_is_better=None: say True if higher values "
                "are better, or False if lower ones are"
            )
