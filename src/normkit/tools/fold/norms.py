"""The norms that `fold` considers, of any library."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.tools.model.info import NormInfo
from normkit.tools.model.tree import Place, module_places, norms

SHAPES = ((2, 2), (2,), ())
"""Positions of the inputs on which a norm is tried: that of an image, of a sequence, of a vector."""


def foldable(model: nn.Module) -> dict[nn.Module, tuple[Place, NormInfo]]:
    """Batch and instance norms, and all else that has running statistics; without a `kind` if it is not understood."""
    known = {place.module: info for place, info in norms(model)}
    found: dict[nn.Module, tuple[Place, NormInfo]] = {}
    for place in module_places(model):
        module = place.module
        info = known.get(module, NormInfo())
        if not info.kind and not isinstance(module, _NormBase) and has_statistics(module):
            info = _as_batch_norm(module, info)
            found[module] = (place, info)
        elif isinstance(module, _NormBase) or info.may_keep_statistics:
            found[module] = (place, info)
    return found


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps a running mean and variance under the names that batch norm has for them."""
    own = {**module._parameters, **module._buffers}
    return isinstance(own.get("running_mean"), Tensor) and isinstance(own.get("running_var"), Tensor)


def _as_batch_norm(module: Any, info: NormInfo) -> NormInfo:
    """A norm of another library, taken for a batch norm; the check of the pair that it is in is its proof."""
    eps = getattr(module, "eps", None)
    if not isinstance(eps, float):
        eps = _eps(module)
    if eps is None:
        name = type(module).__name__
        return replace(info, reason=f"{name} has running statistics, and computes something else than batch norm")
    return replace(info, kind="batch_norm", running=True, eps=eps)


def _eps(module: nn.Module) -> float | None:
    """The eps of a norm without such an attribute, from its output: at a variance of 0, 1 becomes 1 / sqrt(eps)."""
    for positions in SHAPES:
        try:
            norm: Any = copy.deepcopy(module).double().eval()
            y = _of_ones(norm, positions)
        except Exception:  # whatever a foreign forward makes of it
            continue
        if bool((y == y.flatten()[0]).all()):
            eps = float(y.flatten()[0]) ** -2
            return eps if 0 < eps < 1 else None
    return None


@torch.no_grad()
def _of_ones(norm: Any, positions: tuple[int, ...]) -> Tensor:
    for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 0.0}.items():
        if isinstance(getattr(norm, name, None), Tensor):
            getattr(norm, name).fill_(value)
    y: Tensor = norm(torch.ones(2, len(norm.running_var), *positions).to(norm.running_var))
    return y
