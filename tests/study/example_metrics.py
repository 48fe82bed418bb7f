"""Metrics of users: functions of all samples, and an object with the interface of torchmetrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).double().mean())


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


def f1(outputs: Tensor, targets: Tensor) -> float:
    found = outputs.argmax(1)
    return float(2 * (found * targets).sum() / (found + targets).sum().clamp(min=1))


def auc(outputs: Tensor, targets: Tensor) -> float:
    """The probability that a positive sample has the higher score; without both classes there is none."""
    if len(targets.unique()) < 2:
        raise ValueError("only one class")
    scores = (outputs[:, 1] - outputs[:, 0]).double()
    ranks = scores.unsqueeze(1) - scores.unsqueeze(0)
    return float(((ranks > 0).double() + 0.5 * (ranks == 0))[targets == 1][:, targets == 0].mean())


class F1Score:
    """A metric object with the interface of torchmetrics."""

    higher_is_better = True

    def __init__(self, positive: int = 1) -> None:
        self.positive = positive
        self.reset()

    def reset(self) -> None:
        self.hits, self.all = 0.0, 0.0

    def update(self, preds: Tensor, target: Tensor) -> None:
        found, right = preds.argmax(1) == self.positive, target == self.positive
        self.hits += float((found & right).sum())
        self.all += float(found.sum() + right.sum())

    def compute(self) -> Tensor:
        return torch.tensor(2 * self.hits / max(1.0, self.all))
