"""Launches the kernels; this module implements `normkit.kernels.backend.Kernels`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from normkit.kernels.backend import Mask, Want
from normkit.kernels.formula import NUMBERS, Arguments
from normkit.kernels.triton import backward, device, forward, tune
from normkit.kernels.triton import weight as weights
from normkit.kernels.triton.arguments import (
    Along,
    BackwardOptions,
    FeatureView,
    ForwardOptions,
    MaskIndex,
    MaskIndexing,
    Walk,
)
from normkit.kernels.triton.device import aligned, check_length, empty, launch
from normkit.kernels.triton.schedule import FAR, MOST_WARPS, PER_WARP, SMALLEST, WHOLE, Schedule, schedule

FEATURE_TILE, OTHER_TILE = 32, 64
"""Features, and elements of each, in a tile of `feature_sums`. A guess that no GPU has measured."""
FEATURE_SHARE, FEATURE_PARTS = 8192, 256
"""Elements of each feature that one program adds up, and programs for a feature at most. Guesses, too."""
RUNNING = 256
"""Channels whose running statistics one program updates, two for each thread. A guess, too."""

_schedules: dict[int, Schedule] = {}
"""By the numbers of plans. `normkit.kernels.layout` keeps a few thousand plans at most, then calls `forget`."""
_numbers = itertools.count()


def plan(k0: int, r0: int, k1: int, r1: int, period: int, inner: int, columns: int, /) -> int:
    """Make a schedule, and the number it is called by."""
    numbers = ((k0, r0, k1, r1), period, inner)
    return _added(tune.tuned(numbers, device.name(), _milliseconds) if tune.is_on() else schedule(*numbers))


def _added(s: Schedule) -> int:
    number = next(_numbers)
    _schedules[number] = s
    return number


def forget(plan: int, /) -> None:
    _schedules.pop(plan, None)


def _milliseconds(s: Schedule) -> float:
    """Of a forward and a backward call in fp32."""
    where = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    x, ones = torch.randn(s.numel, device=where), torch.ones(s.index.period, device=where)
    number = _added(s)
    a = Arguments(x, ones, ones, "", 1e-5, True)

    def both() -> None:
        _, _, mean, std = norm(a, number, None, a.eps, None, True)
        assert std is not None
        norm_backward(x, a._replace(mean=mean), number, std, a.eps, None, False, Want(True, True, True))

    time = float(_bench(both))
    forget(number)
    return time


def _bench(call: Callable[[], None]) -> Any:
    return triton.testing.do_bench(call, return_mode="median")


class _MaskArguments(NamedTuple):
    pointer: Tensor | None
    places: MaskIndex | None
    indexing: int


_NO_MASK = _MaskArguments(None, None, int(MaskIndexing.NONE))


def _mask(mask: Mask | None, s: Schedule) -> _MaskArguments:
    """A mask as kernels take it."""
    if mask is None:
        return _NO_MASK
    index = s.mask_index(mask.channels, mask.inner)
    indexing = MaskIndexing.AXES
    if index is None:
        indexing = MaskIndexing.OFFSET
        index = MaskIndex(1, 0, 1, 0, 0, 0, mask.channels, mask.inner)
    return _MaskArguments(mask.valid.view(torch.uint8), index, int(indexing))


# Norms ----------------------------------------------------------------------------------------------------


def norm(
    a: Arguments, plan: int, std: Tensor | None, eps: float, mask: Mask | None, moments: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    x, weight, bias, _, _, center, mean, _, residual, _, activation = a
    s = _schedules[plan]
    check_length(x, s.numel, "x")
    check_length(weight, s.index.period, "weight")
    check_length(bias, s.index.period, "bias")
    check_length(mean, s.cells, "mean")
    check_length(std, s.cells, "std")
    x = aligned(x)
    y = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    computed = moments and std is None
    mean_out = empty(x, s.cells) if computed and center else None
    std_out = empty(x, s.cells) if computed else None
    m = _mask(mask, s)
    walk = s.walk if std is None else Walk.GIVEN
    grid = (s.blocks, s.parts, 1)
    parts, source, added, kept = None, x, residual, total
    if walk is Walk.PARTS:
        parts = empty(x, 3, s.parts, s.cells)
        launch(
            forward.part_moments, grid, s.warps, (x, residual, total, m.pointer, parts),
            s.k1, s.cells, s.axes, m.places, s.tile, center, m.indexing,
        )  # fmt: skip
        if total is not None:
            # The first kernel has computed the sum.
            source, added, kept = total, None, None
    options = ForwardOptions(int(walk), int(s.along), m.indexing, NUMBERS[activation], center, eps)
    launch(
        forward.normalize, grid, s.warps,
        (source, added, kept, m.pointer, _or_none(mean), std, weight, bias, parts, y, mean_out, std_out),
        s.k1, s.cells, s.axes, s.index, m.places, s.tile, options,
    )  # fmt: skip
    if computed and mean_out is None:
        mean_out = empty(x, 0)
    return y, total, mean_out, std_out


def _or_none(t: Tensor | None) -> Tensor | None:
    return None if t is None or t.numel() == 0 else t


def norm_backward(
    dy: Tensor, a: Arguments, plan: int, std: Tensor, eps: float, mask: Mask | None, fixed: bool, want: Want
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, _, _, center, mean, _, dsum, _, activation = a
    assert mean is not None
    s = _schedules[plan]
    check_length(dy, x.numel(), "dy")
    check_length(weight, s.index.period, "weight")
    check_length(std, s.cells, "std")
    x, dy = aligned(x), aligned(dy)
    m = _mask(mask, s)
    mean = _or_none(mean) if center else None
    inputs = (x, m.pointer, mean, std, weight, bias)
    want_features = want.weight or want.bias
    along = s.features if want_features and s.features is not Along.OFFSET else Along.NONE
    per_cell = s.index.cell_mod > 1 and along is not Along.CELL
    # Without sums for weights, given moments leave nothing to add up before dx.
    walk = Walk.GIVEN if fixed and along is Along.NONE else s.walk
    programs = s.blocks
    if walk is Walk.WHOLE and along in (Along.R0, Along.R1) and not per_cell:
        programs = min(programs, device.programs(x.device))
    features, reduce = _features(x, s, along, per_cell, walk, programs)
    half = 0 if features is None else features.numel() // 2
    options = BackwardOptions(int(along), per_cell, int(s.along), m.indexing, NUMBERS[activation], eps)
    sums = None
    if walk is Walk.PARTS:
        if along is Along.CELL:
            sums = features
        elif not fixed:
            sums = empty(x, 2, s.parts, s.columns)
        launch(
            backward.part_sums, (s.blocks, s.parts, 1), s.warps, (dy, *inputs, sums, features),
            s.k1, s.cells, s.columns, half, s.axes, s.index, m.places, s.tile, options,
        )  # fmt: skip
    dx = torch.empty_like(x) if want.x else None
    if want.x or walk in (Walk.WHOLE, Walk.TWICE):
        counts = None if mask is None else mask.counts
        launch(
            backward.input_gradient, (programs, s.parts, 1), s.warps,
            (dy, dsum, x, m.pointer, counts, mean, std, weight, bias, sums, features, dx),
            s.k1, s.cells, s.columns, half, s.blocks, s.axes, s.index, m.places,
            s.tile, options, int(walk), mean is not None, fixed,
        )  # fmt: skip
    if want_features and along is Along.NONE:
        features, reduce = _features_by_offset((dy, *inputs), s, m.places, options), (1,)
    none = empty(x, 0)
    if features is None:
        return none if dx is None else dx, none, none.clone()
    dweight, dbias = features.sum(reduce).view(2, -1).unbind()
    return none if dx is None else dx, dweight if want.weight else none, dbias if want.bias else none.clone()


def _features(
    x: Tensor, s: Schedule, along: Along, per_cell: bool, walk: Walk, programs: int
) -> tuple[Tensor | None, tuple[int, ...]]:
    """Room for the sums along the axis of the weights, and which of its dimensions remain to be added up."""
    if along is Along.NONE:
        return None, ()
    parts_r0, parts_r1 = (s.parts_r0, s.axes.parts_r1) if walk is Walk.PARTS else (1, 1)
    size, rows = {
        Along.CELL: (1, parts_r0 * parts_r1),
        Along.R0: (s.axes.r0, parts_r1),
        Along.R1: (s.axes.r1, parts_r0),
    }[along]
    if along is not Along.CELL and not per_cell:
        return empty(x, 2, rows * programs, size), (1,)
    shared, own = (1, s.tile.used_columns) if s.along is Along.COLUMN else (s.tile.used_columns, size)
    outer = s.cells // (s.index.cell_mod * s.index.cell_div)
    return empty(x, 2, rows, outer, s.index.cell_mod, s.index.cell_div * shared, own), (1, 2, 4)


def _features_by_offset(
    inputs: tuple[Tensor | None, ...], s: Schedule, mask_index: MaskIndex | None, options: BackwardOptions
) -> Tensor:
    """The sums for weights by a kernel of their own; `inputs` are its pointers from dy to bias."""
    _, x, *_ = inputs
    assert x is not None
    _, r0, k1, r1 = s.view
    period, inner = s.index.period, s.index.inner
    others = s.numel // period
    parts = max(1, min(FEATURE_PARTS, -(-others // FEATURE_SHARE)))
    features = empty(x, 2, parts, period)
    launch(
        backward.feature_sums, (-(-period // FEATURE_TILE), parts, 1), 4, (*inputs, features),
        others, -(-others // parts), features.numel() // 2, FeatureView(period, inner, r0 * k1 * r1, k1, r1),
        mask_index, options, FEATURE_TILE, OTHER_TILE, s.tile.wide,
    )  # fmt: skip
    return features


def root(var: Tensor, eps: float, /) -> Tensor:
    return (var + eps).sqrt()


# Weights, running statistics, 8-bit rows ------------------------------------------------------------------


def weight_norm(v: Tensor, g: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
    """The weight, and the lengths that it was divided by."""
    s = _schedules[plan]
    grid = (s.blocks, s.parts, 1)
    numbers = (s.k1, s.cells, s.axes, s.tile)
    w, length = torch.empty_like(v), empty(v, s.cells)
    parts = empty(v, 2, s.parts, s.cells) if s.walk is Walk.PARTS else None
    if parts is not None:
        launch(weights.part_lengths, grid, s.warps, (v, parts), *numbers)
    launch(weights.weight_norm, grid, s.warps, (v, g, parts, w, length), *numbers, int(s.walk))
    return w, length


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
    """The gradients of direction and length."""
    s = _schedules[plan]
    grid = (s.blocks, s.parts, 1)
    numbers = (s.k1, s.cells, s.axes, s.tile)
    dv, dg = torch.empty_like(v), empty(v, s.cells)
    parts = empty(v, s.parts, s.cells) if s.walk is Walk.PARTS else None
    if parts is not None:
        launch(weights.part_along, grid, s.warps, (dw, v, length, parts), *numbers)
    pointers = (dw, v, g, length, parts, dv, dg)
    launch(weights.weight_norm_backward, grid, s.warps, pointers, *numbers, int(s.walk))
    return dv, dg


def move_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, std: Tensor, count: int, momentum: float, /
) -> int:
    """Update running statistics, of fp32; how many channels kept theirs is not known without waiting for the GPU: 0."""
    channels = running_mean.numel()
    launch(
        forward.update_running, (-(-channels // RUNNING), 1, 1), 4, (running_mean, running_var, mean, std),
        channels, mean.numel() // channels, count / (count - 1), momentum, RUNNING,
    )  # fmt: skip
    return 0


def quantize(a: Arguments, scale: Tensor | None, dtype: torch.dtype, /) -> tuple[Tensor, Tensor] | None:
    """Rows in 8 bits and their scales; None for rows too long for a tile."""
    x, weight, bias, _, eps, center, *_ = a
    length = x.shape[-1]
    if length > WHOLE:
        return None
    x = aligned(x.contiguous())
    rows, room = x.numel() // length, 1 << (length - 1).bit_length()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    own = torch.empty((*x.shape[:-1], 1), device=x.device) if scale is None else scale
    together = max(1, SMALLEST // room)
    warps = max(1, min(MOST_WARPS, together * room // PER_WARP))
    launch(
        forward.quantize, (-(-rows // together), 1, 1), warps, (x, weight, bias, scale, y, own),
        rows, length, eps, center, torch.finfo(dtype).max, together, room, x.numel() >= FAR,
    )  # fmt: skip
    return y, own
