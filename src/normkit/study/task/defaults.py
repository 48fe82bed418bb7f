"""The optimizer and the loss of a task that names none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit.study.task.scoring.prediction import scores_of


def sgd(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9."""
    return torch.optim.SGD(
        parameters, lr, momentum, dampening, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )


def usual_loss(outputs: Any, targets: Any) -> Tensor:
    """The loss that the model computed itself, if its outputs have one; else cross entropy."""
    own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    scores = scores_of(outputs)
    loss: Tensor = F.cross_entropy(outputs if scores is None else scores, targets) if own is None else own
    return loss
