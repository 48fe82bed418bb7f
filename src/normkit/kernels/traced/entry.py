"""What the code that Inductor generates calls in place of the operators: one call, bound to its plan.

Inductor keeps generated code on disk, so such code may be older than this file. Arguments are added at the end, with
defaults; what changes its meaning gets another name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from normkit.kernels import fastpath
from normkit.kernels.formula import NUMBERS, Arguments
from normkit.kernels.layout import direct_plan
from normkit.kernels.native import native

Bound = Callable[..., tuple[Any, ...]]
Settings = tuple[str, float, bool, str, str, bool, bool, bool]
"""pattern, eps, center, activation, gate_activation, gate_first, zero_centered, cast_first"""


def settings_of(a: Arguments) -> Settings:
    """The arguments of a call that are no tensors."""
    gate = (a.gate_activation, a.gate_first)
    return (a.pattern, a.eps, a.center, a.activation, *gate, a.zero_centered, a.cast_first)


def forward(
    settings: Settings,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    varying: Any,
    fixed: bool,
    want: int,
) -> Bound:
    """A function of (x, weight, bias, mean, var, residual, gate, skip) that returns what ``normkit::norm`` does.

    With `want` 0 it need not return the moments.
    """

    def by_operator(
        x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any, gate: Any, skip: Any
    ) -> tuple[Any, ...]:
        a = _arguments(settings, x, weight, bias, mean, var, residual, gate, skip)
        out: tuple[Any, ...] = torch.ops.normkit.norm.default(*a)
        return out

    return _bound("bind_forward", settings, shape, strides, dtype, varying, fixed, want, by_operator)


def backward(
    settings: Settings,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    varying: Any,
    fixed: bool,
    want: int,
) -> Bound:
    """A function of (dy, x, weight, bias, mean, std or var, dsum, gate, skip), as ``normkit::norm_backward``.

    `want` has a bit for each gradient.
    """
    wanted = [bool(want >> i & 1) for i in range(5)]

    def by_operator(
        dy: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, dsum: Any, gate: Any, skip: Any
    ) -> tuple[Any, ...]:
        a = _arguments(settings, x, weight, bias, mean, var, dsum, gate, skip)
        out: tuple[Any, ...] = torch.ops.normkit.norm_backward.default(dy, *a, fixed, *wanted)
        return out

    return _bound("bind_backward", settings, shape, strides, dtype, varying, fixed, want, by_operator)


def _arguments(
    settings: Settings, x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any, gate: Any, skip: Any
) -> Arguments:
    pattern, eps, center, activation, gate_activation, *rest = settings
    return Arguments(
        x, weight, bias, pattern, eps, center, mean, var, residual, None, activation, gate, skip, gate_activation, *rest
    )


def _bound(
    bind: str,
    settings: Settings,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    varying: Any,
    fixed: bool,
    want: int,
    by_operator: Bound,
) -> Bound:
    """The call in C++; `by_operator` without the fast path, the kernels, or a plan for tensors as they are."""
    if not fastpath.in_use or native().kernels is None:
        return by_operator
    pattern, eps, center, activation, gate_activation, gate_first, zero_centered, cast_first = settings
    plan, _ = direct_plan(pattern, torch.Size(shape), strides, varying, "cpu")
    flags = center | zero_centered << 1 | cast_first << 2
    numbers = (NUMBERS[activation], NUMBERS[gate_activation], gate_first, fixed, want)
    facts = (plan, shape, strides, getattr(torch, dtype), eps, flags, *numbers)
    return getattr(fastpath, bind)(*facts, by_operator) or by_operator
