"""The fix of each rule as code, for the example that trips it; pages in docs/audit show them, the tests run them."""

# ruff: noqa: N802
from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from normkit.layers import LayerNorm2d, SyncBatchNorm
from normkit.parametrize import weight_norm
from normkit.tools.audit.examples import images
from normkit.tools.audit.report import Report
from normkit.tools.audit.run import audit
from normkit.tools.freeze import freeze
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
