"""What guessing gives: samples that represent a part of the data, and whether a run is better than a guess."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from normkit.study.task.batches import Columns
from normkit.study.task.part import Part
from normkit.study.task.scoring.prediction import labels_of

LOADED = 256
"""Samples that are loaded from a data set to find what guessing gives."""
MOST_CLASSES = 64
"""Up to this number of classes, a sample has each of them."""
Z = 1.96
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Guess:
    """The metric of guessing on a part of the data, and its distance from that of perfect outputs."""

    value: float
    scale: float


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction of `count` samples.

    >>> low, high = wilson(0.41, 500)
    >>> round(low, 3), round(high, 3)
    (0.368, 0.454)
    """
    z2 = Z * Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(max(0.0, share * (1 - share)) / count + z2 / (4 * count)) / (1 + z2)
    return middle - half, middle + half


def beats(value: float, guess: Guess, count: int, *, share: bool, higher: bool) -> bool:
    """Whether a metric on `count` samples is better than that of guessing by its interval.

    The interval of a fraction is Wilson's. Other metrics must pass the guess by `z² / count` of the distance from the
    guess to perfect outputs: with chance 95 %, outputs that have nothing to do with the targets explain less.
    """
    sign = 1 if higher else -1
    if share and 0 <= value <= 1:
        low, high = wilson(value, count)
        return low > guess.value if higher else high < guess.value
    return sign * (value - guess.value) > Z * Z / count * guess.scale


def known_targets(part: Part) -> Any:
    """The targets of all samples, if no sample must be loaded for them; else None.

    They are known for tensors, and for data sets with a list `targets` of them, such as torchvision's `ImageFolder`.
    """
    if isinstance(part.data, tuple) and part.unpack is None:
        return part.data[1]
    if isinstance(part.data, tuple | Columns):
        return part.take(torch.arange(len(part)))[1]
    data: Any = part.data
    index = torch.arange(len(part))
    while isinstance(data, Subset):
        data, index = data.dataset, torch.as_tensor(data.indices)[index]
    given = getattr(data, "targets", None)
    try:
        targets = torch.as_tensor(given)[index]
        # A transform of the targets would make the list another one.
        at = _random(len(part), 4)
        return targets if torch.equal(torch.as_tensor(part.take(at)[1]), targets[at]) else None
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None


def representative(part: Part, count: int) -> Tensor:
    """Indices of some samples, the same ones at each call: random ones, and at least one of each class if possible."""
    order = _random(len(part), len(part))
    labels = labels_of(known_targets(part))
    if labels is None or labels.dim() > 2 or labels.numel() != len(part):
        return order[:count]
    kinds, member = labels.flatten()[order].unique(return_inverse=True)
    if len(kinds) > MOST_CLASSES:
        return order[:count]
    firsts = torch.tensor([int((member == kind).nonzero()[0]) for kind in range(len(kinds))])
    rest = torch.ones(len(order), dtype=torch.bool)
    rest[firsts] = False
    return torch.cat([order[firsts], order[rest]])[: max(count, len(firsts))]


def spread(targets: Tensor, most: int) -> Tensor:
    """Evenly spaced samples with at most about this number of elements in all."""
    return targets[:: max(1, -(-targets.numel() // most))]


def _random(size: int, count: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count]
