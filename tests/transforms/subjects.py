"""The layers that every transform is tried on, each beside plain torch where torch has it."""

from __future__ import annotations

import torch
from torch import nn

import normkit

LAYERS = {
    "batch, eval": lambda: normkit.BatchNorm1d(4).eval(),
    "batch, no running statistics": lambda: normkit.BatchNorm1d(4, track_running_stats=False),
    "layer": lambda: normkit.LayerNorm(6),
    "instance": lambda: normkit.InstanceNorm1d(4, affine=True),
    "group": lambda: normkit.GroupNorm(2, 4),
    "rms": lambda: normkit.RMSNorm(6, eps=1e-5),
    "pattern": lambda: normkit.Norm("b [c] ...", 4),
    "local_response": lambda: normkit.LocalResponseNorm(3),
    "weight_norm": lambda: normkit.weight_norm(nn.Linear(6, 5)),
    "weight_standardization": lambda: normkit.weight_standardization(nn.Linear(6, 5)),
}

OF_TORCH = {
    "batch, eval": lambda: nn.BatchNorm1d(4).eval(),
    "batch, no running statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "layer": lambda: nn.LayerNorm(6),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "rms": lambda: nn.RMSNorm(6, eps=1e-5),
    "local_response": lambda: nn.LocalResponseNorm(3),
}


def sample(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, 6)
