"""The fast path of eager calls on a CPU, if it was built for the installed torch; without it results are the same.

`norm` and `weight_norm` carry out a whole call in C++ (csrc/fastpath/), gradients included. They return None to a call
that is not plain, wrong, or the first of its shape. Python then takes the call, raises the errors, and makes the plan
known by `cache_plan` for the next one.
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
        module = import_module("normkit._fastpath")
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

norm: Callable[..., Any] = (lambda *_: None) if _module is None else _module.norm
"""norm(spec, pattern, x, weight, bias, eps, fused, size, statistics): see `carry_out` in functional/call/spec.py

Running statistics are updated, unless activation checkpointing computes the call again. Returns the output of the
function.
"""
weight_norm: Callable[..., Tensor | None] = (lambda *_: None) if _module is None else _module.weight_norm
"""weight_norm(v, g, pattern)"""

skipped: Callable[[], int] = (lambda: 0) if _module is None else _module.skipped
"""Channels that have kept their running statistics so far, because a batch's moments were not finite."""


def cache_plan(pattern: str, shape: torch.Size, strides: tuple[int, ...], plan: int) -> bool:
    """Let the fast path take such calls, after one has passed all checks; True if it has given up all other plans."""
    global _connected
    if _module is None or plan < 0:
        return False
    if not _connected:
        _connected = _module.connect(str(native_path()))
    return bool(_module.cache_plan(pattern, shape, strides, plan))
