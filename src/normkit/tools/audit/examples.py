"""For each rule a model that trips it and one that does not; the pages in docs/en/audit show them, the tests run them.

Those of some rules on training are in `normkit.tools.audit.examples_training`.

What the fix makes of the model that trips a rule is in `normkit.tools.audit.remedies`.
"""

# ruff: noqa: N802
from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from normkit.tools.audit.report import Report
from normkit.tools.audit.run import audit
from normkit.tools.param_groups import param_groups


def images(*shape: int) -> Tensor:
    """Random images that are the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model after enough batches for its running statistics to fit."""
    with torch.no_grad():
        for _ in range(50):
            model.train()(x)
    return model


def NK101_trips() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK101_clean() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK102_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8))
    return audit(model, images(4, 8))


def NK102_clean() -> Report:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
    return audit(model, images(4, 8))


def NK103_trips() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK103_clean() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return audit(model, images(4, 3, 8, 8))


def NK104_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    return audit(model, images(4, 8))


def NK104_clean() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
    return audit(model, images(4, 8))


def NK105_trips() -> Report:
    model = nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK105_clean() -> Report:
    model = nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK106_trips() -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.utils.weight_norm(nn.Linear(8, 8))
    return audit(model)


def NK106_clean() -> Report:
    model = weight_norm(nn.Linear(8, 8))
    return audit(model)


class TwoDomains(nn.Module):
    """Two inputs from two distributions through one batch norm, or through one each."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) + self.second(3 * x + 5)
        return y


def NK107_trips() -> Report:
    norm = nn.BatchNorm2d(3)
    model = TwoDomains(norm, norm)
    return audit(model, images(4, 3, 8, 8))


def NK107_clean() -> Report:
    return audit(TwoDomains(nn.BatchNorm2d(3), nn.BatchNorm2d(3)), images(4, 3, 8, 8))


def NK108_trips() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm(16))
    return audit(model, images(4, 3, 16, 16))


def NK108_clean() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm([16, 16, 16]))
    return audit(model, images(4, 3, 16, 16))


class Branch(nn.Module):
    """A layer, and a norm whose output goes nowhere or on."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        y = self.norm(x)
        return y if self.used else x


def NK109_trips() -> Report:
    model = Branch(used=False)
    return audit(model, images(4, 8))


def NK109_clean() -> Report:
    return audit(Branch(used=True), images(4, 8))


def NK110_trips() -> Report:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK110_clean() -> Report:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.LeakyReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    return audit(model, images(4, 3, 8, 8))


def NK111_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(5))
    return audit(model, images(4, 5, 8))


def NK111_clean() -> Report:
    model = nn.Sequential(nn.Conv1d(5, 16, 3), nn.BatchNorm1d(16))
    return audit(model, images(4, 5, 8))


def NK112_trips() -> Report:
    x = images(16, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.AvgPool2d(2), nn.BatchNorm2d(8))
    return audit(settled(model, x), x)


def NK112_clean() -> Report:
    x = images(16, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.Dropout(0.5))
    return audit(settled(model, x), x)


def NK201_trips() -> Report:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    return audit(model, images(4, 3, 8, 8), batch_size=64, world_size=8, accumulate=2)


def NK201_clean() -> Report:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    return audit(model, images(4, 3, 8, 8), batch_size=64)


def NK202_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 4), nn.GroupNorm(4, 4))
    return audit(model, images(4, 8))


def NK202_clean() -> Report:
    model = nn.Sequential(nn.Linear(8, 4), nn.GroupNorm(1, 4))
    return audit(model, images(4, 8))


def NK203_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(4, 8))
    return audit(model, images(4, 8))


def NK203_clean() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(1, 8))
    return audit(model, images(4, 8))


def NK301_trips() -> Report:
    x = images(8, 3, 8, 8)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    settled(model, x)
    model[2] = nn.BatchNorm2d(3)
    return audit(model, x)


def NK301_clean() -> Report:
    x = images(8, 3, 8, 8)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    return audit(settled(model, x), x)


def NK302_trips() -> Report:
    x = images(8, 3, 8, 8)
    model = settled(nn.Sequential(nn.BatchNorm2d(3)), x)
    return audit(model, 255 * x)


def NK302_clean() -> Report:
    x = images(8, 3, 8, 8)
    model = settled(nn.Sequential(nn.BatchNorm2d(3)), x)
    return audit(model, x)


def NK303_trips() -> Report:
    model = nn.BatchNorm1d(3, momentum=0.01)
    for _ in range(20):
        model(images(16, 3))
    return audit(model)


def NK303_clean() -> Report:
    model = nn.BatchNorm1d(3, momentum=0.1)
    for _ in range(50):
        model(images(16, 3))
    return audit(model)


def NK304_trips() -> Report:
    x = images(8, 3, 8, 8)
    x[:, 1] = 0.5
    model = nn.Sequential(nn.BatchNorm2d(3))
    return audit(model, x)


def NK304_clean() -> Report:
    return audit(nn.Sequential(nn.BatchNorm2d(3)), images(8, 3, 8, 8))


def NK305_trips() -> Report:
    model = nn.Sequential(nn.BatchNorm2d(3))
    return audit(model, 1e6 * images(8, 3, 8, 8))


def NK305_clean() -> Report:
    return audit(nn.Sequential(nn.BatchNorm2d(3)), 255 * images(8, 3, 8, 8))


def NK306_trips() -> Report:
    model = nn.BatchNorm1d(3)
    model(torch.full((4, 3), float("inf")))
    return audit(model)


def NK306_clean() -> Report:
    model = nn.BatchNorm1d(3)
    model(torch.randn(4, 3))
    return audit(model)


class HalfNorm(nn.Module):
    """A norm written by hand, which computes in the dtype of its input."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


def NK307_trips() -> Report:
    model = HalfNorm(8, eps=1e-8).half()
    return audit(model)


def NK307_clean() -> Report:
    return audit(HalfNorm(8, eps=1e-5).half())


def NK308_trips() -> Report:
    model = nn.BatchNorm2d(8, momentum=0.99)
    return audit(model)


def NK308_clean() -> Report:
    return audit(nn.BatchNorm2d(8, momentum=0.01))


def NK309_trips() -> Report:
    model = nn.BatchNorm2d(8, momentum=0.0)
    return audit(model)


def NK309_clean() -> Report:
    return audit(nn.BatchNorm2d(8, momentum=None))


def NK401_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    return audit(model, optimizer=optimizer)


def NK401_clean() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    return audit(model, optimizer=torch.optim.AdamW(param_groups(model, weight_decay=0.1)))


def NK402_trips() -> Report:
    backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(8, 2)).train()
    return audit(model)


def NK402_clean() -> Report:
    backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(8, 2)).train()
    backbone.eval()
    return audit(model)


def NK403_trips() -> Report:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    return audit(model, world_size=8, batch_size=64)


def NK403_clean() -> Report:
    return audit(nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8)), world_size=8, batch_size=64)


def NK404_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    return audit(model, per_sample=True)


def NK404_clean() -> Report:
    return audit(nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8)), per_sample=True)


def NK405_trips() -> Report:
    x = images(4, 8, 20)
    for sample, length in enumerate([20, 15, 10, 5]):
        x[sample, :, length:] = 0
    model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8))
    return audit(model, x)


def NK405_clean() -> Report:
    return audit(nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)), images(4, 8, 20))
