"""The fix of each rule as code, for the example that trips it; pages in docs/en/audit show them, the tests run them."""

# ruff: noqa: N802
from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from normkit.layers import LayerNorm2d, RMSNorm, SyncBatchNorm
from normkit.parametrize import weight_norm
from normkit.tools.audit.examples import images
from normkit.tools.audit.report import Report
from normkit.tools.audit.run import audit
from normkit.tools.freeze import freeze, unfreeze
from normkit.tools.param_groups import param_groups
from normkit.tools.recalibrate import recalibrate


def NK101(model: Any) -> Report:
    with torch.no_grad():
        model[1].running_mean -= model[0].bias
    model[0].bias = None
    return audit(model, images(4, 3, 8, 8))


def NK102(model: Any) -> Report:
    del model[1]
    return audit(model, images(4, 8))


def NK103(model: Any) -> Report:
    model[1], model[2] = model[2], model[1]
    return audit(model, images(4, 3, 8, 8))


def NK104(model: Any) -> Report:
    model.append(model.pop(1))
    return audit(model, images(4, 8))


def NK105(model: Any) -> Report:
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    return audit(model, images(4, 3, 8, 8))


def NK106(model: Any) -> Report:
    weight_norm(nn.utils.remove_weight_norm(model))
    return audit(model)


def NK107(model: Any) -> Report:
    model.second = copy.deepcopy(model.second)
    return audit(model, images(4, 3, 8, 8))


def NK108(model: Any) -> Report:
    model[1] = LayerNorm2d(16)
    return audit(model, images(4, 3, 16, 16))


def NK109(model: Any) -> Report:
    model.norm = nn.Identity()
    return audit(model, images(4, 8))


def NK110(model: Any) -> Report:
    nn.utils.parametrize.remove_parametrizations(model[0].eval(), "weight")
    return audit(model, images(4, 3, 8, 8))


def NK111(model: Any) -> Report:
    model[1] = nn.LayerNorm(16)
    return audit(model, images(4, 5, 8))


def NK112(model: Any, x: Tensor) -> Report:
    recalibrate(model, [x])
    return audit(model, x)


def NK201(model: Any) -> Report:
    SyncBatchNorm.convert(model)
    return audit(model, images(4, 3, 8, 8), batch_size=64, world_size=8, accumulate=2)


def NK202(model: Any) -> Report:
    model[1] = nn.GroupNorm(1, 4)
    return audit(model, images(4, 8))


def NK203(model: Any) -> Report:
    model[1] = nn.GroupNorm(1, 8)
    return audit(model, images(4, 8))


def NK301(model: Any, x: Tensor) -> Report:
    recalibrate(model, [x])
    return audit(model, x)


def NK302(model: Any, x: Tensor) -> Report:
    recalibrate(model, [255 * x])
    return audit(model, 255 * x)


def NK303(model: Any) -> Report:
    batches = [images(16, 3)] * 4
    recalibrate(model, batches)
    return audit(model, loader=batches)


def NK304(model: Any, x: Tensor) -> Report:
    model[0].weight.data[1] = 0
    return audit(model, x)


def NK305(model: Any) -> Report:
    return audit(model, images(8, 3, 8, 8))


def NK306(model: Any) -> Report:
    recalibrate(model, [torch.randn(4, 3)])
    return audit(model)


def NK307(model: Any) -> Report:
    model.eps = 1e-5
    return audit(model)


def NK308(model: Any) -> Report:
    model.momentum = 0.01
    return audit(model)


def NK309(model: Any) -> Report:
    model.momentum = 0.1
    return audit(model)


def NK310(model: Any) -> Report:
    model.eps, model.momentum = 1e-5, 0.8
    return audit(model)


def NK311(model: Any) -> Report:
    model.momentum = 0.1
    return audit(model)


def NK312(model: Any) -> Report:
    unfreeze(model)
    return audit(model)


def NK313(model: Any, x: Tensor) -> Report:
    model = RMSNorm(8, eps=1e-5).half()
    return audit(model, x)


def NK401(model: Any) -> Report:
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    return audit(model, optimizer=optimizer)


def NK402(model: Any) -> Report:
    freeze(model[0])
    return audit(model)


def NK403(model: Any) -> Report:
    SyncBatchNorm.convert(model)
    return audit(model, world_size=8, batch_size=64)


def NK404(model: Any) -> Report:
    freeze(model)
    return audit(model, per_sample=True)


def NK405(model: Any, x: Tensor) -> Report:
    x = x[:, :, :5]
    return audit(model, x)


def NK406(model: Any) -> Report:
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.0), lr=0.1)
    return audit(model, optimizer=optimizer)


def NK407(model: Any) -> Report:
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    return audit(model, optimizer=optimizer)


def NK408(model: Any, x: Tensor) -> Report:
    model[1] = nn.BatchNorm1d(8)
    recalibrate(model, [x])
    return audit(model, x)


def NK409(model: Any, loader: list[Tensor]) -> Report:
    pictures = torch.cat(loader)
    loader = [*pictures[torch.randperm(len(pictures))].split(16)]
    return audit(model, loader=loader)
