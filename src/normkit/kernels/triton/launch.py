"""Launches the kernels; this module implements `normkit.kernels.backend.Kernels`.

Besides launches, `norm` and `norm_backward` only allocate: so a call of them can be recorded, and launched again without
Python.
"""

from __future__ import annotations

import ctypes
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
    WeightIndex,
)
from normkit.kernels.triton.device import aligned, check_length, empty, launch
from normkit.kernels.triton.schedule import FAR, MOST_WARPS, SMALLEST, WHOLE, WHOLE_WEIGHTS, Pass, Schedule, schedule

FEATURE_TILE, OTHER_TILE = 32, 64
"""Features, and elements of each, in a tile of `feature_sums`. A guess that no GPU has measured."""
FEATURE_SHARE, FEATURE_PARTS = 8192, 256
"""Elements of each feature that one program adds up, and programs for a feature at most. Guesses, too."""
ADDED_FEATURES, ADDED_OTHERS = 16, 128
"""Features, and sums of each, in a tile of `add_up`: 16 float32 are two sectors of memory. A guess, too."""
MERGED = 4096
"""Moments or sums of parts in a tile that merges them: 32 for each thread. A guess, too."""
RUNNING = 256
"""Channels whose running statistics one program updates, two for each thread. A guess, too."""

reads_half = True

_numbers = itertools.count()
_plans: dict[int, tuple[tuple[int, int, int, int], int, int]] = {}
"""By number. `normkit.kernels.layout` keeps a few thousand plans at most, then calls `forget`."""
_schedules: dict[tuple[int, int], Schedule] = {}
"""By the numbers of plans and the sizes of elements."""


def plan(k0: int, r0: int, k1: int, r1: int, period: int, inner: int, columns: int, /) -> int:
    """Keep a plan, and return the number it is called by."""
    number = next(_numbers)
    _plans[number] = (k0, r0, k1, r1), period, inner
    return number


def forget(plan: int, /) -> None:
    if _plans.pop(plan, None) is not None:
        for itemsize in (2, 4, 8):
            _schedules.pop((plan, itemsize), None)


def _schedule(plan: int, x: Tensor) -> Schedule:
    key = plan, x.element_size()
    s = _schedules.get(key)
    if s is None:
        numbers = (*_plans[plan], x.element_size())
        s = tune.tuned(numbers, device.name(), _milliseconds) if tune.is_on() else schedule(*numbers)
        _schedules[key] = s
    return s


def _milliseconds(s: Schedule, itemsize: int) -> float:
    """Of a forward and a backward call."""
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
    where = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    x, ones = torch.randn(s.numel, device=where).to(dtype), torch.ones(s.index.period, device=where)
    number = plan(*s.view, s.index.period, s.index.inner, 0)
    _schedules[number, itemsize] = s
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


