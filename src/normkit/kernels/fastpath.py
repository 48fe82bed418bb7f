"""The fast path of eager calls, if it was built for the installed torch; without it results are the same.

`normkit.build` builds it where it was not installed with normkit, and finds it.

`norm` and `weight_norm` carry out a whole call in C++ (csrc/fastpath/), gradients included. They return None to a call
that is not plain, wrong, or the first of its shape. Python then takes the call, raises the errors, and makes the plan
known by `cache_plan` for the next one, or by `cache_gpu_plan` after `connect_gpu`: kernels/triton/recipes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from normkit import build, settings
from normkit.kernels.native import native_path


def _load() -> tuple[Any, str]:
    if settings.FASTPATH.turned_off:
        return None, settings.FASTPATH.turned_off
    module, reason = build.find()
    if module is not None:
        module.ignore_mode(DeviceContext)
    return module, reason


_module, reason = _load()
in_use = _module is not None
_connected = False


def _function(name: str, without: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the module; without the module, `without`."""
    return without if _module is None else getattr(_module, name)


norm: Callable[..., Any] = _function("norm", lambda *_: None)
"""norm(spec, pattern, x, weight, bias, eps, fused, size, statistics): see `carry_out` in functional/call/spec.py

Running statistics are updated, unless activation checkpointing computes the call again. Returns the output of the
function.
"""
weight_norm: Callable[..., Tensor | None] = _function("weight_norm", lambda *_: None)
"""weight_norm(v, g, pattern)"""

bind_forward: Callable[..., Callable[..., Any] | None] = _function("bind_forward", lambda *_: None)
"""bind_forward(plan, sizes, strides, dtype, eps, flags, activation, gate_activation, gate_first, fixed, want, fallback)

A call in a graph of torch.compile without its tensors: kernels/traced/entry.py. None if the plan is not known.
"""
bind_backward: Callable[..., Callable[..., Any] | None] = _function("bind_backward", lambda *_: None)
"""bind_backward(arguments of `bind_forward`): the same for a backward pass"""

skipped: Callable[[], int] = _function("skipped", lambda: 0)
"""Channels that have kept their running statistics so far, because a batch's moments were not finite."""

connect_gpu: Callable[[str, str, str], bool] = _function("connect_gpu", lambda *_: False)
"""connect_gpu(driver, runtime, device type): whether calls on the GPU can be carried out from now on

`driver` and `runtime` are the paths of loaded libraries: the GPU's driver, and torch's library that knows the streams.
"""
cache_gpu_plan: Callable[..., bool] = _function("cache_gpu_plan", lambda *_: False)
"""cache_gpu_plan(arguments of `cache_plan`, the numbers of the plan): the same on a GPU"""
forget_gpu_plans: Callable[[], None] = _function("forget_gpu_plans", lambda: None)
"""Give up what `cache_gpu_plan` has made known."""
known_recipes: Callable[[], int] = _function("known_recipes", lambda: 0)
"""The number of calls on a GPU whose recipe is known, or which are known to stay with Python."""


def loaded_library(*names: str) -> str | None:
    """The path of a library that this process has loaded, by the start of its name."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "/" in line}
    except OSError:
        return None
    return next((path for path in sorted(paths) if Path(path).name.startswith(names)), None)


def cache_plan(
    pattern: str, shape: torch.Size, strides: tuple[int, ...], varying: int, over_features: bool, plan: int
) -> bool:
    """Let the fast path take such calls, after one has passed all checks; True if it has given up all other plans.

    `varying` has the dimensions over which weight and bias vary, as bits; `over_features`, whether the region says so.
    """
    global _connected
    if _module is None or plan < 0:
        return False
    if not _connected:
        _connected = _module.connect(str(native_path()))
    return bool(_module.cache_plan(pattern, shape, strides, varying, over_features, plan))
