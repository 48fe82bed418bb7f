"""The fast path of eager calls on a CPU, if it was built for the installed torch; without it results are the same.

`normalize`, `standardize`, `fused` and `weight_norm` do a whole call, gradients included, in C++ (csrc/door.cpp). They
return None wherever something is not plain, new or wrong: the caller then takes the Python path, which says what is
wrong, and after which `learn` keeps the plan for the next call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from normkit import settings
from normkit.kernels.native import native_path


def _load() -> tuple[Any, str]:
    if settings.FASTPATH.turned_off:
        return None, settings.FASTPATH.turned_off
    try:
        module = import_module("normkit._door")
    except ModuleNotFoundError:
        return None, "not built, or not for this Python"
    except ImportError:  # symbols that this torch does not have
        return None, "built for another torch"
    installed = f"{torch.__version__} {torch.version.git_version}"
    if module.torch_version != installed:
        return None, f"built for torch {module.torch_version}, not for {installed}"
    return module, f"built for torch {installed}"


_module, reason = _load()
in_use = _module is not None
_connected = False


def _nothing(*_: object) -> None:
    return None


normalize: Callable[..., Tensor | None] = _nothing if _module is None else _module.normalize
"""normalize(x, weight, bias, pattern, eps, center, last, running_mean, running_var, momentum)

`last` is the shape that x must end with and parameters must have; None where these belong to dimension 1, True where
the caller has checked them. Running statistics are moved, unless activation checkpointing computes the call again.
"""
standardize: Callable[..., Tensor | None] = _nothing if _module is None else _module.standardize
"""standardize(x, weight, bias, pattern, eps, running_mean, running_var), all but x for dimension 1"""

fused: Callable[..., Any] = _nothing if _module is None else _module.fused
"""fused(x, weight, bias, pattern, eps, center, last, running_mean, running_var, momentum, extras)

As `normalize`, with the keyword arguments of a call that fuses more; without a momentum x is standardized by the
running statistics. What comes back is what the caller of the function wants: y, or with return_residual a pair.
"""

weight_norm: Callable[..., Tensor | None] = _nothing if _module is None else _module.weight_norm
"""weight_norm(v, g, pattern)"""

skipped: Callable[[], int] = (lambda: 0) if _module is None else _module.skipped
"""Channels that have kept their running statistics so far, because a batch's moments were not finite."""


def learn(pattern: str, shape: torch.Size, strides: tuple[int, ...], plan: int) -> bool:
    """Let the fast path carry out such calls, after one has passed all checks; True if it has forgotten all others."""
    global _connected
    if _module is None or plan < 0:
        return False
    if not _connected:
        _connected = _module.connect(str(native_path()))
    return bool(_module.learn(pattern, shape, strides, plan))
