"""As `normkit.tools.audit.examples`, for the rules NK310 to NK313 and NK406 to NK409."""

# ruff: noqa: N802
from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit.layers import RMSNorm
from normkit.parametrize import weight_norm
from normkit.tools.audit.examples import HalfNorm, images
from normkit.tools.audit.report import Report
from normkit.tools.audit.run import audit
from normkit.tools.freeze import freeze
from normkit.tools.param_groups import param_groups


def NK310_trips() -> Report:
    model = nn.BatchNorm2d(8, 0.8)
    return audit(model)


def NK310_clean() -> Report:
    return audit(nn.BatchNorm2d(8, momentum=0.8))


def NK311_trips() -> Report:
    model = nn.BatchNorm2d(8, momentum=1.0)
    return audit(model)


def NK311_clean() -> Report:
    return audit(nn.BatchNorm2d(8, momentum=0.1))


def NK312_trips() -> Report:
    norm = nn.BatchNorm1d(8)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(nn.Linear(8, 8), norm)
    freeze(model)
    return audit(model)


def NK312_clean() -> Report:
    norm = nn.BatchNorm1d(8)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(nn.Linear(8, 8), norm)
    return audit(model)


def NK313_trips() -> Report:
    x = 300 * torch.ones(2, 8).half()
    model = HalfNorm(8, eps=1e-5).half()
    return audit(model, x)


def NK313_clean() -> Report:
    x = 300 * torch.ones(2, 8).half()
    return audit(RMSNorm(8, eps=1e-5).half(), x)


def NK406_trips() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    return audit(model, optimizer=optimizer)


def NK406_clean() -> Report:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    return audit(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def NK407_trips() -> Report:
    model = nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    return audit(model, optimizer=optimizer)


def NK407_clean() -> Report:
    model = nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU())
    return audit(model, optimizer=torch.optim.AdamW(param_groups(model, weight_decay=0.1)))


def NK408_trips() -> Report:
    x = images(4, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False))
    return audit(model, x)


def NK408_clean() -> Report:
    return audit(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), images(4, 8))


def domains(count: int) -> list[Tensor]:
    """Batches of 16 images, dark ones and bright ones in turn."""
    pictures = torch.randn(count, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [batch + 3 * (number % 2) for number, batch in enumerate(pictures)]


def NK409_trips() -> Report:
    loader = domains(8)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))
    return audit(model, loader=loader)


def NK409_clean() -> Report:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))
    return audit(model, loader=domains(16)[::2])
