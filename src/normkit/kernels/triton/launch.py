"""Launches the kernels; this module implements `normkit.kernels.backend.Kernels`."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normkit.errors import ShapeError
from normkit.kernels.backend import Mask, QuantizeCall, Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import NUMBERS, Arguments
from normkit.kernels.triton import backward as back
from normkit.kernels.triton import forward as forth
from normkit.kernels.triton import tune
from normkit.kernels.triton import weight as lengths
from normkit.kernels.triton.schedule import WHOLE, Features, Schedule, Walk, schedule

Pointers = tuple[Tensor | None, ...]
_schedules: dict[int, Schedule] = {}
_numbers = itertools.count()

FAR = 2**31
"""From so many elements on, offsets have 64 bits."""
FEATURE_TILE, OTHER_TILE = 32, 64
"""Of `feature_sums`: features, and elements of each."""
FEATURE_SHARE = 8192
"""Elements of each feature that one program adds up."""
MOST_FORMS = 4096
"""How many compiled forms are remembered by their numbers."""
RUNNING = 256
"""Channels whose running statistics one program moves."""


def plan(k0: int, r0: int, k1: int, r1: int, period: int, inner: int, columns: int, /) -> int:
    """Make a schedule, and the number it is called by."""
    numbers = ((k0, r0, k1, r1), period, inner)
    return _added(tune.tuned(numbers, _place(), _milliseconds) if tune.is_on() else schedule(*numbers))


def _added(s: Schedule) -> int:
    number = next(_numbers)
    _schedules[number] = s
    return number


def forget(plan: int, /) -> None:
    _schedules.pop(plan, None)


def _place() -> str:
    """The GPU in use and the compiler, which a tuned schedule is for."""
    module = torch.get_device_module()
    name = module.get_device_name() if torch.accelerator.is_available() else "interpreter"
    return f"{name}, triton {triton.__version__}"


def _milliseconds(s: Schedule) -> float:
    """Of a forward and a backward call in fp32."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    x, weight = torch.randn(s.numel, device=device), torch.ones(s.period, device=device)
    number = _added(s)
    a = Arguments(x, weight, weight, "", 1e-5, True)

    def both() -> None:
        _, _, mean, std = norm(a, number, None, a.eps, None, True)
        assert std is not None
        norm_backward(x, a._replace(mean=mean), number, std, a.eps, None, False, Want(True, True, True))

    time = float(_bench(both))
    forget(number)
    return time


def _bench(call: Callable[[], None]) -> Any:
    return triton.testing.do_bench(call, return_mode="median")


# Launching ------------------------------------------------------------------------------------------------

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, int, int], warps: int, pointers: Pointers, *rest: Any) -> None:
    """Run a kernel: `rest` are its numbers and constants.

    Triton works out on every call which of its compiled forms serves; that takes longer than a small kernel. Where
    all pointers are aligned it follows from the numbers, constants and dtypes, so the form is kept under these.
    """
    if not isinstance(kernel, triton.JITFunction):
        kernel[grid](*pointers, *rest, num_warps=warps)
        return
    device = next(p for p in pointers if p is not None).device
    with _on(device):
        if any(p is not None and p.data_ptr() % 16 for p in pointers):
            kernel[grid](*pointers, *rest, num_warps=warps)
            return
        dtypes = tuple([None if p is None else p.dtype for p in pointers])
        key = (kernel, device.index, warps, dtypes, rest)
        form = _compiled.get(key)
        if form is None:
            if len(_compiled) >= MOST_FORMS:
                _compiled.clear()  # Triton keeps the code
            _compiled[key] = kernel[grid](*pointers, *rest, num_warps=warps)
        else:
            form[grid](*pointers, *rest)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.index == torch.accelerator.current_device_index():
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device)  # type: ignore[no-any-return]


@cache
def _units(device: torch.device) -> int:
    """How many programs the device works on at once; in the interpreter few, so that loops over blocks are tried."""
    if device.type == "cpu":
        return 3
    properties = torch.get_device_module(device).get_device_properties(device)
    return 4 * int(getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 64))


