"""The compiled CPU kernels: loads them once, or says why it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from normkit import settings

_FOLDER = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Kernels:
    """The compiled operators; their schemas are in csrc/ops.cpp, those of GPUs are the same."""

    plan: Callable[..., int]
    normalize: Callable[..., tuple[Tensor, Tensor, Tensor]]
    infer: Callable[..., Tensor]
    standardize: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    fused: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    fused_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    move_running: Callable[..., int]
    weight_norm: Callable[..., tuple[Tensor, Tensor]]
    weight_norm_backward: Callable[..., tuple[Tensor, Tensor]]
    quantize: Callable[..., tuple[Tensor, Tensor] | None] | None = None
    root: Callable[[Tensor, float], Tensor] | None = None


@dataclass(frozen=True)
class Native:
    """The compiled kernels if they are in use, and why or why not."""

    kernels: Kernels | None
    reason: str


def native_path() -> Path | None:
    """Where the compiled kernels are."""
    return next(iter(sorted(_FOLDER.glob("_native*"))), None)


@cache
def native() -> Native:
    """Load the compiled kernels; the first call that cannot gives one warning.

    ``NORMKIT_NATIVE=0`` in the environment turns them off without a warning.
    """
    if settings.NATIVE.turned_off:
        return Native(None, settings.NATIVE.turned_off)
    library = native_path()
    if library is None:
        reason = f"no compiled kernels in {_FOLDER}: the package was installed without a C++ compiler"
    else:
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            reason = f"{library.name} cannot be loaded into torch {torch.__version__}: {error}"
        else:
            ops = torch.ops.normkit_native
            names = [field.name for field in fields(Kernels) if hasattr(ops, field.name)]
            kernels = Kernels(**{name: getattr(ops, name).default for name in names})
            return Native(kernels, f"{ops.isa()} kernels from {library.name}")
    warnings.warn(
        f"normkit runs on plain torch, which is right but slower ({reason}). "
        "Remedy: install g++ and reinstall normkit; normkit.show_backends() tells more.",
        RuntimeWarning,
        stacklevel=3,
    )
    return Native(None, reason)
