"""Scores: one number for all outputs and targets of a set, which come chunk by chunk."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from normkit.errors import ArgumentError, ShapeError


class Score(Protocol):
    """Takes a set chunk by chunk; the interface of the metrics of torchmetrics."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take outputs and targets of some samples."""

    def compute(self) -> Any:
        """The score of all that was taken."""


class MeanScore:
    """The mean of a quantity over all that counts, whatever the sizes of the chunks.

    Args:
        measure: (outputs, targets) -> the sum of the quantity, and how many count.

    >>> score = MeanScore(lambda outputs, targets: (float(outputs.sum()), len(outputs)))
    >>> score.update(torch.ones(3), None), score.update(torch.zeros(1), None), score.compute()
    (None, None, 0.75)
    """

    def __init__(self, measure: Callable[[Any, Any], tuple[float, float]]) -> None:
        self.measure = measure
        self.total, self.count = 0.0, 0.0

    def update(self, outputs: Any, targets: Any) -> None:
        """As in `Score`."""
        total, count = self.measure(outputs, targets)
        # A chunk in which nothing counts has no mean.
        if count:
            self.total += total
            self.count += count

    def compute(self) -> float:
        """As in `Score`."""
        return self.total / self.count if self.count else math.nan


class WholeScore:
    """A function of all outputs and targets, which are kept on the CPU until the end.

    Args:
        function: (outputs, targets) -> a number.

    >>> score = WholeScore(lambda outputs, targets: (outputs - targets).square().mean().sqrt())
    >>> for error in (3.0, 4.0):
    ...     score.update(torch.tensor([error]), torch.zeros(1))
    >>> round(float(score.compute()), 3)
    3.536
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.chunks: list[tuple[Any, Any]] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """As in `Score`."""
        self.chunks.append(pytree.tree_map(_kept, (outputs, targets)))

    def compute(self) -> Any:
        """As in `Score`."""
        outputs, targets = joined([chunk for chunk, _ in self.chunks]), joined([chunk for _, chunk in self.chunks])
        return self.function(outputs, targets)


class ObjectScore:
    """A metric object such as those of torchmetrics, which sees the chunks on the CPU.

    Args:
        metric: with `update(outputs, targets)` and `compute()`.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def update(self, outputs: Any, targets: Any) -> None:
        """As in `Score`."""
        self.metric.update(*pytree.tree_map(_kept, (outputs, targets)))

    def compute(self) -> Any:
        """As in `Score`."""
        return self.metric.compute()


def is_object(metric: Any) -> bool:
    """Whether a metric is updated chunk by chunk: an object, its class, or a partial of the class."""
    metric = metric.func if isinstance(metric, partial) else metric
    return callable(getattr(metric, "update", None)) and callable(getattr(metric, "compute", None))


def of_metric(metric: Any) -> Score:
    """A new score of a metric: a function of outputs and targets, a metric object, or a class of metric objects."""
    if is_object(metric):
        if isinstance(metric, (type, partial)):
            return ObjectScore(metric())
        own = copy.deepcopy(metric)
        if hasattr(own, "reset"):
            own.reset()
        return ObjectScore(own)
    weight = mean_weight(metric)
    return WholeScore(metric) if weight is None else of_mean(metric, weight)


def of_mean(function: Callable[[Any, Any], Any], weight: Callable[[Any, Any], float]) -> MeanScore:
    """The score of a function that gives a mean, with the number of what it is a mean of."""

    def measure(outputs: Any, targets: Any) -> tuple[float, float]:
        count = weight(outputs, targets)
        return (count * number("loss", function(outputs, targets)) if count else 0.0), count

    return MeanScore(measure)


# Means of torch

_MODULES = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
}
_OF_CLASSES = (F.cross_entropy, F.nll_loss)
_OF_NUMBERS = tuple(function for function in _MODULES.values() if function not in _OF_CLASSES)


def torch_loss(function: Any) -> Any:
    """The function of torch's that this is, as a function, a module or a partial; None if it is another."""
    if isinstance(function, partial):
        return torch_loss(function.func) if not function.args else None
    found = _MODULES.get(type(function), function)
    return found if any(found is known for known in _MODULES.values()) else None


def mean_weight(function: Any) -> Callable[[Any, Any], float] | None:
    """For a loss of torch's that is a mean: (outputs, targets) -> the number of what it is a mean of; None for others.

    Cross entropy divides by the weights of the targets that it does not ignore, the others by the number of outputs.
    """
    known = torch_loss(function)
    if known is None or _setting(function, "reduction", "mean") != "mean":
        return None
    if known in _OF_NUMBERS:
        return lambda outputs, targets: float(max(outputs.numel(), targets.numel()))
    weight, ignored = _setting(function, "weight", None), _setting(function, "ignore_index", -100)

    def of_classes(outputs: Any, targets: Any) -> float:
        if targets.is_floating_point():
            return float(targets.numel() / targets.shape[1])
        counted = targets != ignored
        return float(counted.sum() if weight is None else weight.to(targets.device)[targets[counted]].double().sum())

    return of_classes


def _setting(function: Any, name: str, default: Any) -> Any:
    """The value of an argument that a module or a partial of torch's losses has."""
    if isinstance(function, partial):
        return function.keywords.get(name, _setting(function.func, name, default))
    return getattr(function, name, default) if isinstance(function, nn.Module) else default


def samples(targets: Any) -> int:
    """The number of samples: the length of the first tensor that has one."""
    leaves = [leaf for leaf in pytree.tree_leaves(targets) if isinstance(leaf, Tensor) and leaf.dim()]
    return len(leaves[0]) if leaves else 1


# Values


def number(name: str, value: Any, count: int | None = None) -> float:
    """The value of a metric as a number.

    Args:
        name: what gave it, for errors.
        value: a number, or a tensor or array with one.
        count: the number of samples; then the value must be finite.

    Raises:
        ShapeError, ArgumentError: it is no number, or not finite.
    """
    if getattr(value, "numel", lambda: 1)() != 1 or getattr(value, "size", 1) == 0:
        raise ShapeError(
            f"{name} must give one number, got a tensor of shape {tuple(value.shape)}: return its mean over samples"
        )
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{name} must give one number, got {type(value).__name__}: give further ones as metrics={{name: metric}}"
        ) from error
    if count is not None and not math.isfinite(found):
        raise ArgumentError(
            f"{name} must give a finite number, got {found} on {count} samples: check what it divides by"
        )
    return found


def _kept(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf


def joined(chunks: list[Any]) -> Any:
    """The tensors of some chunks, one after the other in dimension 0; of others, the first chunk's.

    Raises:
        ShapeError: they differ in another dimension.
    """
    if len(chunks) == 1:
        return chunks[0]

    def join(*leaves: Any) -> Any:
        if not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
            return leaves[0]
        shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
        if len(shapes) > 1:
            few = ", ".join(map(str, sorted(shapes)[:3]))
            raise ShapeError(
                f"outputs and targets of all samples must have one shape to be given to a metric at once, got {few}: "
                "pad them to one length, or give a metric object with update(outputs, targets) and compute()"
            )
        return torch.cat(leaves)

    return pytree.tree_map(join, *chunks)
