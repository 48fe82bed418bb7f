"""Which norms of a model keep running statistics, and how a caller picks some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from normkit.errors import ArgumentError, nearest

M = TypeVar("M", bound=nn.Module)

Where = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Names or patterns of names (``layer1.*``), or a function of name and module that says yes; None for all."""


def bare(model: nn.Module) -> nn.Module:
    """The model without the wrappers that keep a graph or exchange buffers, for which ranks would have to keep step."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def keeps_statistics(module: nn.Module) -> bool:
    """Whether this is a batch or instance norm, torch's or a subclass of it, that has running statistics."""
    return isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None


def statistics_of(norm: _NormBase) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a norm that keeps them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def norms_of(model: nn.Module) -> dict[str, _NormBase]:
    """Each batch and instance norm once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _NormBase)}


def chosen(model: nn.Module, norms: Mapping[str, M], where: Where) -> dict[str, M]:
    """Those of the norms that `where` picks; a shared one answers to each of its names.

    Raises:
        ArgumentError: a pattern that fits none of them.
    """
    if where is None:
        return dict(norms)
    if callable(where):
        return {name: norm for name, norm in norms.items() if where(name, norm)}
    patterns = [where] if isinstance(where, str) else list(where)
    wanted = {id(norm) for norm in norms.values()}
    names = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if id(m) in wanted]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in names):
            raise ArgumentError(
                f"where must name norms of the model, got {pattern!r}, which fits none of its {len(norms)}: "
                f"{nearest(pattern, norms)}"
            )
    picked = {id(m) for n, m in names if any(fnmatchcase(n, pattern) for pattern in patterns)}
    return {name: norm for name, norm in norms.items() if id(norm) in picked}
