"""Carries out calls in Triton; this module implements `normkit.kernels.backend.Kernels`.

Besides launches, a call without a mask only allocates: so it can be written down, and repeated without Python.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from normkit.kernels.backend import Mask, Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import NUMBERS, Arguments, Gradients
from normkit.kernels.triton import device, gradients, tune
from normkit.kernels.triton.arguments import Along, BackwardFlags, ForwardFlags
from normkit.kernels.triton.code import forward
from normkit.kernels.triton.code import weight as weights
from normkit.kernels.triton.device import aligned, check_length, empty
from normkit.kernels.triton.inputs import MaskArguments, mask_arguments, merging, or_none
from normkit.kernels.triton.passes import Gaps
from normkit.kernels.triton.quantized import quantize as quantize
from normkit.kernels.triton.schedule import Schedule, schedule

RUNNING = 256
"""Channels whose running statistics one program updates, two for each thread. A guess that no GPU has measured."""

reads_half = True
slabs_in_regions = False

_numbers = itertools.count()
_plans: dict[int, tuple[tuple[int, int, int, int], int, int, int, Gaps]] = {}
"""By number. `normkit.kernels.layout` keeps a few thousand plans at most, then calls `forget`."""
_schedules: dict[tuple[int, int], Schedule] = {}
"""By the numbers of plans and the sizes of elements."""


def plan(
    k0: int, r0: int, k1: int, r1: int, period: int, inner: int, columns: int,
    slabs: int, group: int, pitch: int, outer: int, /,
) -> int:  # fmt: skip
    """Keep a plan, and return the number it is called by."""
    number = next(_numbers)
    _plans[number] = (k0, r0, k1, r1), period, inner, slabs, Gaps(group, pitch, outer)
    return number


def forget(plan: int, /) -> None:
    if _plans.pop(plan, None) is not None:
        for itemsize in (2, 4, 8):
            _schedules.pop((plan, itemsize), None)


def schedule_of(plan: int, x: Tensor) -> Schedule:
    """The schedule of a plan for the dtype of x; tuned, if that is turned on and the plan is new."""
    key = plan, x.element_size()
    s = _schedules.get(key)
    if s is None:
        view, period, inner, slabs, gaps = _plans[plan]
        numbers = view, period, inner, x.element_size(), slabs, gaps
        s = tune.tuned(numbers, device.name(), _milliseconds) if tune.is_on() else schedule(*numbers)
        _schedules[key] = s
    return s


def _milliseconds(s: Schedule, itemsize: int) -> float:
    """Of a forward and a backward call."""
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
    where = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    x, ones = torch.randn(s.numel, device=where).to(dtype), torch.ones(s.weights, device=where)
    s = s.dense
    number = plan(*s.view, s.index.period, s.index.inner, 0, s.slabs, *s.gaps)
    _schedules[number, itemsize] = s
    a = Arguments(x, ones, ones, "", 1e-5, True)

    def both() -> None:
        _, _, mean, std = norm(a, number, None, a.eps, None, True)
        assert std is not None
        norm_backward(x, a._replace(mean=mean), number, std, a.eps, None, False, Want(True, True, True, False, False))

    time = float(_bench(both))
    forget(number)
    return time


def _bench(call: Callable[[], None]) -> Any:
    return triton.testing.do_bench(call, return_mode="median")


# Norms ----------------------------------------------------------------------------------------------------


def norm(
    a: Arguments, plan: int, std: Tensor | None, eps: float, mask: Mask | None, moments: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    weight, bias, center, mean, residual = a.weight, a.bias, a.center, a.mean, a.residual
    s, x = _source(plan, a.x)
    check_length(x, s.numel, "x")
    check_length(weight, s.weights, "weight")
    check_length(bias, s.weights, "bias")
    check_length(mean, s.cells, "mean")
    check_length(std, s.cells, "std")
    y = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    m = mask_arguments(mask, s)
    p, computed = s.forward if std is None else s.apply, moments and std is None
    mean_out = std_out = None
    if computed or p is None:
        mean_out, std_out = empty(x, s.cells) if center else None, empty(x, s.cells)
    given, source, added, kept = (or_none(mean), std), x, residual, total
    stored = (mean_out, std_out)
    if p is None:
        first_gate = a.gate if a.gate_first else None
        _store_moments(s, center, (x, residual, total, m.pointer, first_gate), m, NUMBERS[a.gate_activation], stored)
        p, given, stored = s.apply, stored, (None, None)
        if total is not None:
            p, source, added, kept = s.dense.apply, total, None, None  # the sum has been stored
    flags = ForwardFlags(
        int(p.walk), int(p.along), s.alike, m.indexing, NUMBERS[a.activation], center, std is not None, eps,
        NUMBERS[a.gate_activation], a.gate_first, a.zero_centered, a.cast_first,
    )  # fmt: skip
    device.launch(
        forward.normalize, p.grid, p.warps,
        (source, added, kept, m.pointer, a.gate, a.skip, *given, weight, bias, y, *stored),
        p.k1, p.axes, s.index, m.places, p.tile, flags,
    )  # fmt: skip
    if not computed:
        return y, total, None, None
    return y, total, empty(x, 0) if mean_out is None else mean_out, std_out


def _source(plan: int, x: Tensor) -> tuple[Schedule, Tensor]:
    """The schedule of a call and its x, in memory that is aligned."""
    s = schedule_of(plan, x)
    if s.gaps.group and x.data_ptr() % 16:
        return s.dense, torch.empty_like(x).copy_(x)
    return s, aligned(x)


def _store_moments(
    s: Schedule, center: bool, inputs: tuple[Tensor | None, ...], m: MaskArguments, gate: int,
    stored: tuple[Tensor | None, ...],
) -> None:  # fmt: skip
    """Mean and deviation of each cell, from those of its parts; `inputs` are x, residual, total, mask and gate."""
    p, x = s.parts, inputs[0]
    assert x is not None
    grid, columns, together, sets = merging(p, s.cells)
    parts = empty(x, 3, p.parts, s.cells * columns)
    device.launch(
        forward.part_moments, p.grid, p.warps, (*inputs, parts),
        p.k1, s.cells * columns, p.axes, m.places, p.tile, center, m.indexing, gate,
    )  # fmt: skip
    device.launch(forward.merge_moments, grid, 4, (parts, *stored), s.cells, p.parts, center, columns, together, sets)


def norm_backward(
    dy: Tensor, a: Arguments, plan: int, std: Tensor, eps: float, mask: Mask | None, fixed: bool, want: Want,
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
) -> Gradients:  # fmt: skip
    """The gradients; `dtypes` are those of the gradients of weight and bias, else the arithmetic one."""
    weight, center, mean, dsum = a.weight, a.center, a.mean, a.residual
    assert mean is not None
    s, x = _source(plan, a.x)
    check_length(dy, x.numel(), "dy")
    check_length(weight, s.weights, "weight")
    check_length(std, s.cells, "std")
    dy = aligned(dy)
    m = mask_arguments(mask, s)
    along = s.features if want.weight or want.bias else Along.NONE
    by_offset = along is Along.OFFSET
    along = Along.NONE if by_offset else along
    along_axis = along in (Along.R0, Along.R1)
    dweight, dbias = [
        torch.empty(s.weights, dtype=dtype or arithmetic_dtype(x.dtype), device=x.device) if wanted else None
        for wanted, dtype in zip((want.weight, want.bias), dtypes, strict=True)
    ]
    flags = BackwardFlags(
        int(along), not s.alike and along_axis and s.sets == 1, along_axis and s.sets > 1, want.weight, want.bias,
        int(Along.NONE), s.alike, m.indexing, NUMBERS[a.activation], center, fixed, eps,
        NUMBERS[a.gate_activation], a.gate_first, a.zero_centered,
    )  # fmt: skip
    dx, dgate, dskip = (torch.empty_like(x) if wanted else None for wanted in (want.x, want.gate, want.skip))
    counts = None if mask is None else mask.counts
    mean = or_none(mean) if center else None
    call = gradients.Call(
        s, dy, dsum, x, m, a.gate, a.skip, counts, mean, std, weight, a.bias, flags, fixed,
        dx, dgate, dskip, dweight, dbias,
    )  # fmt: skip
    gradients.launch(call, by_offset)
    return Gradients(dx, dweight, dbias, dgate, dskip)


def given(var: Tensor, eps: float, /) -> tuple[Tensor, float]:
    return var, eps


# Weights, running statistics ------------------------------------------------------------------------------


def weight_norm(v: Tensor, g: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
    """The weight, and the lengths that it was divided by."""
    s = schedule_of(plan, v)
    w, length = torch.empty_like(v), empty(v, s.cells)
    p = s.forward
    if p is None:
        q, p = s.parts, s.apply
        grid, columns, together, sets = merging(q, s.cells)
        parts = empty(v, 2, q.parts, s.cells * columns)
        device.launch(weights.part_lengths, q.grid, q.warps, (v, parts), q.k1, s.cells * columns, q.axes, q.tile)
        device.launch(weights.merge_lengths, grid, 4, (parts, length), s.cells, q.parts, columns, together, sets)
    device.launch(weights.weight_norm, p.grid, p.warps, (v, g, w, length), p.k1, p.axes, p.tile, int(p.walk))
    return w, length


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
    """The gradients of direction and length."""
    s = schedule_of(plan, v)
    dv, dg = torch.empty_like(v), empty(v, s.cells)
    p = s.forward
    if p is None:
        q, p = s.sums, s.apply
        grid, columns, together, sets = merging(q, s.cells)
        parts = empty(v, q.parts, s.cells * columns)
        device.launch(
            weights.part_along, q.grid, q.warps, (dw, v, length, parts), q.k1, s.cells * columns, q.axes, q.tile
        )
        device.launch(weights.merge_along, grid, 4, (parts, dg), s.cells, q.parts, columns, together, sets)
    pointers = (dw, v, g, length, dv, dg)
    device.launch(weights.weight_norm_backward, p.grid, p.warps, pointers, p.k1, p.axes, p.tile, int(p.walk))
    return dv, dg


def move_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, std: Tensor, count: int, momentum: float, /
) -> int:
    """Update running statistics; how many channels kept theirs is not known without waiting for the GPU: 0."""
    channels = running_mean.numel()
    wide = torch.float64 in (mean.dtype, running_mean.dtype)
    # Triton passes a number in fp32.
    rest = momentum - ctypes.c_float(momentum).value if wide else 0.0
    device.launch(
        forward.update_running, (-(-channels // RUNNING), 1, 1), 4, (running_mean, running_var, mean, std),
        channels, mean.numel() // channels, count, momentum, rest, RUNNING,
    )  # fmt: skip
    return 0
