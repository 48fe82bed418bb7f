"""The compiled CPU kernels: loads them once, or says why it cannot."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit import settings
from normkit.kernels.backend import Kernels, Mask, Want
from normkit.kernels.formula import NUMBERS, Arguments, Gradients

_FOLDER = Path(__file__).resolve().parent.parent


class CompiledKernels:
    """The operators of csrc/ops.cpp as `Kernels`. A call that only normalizes has operators of few arguments."""

    reads_half = True
    slabs_in_regions = True

    def __init__(self, operators: Any) -> None:
        self.plan = operators.plan.default
        self.forget = operators.forget.default
        self.root = operators.root.default
        self.move_running = operators.move_running.default
        self.weight_norm = operators.weight_norm.default
        self.weight_norm_backward = operators.weight_norm_backward.default
        self.normalize = operators.normalize.default
        self.infer = operators.infer.default
        self.standardize = operators.standardize.default
        self.backward = operators.backward.default
        self.fused = operators.fused.default
        self.fused_backward = operators.fused_backward.default

    def norm(
        self, a: Arguments, plan: int, std: Tensor | None, eps: float, mask: Mask | None, moments: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        x, weight, bias, flags = a.x, a.weight, a.bias, _flags(a)
        if mask is not None or a.is_fused():
            gates = (a.gate, a.skip, NUMBERS[a.gate_activation], a.gate_first)
            rest = (a.mean, std, weight, bias, plan, eps, flags, NUMBERS[a.activation], *gates)
            y, total, own_mean, own_std = self.fused(x, a.residual, *_flat(mask), *rest)
            total = None if a.residual is None else total
            return (y, total, own_mean, own_std) if std is None else (y, total, None, None)
        if std is not None:
            return self.standardize(x, a.mean, std, weight, bias, plan, eps, flags), None, None, None
        if not moments:
            return self.infer(x, weight, bias, plan, eps, flags), None, None, None
        y, own_mean, own_std = self.normalize(x, weight, bias, plan, eps, flags)
        return y, None, own_mean, own_std

    def given(self, var: Tensor, eps: float, /) -> tuple[Tensor, float]:
        return self.root(var, eps), 0.0

    def norm_backward(
        self, dy: Tensor, a: Arguments, plan: int, std: Tensor, eps: float, mask: Mask | None, fixed: bool, want: Want
    ) -> Gradients:
        x, weight, flags = a.x, a.weight, _flags(a)
        if mask is None and not a.is_fused():
            return Gradients(*self.backward(dy, x, a.mean, std, weight, plan, eps, flags, fixed, *want[:3]))
        options = (plan, eps, flags, fixed, NUMBERS[a.activation], want.weight, want.bias)
        gates = (a.gate, a.skip, NUMBERS[a.gate_activation], a.gate_first, want.x, want.gate, want.skip)
        rest = (a.mean, std, weight, a.bias, *options, *gates)
        return Gradients(*self.fused_backward(dy, a.residual, x, *_flat(mask), *rest))

    def quantize(self, *_: object) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        return None


def _flags(a: Arguments) -> int:
    return a.center | a.zero_centered << 1 | a.cast_first << 2


def _flat(mask: Mask | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    return (None, None, 1, 1) if mask is None else mask


class Native(NamedTuple):
    """The kernels of a device if they are in use, and why or why not."""

    kernels: Kernels | None
    reason: str


def unavailable(where: str, reason: str, remedy: str) -> Native:
    """No kernels, and a warning that says so."""
    warnings.warn(
        f"normkit runs on plain torch{where}, which is right but slower ({reason}). "
        f"Remedy: {remedy}; normkit.show_backends() tells more.",
        RuntimeWarning,
        stacklevel=4,
    )
    return Native(None, reason)


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
        reason = f"no compiled kernels in {_FOLDER}: it was installed from source without a C++ compiler"
    else:
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            reason = f"{library.name} cannot be loaded into torch {torch.__version__}: {error}"
        else:
            operators = torch.ops.normkit_native
            return Native(CompiledKernels(operators), f"{operators.isa()} kernels from {library.name}")
    return unavailable("", reason, "install g++ and reinstall normkit, or install its wheel")
