"""What the tests of `recalibrate` share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNEVEN = (5, 1, 7, 2, 1, 9)


# float32 holds the result of a float64 sum: half a unit of the last place, and one more for the oracle's own rounding.
ROUNDING = {"rtol": 2 * torch.finfo(torch.float32).eps, "atol": 1e-30}


def batches_of(*shape: int, sizes=UNEVEN, scale=1.0, mean=0.0, drift=0.0) -> list[Tensor]:
    return [(torch.randn(n, *shape) + drift * i) * scale + mean for i, n in enumerate(sizes)]


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, correction=1)


def stack(batchnorm=nn.BatchNorm1d) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), batchnorm(6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3), batchnorm(3))
