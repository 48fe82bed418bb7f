"""What the code that Inductor generates calls in place of the operators: one call, bound to its plan.

Inductor keeps generated code on disk, so such code may be older than this file. Arguments are added at the end, with
defaults; what changes its meaning gets another name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Facts(NamedTuple):
    """What is known of a call when its graph is compiled; the arguments of `forward` and `backward`.

    Forward, `want` is 0 if the moments need not be returned; backward it has a bit for each gradient.
    """

    settings: Settings
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    varying: Any
    fixed: bool
    want: int


def forward(*facts: Any) -> Bound:
    """A function of (x, weight, bias, mean, var, residual, gate, skip) that returns what ``normkit::norm`` does."""
    call = Facts(*facts)

    def by_operator(*tensors: Any) -> tuple[Any, ...]:
        out: tuple[Any, ...] = torch.ops.normkit.norm.default(*_arguments(call.settings, *tensors))
        return out

    return _bound("bind_forward", call, by_operator)


def backward(*facts: Any) -> Bound:
    """A function of (dy, x, weight, bias, mean, std or var, dsum, gate, skip), as ``normkit::norm_backward``."""
    call = Facts(*facts)
    wanted = [bool(call.want >> i & 1) for i in range(5)]

    def by_operator(dy: Any, *tensors: Any) -> tuple[Any, ...]:
        a = _arguments(call.settings, *tensors)
        out: tuple[Any, ...] = torch.ops.normkit.norm_backward.default(dy, *a, call.fixed, *wanted)
        return out

    return _bound("bind_backward", call, by_operator)


def _arguments(
    settings: Settings, x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any, gate: Any, skip: Any
) -> Arguments:
    pattern, eps, center, activation, gate_activation, *rest = settings
    return Arguments(
        x, weight, bias, pattern, eps, center, mean, var, residual, None, activation, gate, skip, gate_activation, *rest
    )


def _bound(bind: str, call: Facts, by_operator: Bound) -> Bound:
    """The call in C++; `by_operator` without the fast path, the kernels, or a plan for tensors as they are."""
    if not fastpath.in_use or native().kernels is None:
        return by_operator
    pattern, eps, center, activation, gate_activation, gate_first, zero_centered, cast_first = call.settings
    plan, _ = direct_plan(pattern, torch.Size(call.shape), call.strides, call.varying, "cpu")
    flags = center | zero_centered << 1 | cast_first << 2
    numbers = (NUMBERS[activation], NUMBERS[gate_activation], gate_first, call.fixed, call.want)
    facts = (plan, call.shape, call.strides, getattr(torch, call.dtype), eps, flags, *numbers)
    return getattr(fastpath, bind)(*facts, by_operator) or by_operator
