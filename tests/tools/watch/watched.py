"""What the tests of `watch` share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normkit.tools.watch import NormRecord


def small(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), norm or nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 2)
    )


def train(model: nn.Module, steps: int = 3, x: Tensor | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 4) if x is None else x).square().mean().backward()
        optimizer.step()


def everything(model: nn.Module) -> dict[str, Any]:
    """State, modes and hooks; the state as copies."""
    names = [key for key in vars(nn.Module()) if "hooks" in key]
    modules = {
        n: (m.training, {k: dict(vars(m)[k] or {}) for k in names}, sorted(vars(m))) for n, m in model.named_modules()
    }
    return {"modules": modules, "state": {k: v.clone() for k, v in model.state_dict().items()}}


def run(model: nn.Module, x: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """Outputs and gradients of a few steps of training, and the state of random numbers behind them."""
    torch.manual_seed(3)
    out = []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x)
        y.square().mean().backward()
        out += [y.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    return out, torch.get_rng_state()


# The picture ----------------------------------------------------------------------------------------------


def std_record(step: int, name: str, value: float | None) -> NormRecord:
    return NormRecord(step, name, "LayerNorm", output_std=value)
