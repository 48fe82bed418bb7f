"""The layers that every transform is tried on, each beside plain torch where torch has it."""

from __future__ import annotations

import torch
from torch import nn

import normkit


class Extras(nn.Module):
    """A layer that is given everything: padding, a residual, an activation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(6, device=x.device) < 5
        return self.norm(x, residual=0.5 * x.flip(0), mask=mask)


LAYERS = {
    "batch": lambda: normkit.BatchNorm1d(4),
    "batch, eval": lambda: normkit.BatchNorm1d(4).eval(),
    "batch, no running statistics": lambda: normkit.BatchNorm1d(4, track_running_stats=False),
    "layer": lambda: normkit.LayerNorm(6),
    "instance": lambda: normkit.InstanceNorm1d(4, affine=True),
    "group": lambda: normkit.GroupNorm(2, 4),
    "rms": lambda: normkit.RMSNorm(6, eps=1e-5),
    "pattern": lambda: normkit.Norm("b [c] ...", 4),
    "local_response": lambda: normkit.LocalResponseNorm(3),
    "ghost": lambda: normkit.GhostBatchNorm1d(4, virtual_batch_size=2),
    "frozen": lambda: normkit.FrozenBatchNorm1d(4),
    "renorm, eval": lambda: normkit.BatchRenorm1d(4).eval(),
    "batch with extras": lambda: Extras(normkit.BatchNorm1d(4, activation="gelu")),
    "instance with extras": lambda: Extras(normkit.InstanceNorm1d(4, activation="silu")),
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