def _float(x: Tensor) -> Any:
    return tl.float64 if x.dtype is torch.float64 else tl.float32


def _aligned(t: Tensor) -> Tensor:
    """Kernels read wide where memory is aligned, and add in another order where it is not; bits are to be the same."""
    return t.clone() if t.data_ptr() % 16 else t


def _fresh(x: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=arithmetic_dtype(x.dtype), device=x.device)


def _check(t: Tensor | None, length: int, name: str) -> None:
    if t is not None and t.numel() != length:
        raise ShapeError(f"normkit: {name} must have {length} elements for this region, got {t.numel()}")


def _or_none(t: Tensor | None) -> Tensor | None:
    return None if t is None or t.numel() == 0 else t


class _Mask:
    """A mask's pointer, numbers and way of being looked up."""

    def __init__(self, given: Mask | None, s: Schedule) -> None:
        mask, _, channels, inner = given or (None, None, 1, 1)
        self.pointer = None if mask is None else mask.view(torch.uint8)
        found = None if mask is None else s.mask(channels, inner)
        self.numbers = (*(found or (1, 0, 1, 0, 0, 0)), channels, inner)
        self.kind = 0 if mask is None else 2 if found is None else 1


# The calls ------------------------------------------------------------------------------------------------


def norm(
    a: Arguments, plan: int, std: Tensor | None, eps: float, mask: Mask | None, moments: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    x, weight, bias, _, _, center, mean, _, residual, _, name = a
    activation = NUMBERS[name]
    s = _schedules[plan]
    _check(x, s.numel, "x")
    _check(weight, s.period, "weight")
    _check(bias, s.period, "bias")
    _check(mean, s.cells, "mean")
    _check(std, s.cells, "std")
    x = _aligned(x)
    given = std is not None
    total = None if residual is None else torch.empty_like(x)
    y = torch.empty_like(x)
    own = moments and not given
    own_mean, own_std = _fresh(x, s.cells if own and center else 0), _fresh(x, s.cells if own else 0)
    m = _Mask(mask, s)
    big, f = s.numel >= FAR, _float(x)
    walk = Walk.GIVEN if given else s.walk
    axes = (s.k, s.c, s.r0, s.r1, s.cells, s.sk0, s.sk, s.sr0, s.p0, s.p1, s.s1, s.cdiv, s.cmod, s.cmult)
    tile = (s.bk, s.bc, s.br0, s.br1)
    grid = (s.blocks, s.parts, 1)
    parts = None
    if walk is Walk.PARTS:
        parts = _fresh(x, 3, s.parts, s.cells)
        pointers: Pointers = (x, residual, total, m.pointer, parts)
        launch(forth.part_moments, grid, s.warps, pointers, *axes, *m.numbers, center, m.kind, *tile, big, f)
    # The sum has been made by then.
    source, added = (total, None) if parts is not None and total is not None else (x, residual)
    moments_out = (_or_none(own_mean), _or_none(own_std))
    kept = None if parts is not None else total
    pointers = (source, added, kept, m.pointer, _or_none(mean), std, weight, bias, parts, y, *moments_out)
    launch(
        forth.normalize, grid, s.warps, pointers, *axes, s.rmult, s.period, s.inner, *m.numbers,
        eps, center, activation, int(walk), int(s.along), m.kind, *tile, _parts(s), big, f,
    )  # fmt: skip
    return (y, total, own_mean, own_std) if own else (y, total, None, None)


def _parts(s: Schedule) -> int:
    return 1 << (s.parts - 1).bit_length()


def norm_backward(
    dy: Tensor, a: Arguments, plan: int, std: Tensor, eps: float, mask: Mask | None, fixed: bool, want: Want
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, _, _, center, mean, _, dsum, _, name = a
    want_x, want_weight, want_bias = want
    activation = NUMBERS[name]
    assert mean is not None
    s = _schedules[plan]
    _check(dy, x.numel(), "dy")
    _check(weight, s.period, "weight")
    _check(std, s.cells, "std")
    x, dy = _aligned(x), _aligned(dy)
    m = _Mask(mask, s)
    big, f = s.numel >= FAR, _float(x)
    center = center and mean.numel() > 0
    means = mean if center else None
    want_features = want_weight or want_bias
    kind = s.features if want_features and s.features is not Features.APART else Features.NONE
    per_cell = s.cmod > 1 and kind is not Features.CELL
    # Nothing has to be added up before dx where the moments are given and no feature is wanted.
    walk = Walk.GIVEN if fixed and kind is Features.NONE else s.walk
    programs = s.blocks
    if walk is Walk.WHOLE and kind in (Features.R0, Features.R1) and not per_cell:
        programs = min(programs, _units(x.device))
    features, reduce = _features(x, s, kind, per_cell, walk, programs)
    half = 0 if features is None else features.numel() // 2
    axes = (s.k, s.c, s.r0, s.r1, s.cells, s.columns, s.sk0, s.sk, s.sr0, s.p0, s.p1, s.s1)
    index = (s.cdiv, s.cmod, s.cmult, s.rmult, s.period, s.inner)
    tile = (s.bk, s.bc, s.br0, s.br1)
    sums = None
    if walk is Walk.PARTS:
        if kind is Features.CELL:
            sums = features
        elif not fixed:
            sums = _fresh(x, 2, s.parts, s.columns)
        pointers: Pointers = (dy, x, m.pointer, means, std, weight, bias, sums, features)
        launch(
            back.part_sums, (s.blocks, s.parts, 1), s.warps, pointers, *axes, *index, half, *m.numbers,
            eps, activation, int(kind), per_cell, int(s.along), m.kind, *tile, big, f,
        )  # fmt: skip
    dx = torch.empty_like(x) if want_x else None
    if want_x or walk in (Walk.WHOLE, Walk.TWICE):
        pointers = (
            dy,
            dsum,
            x,
            m.pointer,
            None if mask is None else mask.counts,
            means,
            std,
            weight,
            bias,
            sums,
            features,
            dx,
        )
        launch(
            back.input_gradient, (programs, s.parts, 1), s.warps, pointers, *axes, *index, half, s.blocks, *m.numbers,
            eps, center, fixed, activation, int(walk), int(kind), per_cell, int(s.along), m.kind, *tile,
            _parts(s), big, f,
        )  # fmt: skip
    if want_features and kind is Features.NONE:
        features = _features_apart(dy, x, m, means, std, weight, bias, s, eps, activation)
        reduce = (1,)
    none = _fresh(x, 0)
    if features is None:
        return none if dx is None else dx, none, none.clone()
    dweight, dbias = features.sum(reduce).view(2, -1).unbind()
    return none if dx is None else dx, dweight if want_weight else none, dbias if want_bias else none.clone()


def _features(
    x: Tensor, s: Schedule, kind: Features, per_cell: bool, walk: Walk, programs: int
) -> tuple[Tensor | None, tuple[int, ...]]:
    """Room for the sums over features, and which of its dimensions remain to be added up."""
    if kind is Features.NONE:
        return None, ()
    s0, s1 = (s.s0, s.s1) if walk is Walk.PARTS else (1, 1)
    size, rows = {Features.CELL: (1, s0 * s1), Features.R0: (s.r0, s1), Features.R1: (s.r1, s0)}[kind]
    if kind is not Features.CELL and not per_cell:
        return _fresh(x, 2, rows * programs, size), (1,)
    shared, own = (1, s.c) if s.along is Features.COLUMN else (s.c, size)
    return _fresh(x, 2, rows, s.cells // (s.cmod * s.cdiv), s.cmod, s.cdiv * shared, own), (1, 2, 4)


def _features_apart(
    dy: Tensor,
    x: Tensor,
    m: _Mask,
    mean: Tensor | None,
    std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    s: Schedule,
    eps: float,
    activation: int,
) -> Tensor:
    _, r0, k1, r1 = s.view
    others = math.prod(s.view) // s.period
    parts = max(1, min(256, -(-others // FEATURE_SHARE)))
    share = -(-others // parts)
    features = _fresh(x, 2, parts, s.period)
    launch(
        back.feature_sums, (-(-s.period // FEATURE_TILE), parts, 1), 4,
        (dy, x, m.pointer, mean, std, weight, bias, features),
        s.period, s.inner, others, share, r0 * k1 * r1, k1, r1, *m.numbers[-2:], features.numel() // 2,
        eps, activation, m.kind, FEATURE_TILE, OTHER_TILE, s.numel >= FAR, _float(x),
    )  # fmt: skip
    return features


def _weight_call(v: Tensor, number: int) -> tuple[Schedule, tuple[int, ...], tuple[Any, ...], tuple[int, int, int]]:
    s = _schedules[number]
    axes = (s.k, s.r0, s.r1, s.cells, s.sk0, s.sk, s.sr0, s.p0, s.p1, s.s1)
    return s, axes, (s.bk, s.br0, s.br1), (s.blocks, s.parts, 1)


def weight_norm(v: Tensor, g: Tensor, number: int, /) -> tuple[Tensor, Tensor]:
    """The weight, and the lengths that it was divided by."""
    s, axes, tile, grid = _weight_call(v, number)
    big, f = s.numel >= FAR, _float(v)
    w, length = torch.empty_like(v), _fresh(v, s.cells)
    parts = _fresh(v, 2, s.parts, s.cells) if s.walk is Walk.PARTS else None
    if parts is not None:
        launch(lengths.part_lengths, grid, s.warps, (v, parts), *axes, *tile, big, f)
    pointers = (v, g, parts, w, length)
    launch(lengths.weight_norm, grid, s.warps, pointers, *axes, int(s.walk), *tile, _parts(s), big, f)
    return w, length


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, number: int, /) -> tuple[Tensor, Tensor]:
    """The gradients of direction and length."""
    s, axes, tile, grid = _weight_call(v, number)
    big, f = s.numel >= FAR, _float(v)
    dv, dg = torch.empty_like(v), _fresh(v, s.cells)
    parts = _fresh(v, s.parts, s.cells) if s.walk is Walk.PARTS else None
    if parts is not None:
        launch(lengths.part_along, grid, s.warps, (dw, v, length, parts), *axes, *tile, big, f)
    pointers = (dw, v, g, length, parts, dv, dg)
    launch(lengths.weight_norm_backward, grid, s.warps, pointers, *axes, int(s.walk), *tile, _parts(s), big, f)
    return dv, dg


def root(var: Tensor, eps: float, /) -> Tensor:
    return (var + eps).sqrt()


def move_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, std: Tensor, count: int, momentum: float, /
) -> int:
    """Move running statistics, of fp32; how many channels kept theirs is not known without waiting for the GPU: 0."""
    channels = running_mean.numel()
    launch(
        forth.move_running, (-(-channels // RUNNING), 1, 1), 4, (running_mean, running_var, mean, std),
        channels, mean.numel() // channels, count / (count - 1), momentum, RUNNING,
    )  # fmt: skip
    return 0


def quantize(call: QuantizeCall, /) -> tuple[Tensor, Tensor] | None:
    """Rows in 8 bits and their scales; None for rows too long for a tile."""
    x, weight, bias, scale, eps, center, dtype = call
    length = x.shape[-1]
    if length > WHOLE:
        return None
    x = _aligned(x.contiguous())
    rows, tile = x.numel() // length, 1 << (length - 1).bit_length()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    own = torch.empty((*x.shape[:-1], 1), device=x.device) if scale is None else scale
    many = max(1, 1024 // tile)
    launch(
        forth.quantize, (-(-rows // many), 1, 1), max(1, min(16, many * tile // 512)),
        (x, weight, bias, scale, y, own), rows, length, eps, center, torch.finfo(dtype).max, many, tile,
        x.numel() >= FAR,
    )  # fmt: skip
    return y, own