def _merging(p: Pass, cells: int) -> tuple[tuple[int, int, int], int, int, int]:
    """Grid of a kernel that merges parts; the columns of a cell, and cells and parts in a tile."""
    columns = p.tile.used_columns
    sets = 1 << (p.parts * columns - 1).bit_length()
    together = max(1, min(MERGED // sets, 16))
    return (-(-cells // together), 1, 1), columns, together, sets


# Norms ----------------------------------------------------------------------------------------------------


def norm(
    a: Arguments, plan: int, std: Tensor | None, eps: float, mask: Mask | None, moments: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    x, weight, bias, _, _, center, mean, _, residual, _, activation = a
    s = _schedule(plan, x)
    check_length(x, s.numel, "x")
    check_length(weight, s.index.period, "weight")
    check_length(bias, s.index.period, "bias")
    check_length(mean, s.cells, "mean")
    check_length(std, s.cells, "std")
    x = aligned(x)
    y = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    m = _mask(mask, s)
    p, computed = s.forward if std is None else s.apply, moments and std is None
    mean_out = std_out = None
    if computed or p is None:
        mean_out, std_out = empty(x, s.cells) if center else None, empty(x, s.cells)
    given, source, added, kept = (_or_none(mean), std), x, residual, total
    stored = (mean_out, std_out)
    if p is None:
        _store_moments(s, center, (x, residual, total, m.pointer), m, stored)
        p, given, stored = s.apply, stored, (None, None)
        if total is not None:
            source, added, kept = total, None, None  # the sum has been stored
    options = ForwardOptions(int(p.walk), int(p.along), s.alike, m.indexing, NUMBERS[activation], center, std is not None, eps)
    launch(
        forward.normalize, p.grid, p.warps,
        (source, added, kept, m.pointer, *given, weight, bias, y, *stored),
        s.k1, p.axes, s.index, m.places, p.tile, options,
    )  # fmt: skip
    if not computed:
        return y, total, None, None
    return y, total, empty(x, 0) if mean_out is None else mean_out, std_out


def _store_moments(
    s: Schedule, center: bool, inputs: tuple[Tensor | None, ...], m: _MaskArguments, stored: tuple[Tensor | None, ...]
) -> None:
    """Mean and deviation of each cell, from those of its parts; `inputs` are x, residual, total and mask."""
    p, x = s.parts, inputs[0]
    assert x is not None
    grid, columns, together, sets = _merging(p, s.cells)
    parts = empty(x, 3, p.parts, s.cells * columns)
    launch(
        forward.part_moments, p.grid, p.warps, (*inputs, parts),
        s.k1, s.cells * columns, p.axes, m.places, p.tile, center, m.indexing,
    )  # fmt: skip
    launch(forward.merge_moments, grid, 4, (parts, *stored), s.cells, p.parts, center, columns, together, sets)


def _or_none(t: Tensor | None) -> Tensor | None:
    return None if t is None or t.numel() == 0 else t


_Pair = tuple[Tensor | None, Tensor | None]
"""For weight and bias; None for what is not asked for."""


class _Backward(NamedTuple):
    """What the steps of a backward pass share."""

    s: Schedule
    dy: Tensor
    dsum: Tensor | None
    x: Tensor
    m: _MaskArguments
    counts: Tensor | None
    mean: Tensor | None
    std: Tensor
    weight: Tensor | None
    bias: Tensor | None
    options: BackwardOptions
    fixed: bool
    dx: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None

    def of(self, p: Pass) -> BackwardOptions:
        """The options for a pass, which may see another axis along which weights vary."""
        return self.options._replace(along=int(p.along))

    def along(self) -> Along:
        return Along(self.options.features)

    def numbers(self, rows: int) -> tuple[int, int, int, int]:
        """How sums for the weights lie, ``[rows, feature // own, shared, feature % own]``.

        `rows` are those of each cell, or if cells have the sums in common, all.
        """
        s, along = self.s, self.along()
        index, used = s.index, (s.backward or s.sums).tile.used_columns
        own = {Along.CELL: 1, Along.COLUMN: used, Along.R0: s.r0, Along.R1: s.r1}[along]
        if not (self.options.per_cell or along in (Along.CELL, Along.COLUMN)):
            return rows, own, 1, own
        shared = index.cell_div * (used if along is Along.CELL else 1)
        return rows * s.cells // (index.cell_mod * index.cell_div), index.cell_mod * own, shared, own


class _Features:
    """Room for sums for the weights; where nothing is left to be added up, it is the gradients themselves."""

    def __init__(self, b: _Backward, rows: int, size: int, shared: int, own: int) -> None:
        self.numbers, self.outputs = (rows, size, shared, own), (b.dweight, b.dbias)
        self.direct = rows * shared == 1
        self.sums: _Pair = self.outputs
        if not self.direct:
            of_weight, of_bias = (None if t is None else empty(b.x, rows * size * shared) for t in self.outputs)
            self.sums = of_weight, of_bias

    def add_up(self) -> None:
        if not self.direct:
            _add_up(self.sums, self.outputs, *self.numbers)


def _add_up(sums: _Pair, outputs: _Pair, rows: int, size: int, shared: int, own: int) -> None:
    launch(
        backward.add_up, (-(-size // ADDED_FEATURES), 1, 1), 4, (*sums, *outputs),
        rows, size, shared, own, ADDED_FEATURES, ADDED_OTHERS,
    )  # fmt: skip


def norm_backward(
    dy: Tensor, a: Arguments, plan: int, std: Tensor, eps: float, mask: Mask | None, fixed: bool, want: Want,
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients; `dtypes` are those of the gradients of weight and bias, else the arithmetic one."""
    x, weight, bias, _, _, center, mean, _, dsum, _, activation = a
    assert mean is not None
    s = _schedule(plan, x)
    check_length(dy, x.numel(), "dy")
    check_length(weight, s.index.period, "weight")
    check_length(std, s.cells, "std")
    x, dy = aligned(x), aligned(dy)
    m = _mask(mask, s)
    along = s.features if want.weight or want.bias else Along.NONE
    by_offset = along is Along.OFFSET
    along = Along.NONE if by_offset else along
    per_cell = not s.alike and along in (Along.R0, Along.R1)
    dweight, dbias = (
        torch.empty(s.index.period, dtype=dtype, device=x.device) if wanted and dtype else
        empty(x, s.index.period) if wanted else None
        for wanted, dtype in zip(want[1:], dtypes, strict=True)
    )  # fmt: skip
    options = BackwardOptions(
        int(along), per_cell, want.weight, want.bias, int(Along.NONE), s.alike, m.indexing, NUMBERS[activation], center, fixed, eps
    )
    dx = torch.empty_like(x) if want.x else None
    counts = None if mask is None else mask.counts
    b = _Backward(
        s, dy, dsum, x, m, counts, _or_none(mean) if center else None, std, weight, bias, options, fixed,
        dx, dweight, dbias,
    )  # fmt: skip
    if fixed and along is Along.NONE:
        _apply_gradient(b, None)
    elif s.backward is not None:
        _by_regions(b, s.backward)
    else:
        _by_parts(b)
    if by_offset:
        _by_offset(b)
    return dx, dweight, dbias


def _by_regions(b: _Backward, p: Pass) -> None:
    """dx and the sums for weights, by programs that have whole regions."""
    s, along = b.s, b.along()
    if b.dx is None and along is Along.NONE:
        return
    programs = p.blocks
    if p.walk is Walk.WHOLE and along in (Along.R0, Along.R1) and not b.options.per_cell:
        programs = min(programs, device.multiprocessors(b.x.device) * (1 if s.count >= WHOLE_WEIGHTS else 2))
    in_common = along in (Along.R0, Along.R1) and not b.options.per_cell
    room = None if along is Along.NONE else _Features(b, *b.numbers(programs if in_common else 1))
    launch(
        backward.region_gradient, (programs, 1, 1), p.warps,
        (b.dy, b.dsum, b.x, b.m.pointer, b.counts, b.mean, b.std, b.weight, b.bias, *_sums_of(room), b.dx),
        s.k1, p.blocks, p.axes, s.index, b.m.places, p.tile, b.of(p), int(p.walk), b.fixed,
    )  # fmt: skip
    if room is not None:
        room.add_up()


def _sums_of(room: _Features | None) -> _Pair:
    return (None, None) if room is None else room.sums


def _by_parts(b: _Backward) -> None:
    """Sums of parts, their means over each cell, and dx."""
    s, along, x, p = b.s, b.along(), b.x, b.s.sums
    of_column = along in (Along.CELL, Along.COLUMN)
    needed = not b.fixed and b.dx is not None
    grid, columns, together, sets = _merging(p, s.cells)
    along_sums = plain_sums = room = None
    if of_column or needed:
        along_sums = empty(x, p.parts, s.cells * columns)
        plain_sums = empty(x, p.parts, s.cells * columns) if b.options.center or b.options.bias else None
    programs = p.blocks
    if along is Along.R1 and not b.options.per_cell:
        programs = min(programs, max(1, 2 * device.multiprocessors(x.device) // p.axes.parts_r1))
    if along in (Along.R0, Along.R1):
        rows = p.parts_r0 if along is Along.R1 else p.axes.parts_r1
        room = _Features(b, *b.numbers(rows * (1 if b.options.per_cell else programs)))
    launch(
        backward.part_sums, (programs, p.parts, 1), p.warps,
        (b.dy, x, b.m.pointer, b.mean, b.std, b.weight, b.bias, along_sums, plain_sums, *_sums_of(room)),
        s.k1, s.cells * columns, p.blocks, p.axes, s.index, b.m.places, p.tile, b.of(p),
    )  # fmt: skip
    # One cell and one column for each weight: merging gives its gradient, too.
    merged = along is Along.CELL and s.cells == s.index.period
    means = empty(x, 2, s.cells) if needed else None
    if needed or merged:
        launch(
            backward.merge_sums, grid, 4,
            (along_sums, plain_sums, b.weight, b.counts, means, *((b.dweight, b.dbias) if merged else (None, None))),
            s.cells, p.parts, s.count, s.index, b.of(p), columns, together, sets,
        )  # fmt: skip
    if b.dx is not None:
        _apply_gradient(b, means)
    if of_column and not merged:
        wanted = along_sums if b.dweight is not None else None, plain_sums if b.dbias is not None else None
        _add_up(wanted, (b.dweight, b.dbias), *b.numbers(p.parts))
    if room is not None:
        room.add_up()


def _apply_gradient(b: _Backward, means: Tensor | None) -> None:
    s, p = b.s, b.s.apply
    if b.dx is None:
        return
    launch(
        backward.part_gradient, p.grid, p.warps,
        (b.dy, b.dsum, b.x, b.m.pointer, means, b.mean, b.std, b.weight, b.bias, b.dx),
        s.k1, s.cells, p.axes, s.index, b.m.places, p.tile, b.of(p),
    )  # fmt: skip


def _by_offset(b: _Backward) -> None:
    """The gradients of weight and bias by kernels of their own."""
    s, x = b.s, b.x
    _, r0, k1, r1 = s.view
    period, inner = s.index.period, s.index.inner
    others = s.numel // period
    parts = max(1, min(FEATURE_PARTS, -(-others // FEATURE_SHARE)))
    room = _Features(b, parts, period, 1, period)
    launch(
        backward.feature_sums, (-(-period // FEATURE_TILE), parts, 1), 4,
        (b.dy, x, b.m.pointer, b.mean, b.std, b.weight, b.bias, *room.sums),
        others, -(-others // parts), FeatureView(period, inner, r0 * k1 * r1, k1, r1),
        b.m.places, b.options, FEATURE_TILE, OTHER_TILE, s.numel >= FAR,
    )  # fmt: skip
    room.add_up()


def given(var: Tensor, eps: float, /) -> tuple[Tensor, float]:
    return var, eps


# Weights, running statistics, 8-bit rows ------------------------------------------------------------------


def weight_norm(v: Tensor, g: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
    """The weight, and the lengths that it was divided by."""
    s = _schedule(plan, v)
    w, length = torch.empty_like(v), empty(v, s.cells)
    p = s.forward
    if p is None:
        q, p = s.parts, s.apply
        grid, columns, together, sets = _merging(q, s.cells)
        parts = empty(v, 2, q.parts, s.cells * columns)
        launch(weights.part_lengths, q.grid, q.warps, (v, parts), s.k1, s.cells * columns, q.axes, q.tile)
        launch(weights.merge_lengths, grid, 4, (parts, length), s.cells, q.parts, columns, together, sets)
    launch(weights.weight_norm, p.grid, p.warps, (v, g, w, length), s.k1, p.axes, p.tile, int(p.walk))
    return w, length


def weight_norm_backward(dw: Tensor, v: Tensor, g: Tensor, length: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
    """The gradients of direction and length."""
    s = _schedule(plan, v)
    dv, dg = torch.empty_like(v), empty(v, s.cells)
    p = s.forward
    if p is None:
        q, p = s.sums, s.apply
        grid, columns, together, sets = _merging(q, s.cells)
        parts = empty(v, q.parts, s.cells * columns)
        launch(weights.part_along, q.grid, q.warps, (dw, v, length, parts), s.k1, s.cells * columns, q.axes, q.tile)
        launch(weights.merge_along, grid, 4, (parts, dg), s.cells, q.parts, columns, together, sets)
    pointers = (dw, v, g, length, dv, dg)
    launch(weights.weight_norm_backward, p.grid, p.warps, pointers, s.k1, p.axes, p.tile, int(p.walk))
    return dv, dg


def move_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, std: Tensor, count: int, momentum: float, /
) -> int:
    """Update running statistics; how many channels kept theirs is not known without waiting for the GPU: 0."""
    channels = running_mean.numel()
    wide = torch.float64 in (mean.dtype, running_mean.dtype)
    # Triton passes a number in fp32.
    rest = momentum - ctypes.c_float(momentum).value if wide else 0.0
    launch(
        forward.update_running, (-(-channels // RUNNING), 1, 1), 4, (running_mean, running_var, mean, std),
        channels, mean.numel() // channels, count, momentum, rest, RUNNING,
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
    options = ForwardOptions(int(Walk.WHOLE), int(Along.R1), True, int(MaskIndexing.NONE), 0, center, False, eps)
    warps = max(1, min(MOST_WARPS, together * room * x.element_size() // (32 * 64)))
    launch(
        forward.quantize, (-(-rows // together), 1, 1), warps, (x, weight, bias, scale, y, own),
        rows, length, options, torch.finfo(dtype).max, together, room, x.numel() >= FAR,
    )  # fmt: skip
    return y, own
