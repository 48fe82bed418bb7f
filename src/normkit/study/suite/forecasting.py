"""Series whose level and scale may change, and a small network that forecasts them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit
from normkit.study.suite.data import Pair
from normkit.study.suite.networks import initialize, with_norm_of_weights
from normkit.study.suite.transformers import Normed

SERIES, WINDOW, HORIZON = 3, 24, 12
"""Series of a window, its time steps, and those of the forecast."""
PERIOD = 12


class Reversible(nn.Module):
    """A model between `normkit.RevIN` and its inverse: (N, T, C) -> (N, T', C).

    Args:
        model: any model of that form.
        series: number of series C.
    """

    def __init__(self, model: nn.Module, series: int) -> None:
        super().__init__()
        self.model = model
        self.norm = normkit.RevIN(series)

    def forward(self, window: Tensor) -> Tensor:
        """The forecast, on the scale of the window."""
        return self.norm.inverse(self.model(self.norm(window)))


class Forecaster(nn.Module):
    """A perceptron over the time steps of each series; a norm covers the features of a series before the ReLU."""

    def __init__(self, variant: str, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            self.into, self.out = nn.Linear(WINDOW, width), nn.Linear(width, HORIZON)
        for layer in (self.into, self.out):
            initialize(layer, generator)
        with_norm_of_weights(self.into, variant)
        self.norm = Normed(variant, width)

    def forward(self, window: Tensor) -> Tensor:
        """(N, WINDOW, SERIES) -> (N, HORIZON, SERIES)."""
        out: Tensor = self.out(F.relu(self.norm(self.into(window.mT)))).mT
        return out


def forecaster(variant: str, seed: int, *, width: int) -> nn.Module:
    """A `Forecaster` of a variant; ``revin`` surrounds one without norms.

    >>> forecaster("revin", 0, width=8)(torch.zeros(2, WINDOW, SERIES)).shape
    torch.Size([2, 12, 3])
    """
    if variant == "revin":
        return Reversible(Forecaster("none", seed, width), SERIES)
    return Forecaster(variant, seed, width)


def series(
    count: int, seed: int, kind: Literal["cycle", "reverting"] = "cycle", level: float = 0.0, scale: float = 1.0
) -> Pair:
    """Windows of made-up series, and what follows each: (count, WINDOW, SERIES) and (count, HORIZON, SERIES).

    Both kinds have variance `scale` ** 2 around `level`. "cycle" is a sine of period 12 with a random phase, and half
    its variance is noise that is correlated from step to step (0.8). "reverting" is such noise alone (0.95): it
    returns to the level, so that a forecast needs to know the level.
    """
    generator = torch.Generator().manual_seed(seed)
    keeps = 0.8 if kind == "cycle" else 0.95
    noise = [torch.randn(count, SERIES, generator=generator)]
    for _ in range(WINDOW + HORIZON - 1):
        new = torch.randn(count, SERIES, generator=generator)
        noise.append(keeps * noise[-1] + (1 - keeps**2) ** 0.5 * new)
    values = torch.stack(noise, 1)
    if kind == "cycle":
        phase = torch.rand(count, 1, SERIES, generator=generator)
        time = torch.arange(WINDOW + HORIZON).view(1, -1, 1)
        # A sine has variance 1/2; the noise has the other half.
        values = torch.sin(2 * torch.pi * (time / PERIOD + phase)) + 0.5**0.5 * values
    values = level + scale * values
    return values[:, :WINDOW].clone(), values[:, WINDOW:].clone()
