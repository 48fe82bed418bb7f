"""The short way in for eager calls, in C++: loaded if built for exactly this torch; else Python does the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from normkit.kernels.native import native, native_path


@dataclass(frozen=True)
class Door:
    """The functions of csrc/door.cpp; each gives None where the longer way has to be taken."""

    normalize: Callable[..., Tensor | None]
    standardize: Callable[..., Tensor | None]


@cache
def door() -> Door | None:
    """Load it once. ``NORMKIT_DOOR=0`` in the environment turns it off."""
    if os.environ.get("NORMKIT_DOOR") == "0" or native().kernels is None:
        return None
    try:
        module = import_module("normkit._door")
    except ImportError:
        return None
    built_for = str(module.torch_version).partition("+")[0]
    if built_for != torch.__version__.partition("+")[0] or not module.connect(str(native_path())):
        return None
    return Door(module.normalize, module.standardize)
