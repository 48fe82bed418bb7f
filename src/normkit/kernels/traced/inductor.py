"""Connects normkit with Inductor, when a graph for a CPU is traced that has an operator of normkit's."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_connected = False


def connect(x: Tensor) -> None:
    """Register the passes, if Dynamo traces this call for Inductor; the first time only.

    Nothing of the user's is replaced: the pass on graphs is one more pattern of Inductor's own, and the operators had
    no lowering before. Where a version of torch has neither, graphs call the operators as they are.
    """
    global _connected
    if _connected or "torch._inductor" not in sys.modules or x.device.type != "cpu":
        return
    if torch._guards.TracingContext.try_get() is None or torch.compiler.is_exporting():
        return
    _connected = True
    with _disable_current_modes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Inductor imports
        for name in ("fusion", "lowering"):
            _register(name)


def _register(name: str) -> None:
    try:
        import_module(f"normkit.kernels.traced.{name}").register()
    except (ImportError, AttributeError, TypeError):
        return
