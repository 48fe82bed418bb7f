"""What the tests of `fold` share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# In float64, rounding of a few hundred additions and a division by a standard deviation of at least 0.7.
DOUBLE = {"rtol": 1e-11, "atol": 1e-11}


def drawn(model: nn.Module) -> nn.Module:
    """Statistics and parameters as after training: at their initial values a wrong fold would go unseen."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def norms_in(model: nn.Module) -> int:
    return sum(isinstance(module, _NormBase) for module in model.modules())


def image(dims: int, channels: int = 4) -> Tensor:
    return torch.randn(2, channels, *(6, 5, 7)[:dims], dtype=torch.float64)


class Net(nn.Module):
    """Layers put together by a function."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def conv(inside: int = 4, outside: int = 4, **more) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, **more)


def bn() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)
