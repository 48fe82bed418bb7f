"""What the tests of weight norm share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(seed: int = 0, **kwargs: object) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 4, **kwargs)


def parts(module: nn.Module, name: str = "weight") -> tuple[Tensor, Tensor]:
    norms = module.parametrizations[name]
    return norms.original0, norms.original1
