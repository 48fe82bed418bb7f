"""Launches the kernels of a backward pass: by whole regions, by parts, or by the offset of an element."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from normkit.kernels.triton import device
from normkit.kernels.triton.arguments import Along, BackwardFlags, FeatureView, Walk
from normkit.kernels.triton.code import backward, features
from normkit.kernels.triton.inputs import MaskArguments, merging
from normkit.kernels.triton.passes import FAR, WHOLE_WEIGHTS, Pass
from normkit.kernels.triton.schedule import Schedule

FEATURE_TILE, OTHER_TILE = 32, 64
"""Features, and elements of each, in a tile of `feature_sums`. A guess that no GPU has measured."""
FEATURE_SHARE, FEATURE_PARTS = 8192, 256
"""Elements of each feature that one program adds up, and programs for a feature at most. Guesses, too."""
ADDED_FEATURES, FEW_FEATURES, MANY_SUMS = 16, 4, 1024
"""Features in a tile of `add_up`, two sectors of memory in float32; and how many where there are few features with many
sums each, so that more programs share the work. Guesses, too."""
ADDED = 2048
"""Sums in a tile of `add_up`, 16 for each thread. A guess, too."""

Pair = tuple[Tensor | None, Tensor | None]
"""For weight and bias; None for what is not asked for."""


class Call(NamedTuple):
    """One backward pass; `dx`, `dgate`, `dskip`, `dweight` and `dbias` are to be written, those that are asked for."""

    s: Schedule
    dy: Tensor
    dsum: Tensor | None
    x: Tensor
    m: MaskArguments
    gate: Tensor | None
    skip: Tensor | None
    counts: Tensor | None
    mean: Tensor | None
    std: Tensor
    weight: Tensor | None
    bias: Tensor | None
    flags: BackwardFlags
    fixed: bool
    dx: Tensor | None
    dgate: Tensor | None
    dskip: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None

    def of(self, p: Pass) -> BackwardFlags:
        """The flags for a pass, which may see another axis along which weights vary."""
        return self.flags._replace(along=int(p.along))

    def standardizer(self) -> tuple[Tensor | None, ...]:
        """What x is standardized with, and the weights."""
        return self.mean, self.std, self.weight, self.bias

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The tensors that elements of the gradient are computed from, but for dy."""
        return self.x, self.m.pointer, self.gate, self.skip

    def beside(self) -> tuple[Tensor | None, ...]:
        """The gradients that lie in memory as dy does."""
        return self.dx, self.dgate, self.dskip

    def outputs(self) -> Pair:
        return self.dweight, self.dbias

    def needs_means(self) -> bool:
        """Whether the gradient of what was normalized is needed, and its moments depend on x."""
        return not self.fixed and (self.dx is not None or (self.flags.gate_first and self.dgate is not None))

    def along(self) -> Along:
        return Along(self.flags.features)

    def numbers(self, rows: int, together: int = 1) -> tuple[int, int, int, int]:
        """How sums for the weights lie, ``[rows, feature // own, shared, feature % own]``.

        `rows` are those of each cell. If cells have the sums in common there are `together` times as many, those of a
        set of weights side by side.
        """
        s, along = self.s, self.along()
        index, used = s.index, (s.backward or s.sums).tile.used_columns
        own = {Along.CELL: 1, Along.COLUMN: used, Along.R0: s.r0, Along.R1: s.r1}[along]
        if self.flags.sets:
            return rows, s.sets * own, together // s.sets, own
        if not (self.flags.per_cell or along in (Along.CELL, Along.COLUMN)):
            return rows * together, own, 1, own
        shared = index.cell_div * (used if along is Along.CELL else 1)
        return rows * s.cells // (index.cell_mod * index.cell_div), index.cell_mod * own, shared, own


class _Features:
    """Room for sums for the weights; where nothing is left to be added up, it is the gradients themselves."""

    def __init__(self, call: Call, rows: int, size: int, shared: int, own: int) -> None:
        self.numbers, self.outputs = (rows, size, shared, own), call.outputs()
        self.direct = rows * shared == 1
        self.sums: Pair = self.outputs
        if not self.direct:
            of_weight, of_bias = (
                None if t is None else device.empty(call.x, rows * size * shared) for t in self.outputs
            )
            self.sums = of_weight, of_bias

    def add_up(self) -> None:
        if not self.direct:
            _add_up(self.sums, self.outputs, *self.numbers)


def _add_up(sums: Pair, outputs: Pair, rows: int, size: int, shared: int, own: int) -> None:
    together = FEW_FEATURES if size <= MANY_SUMS < rows * shared else ADDED_FEATURES
    device.launch(
        features.add_up, (-(-size // together), 1, 1), 4, (*sums, *outputs),
        rows, size, shared, own, together, ADDED // together,
    )  # fmt: skip


def launch(call: Call, by_offset: bool) -> None:
    """Compute the gradients; those of weight and bias `by_offset` have kernels of their own."""
    whole = call.s.backward if call.gate is None and call.skip is None else call.s.gated
    if call.along() is Along.NONE and not call.needs_means():
        _apply_gradient(call, None)
    elif whole is not None:
        _by_regions(call, whole)
    else:
        _by_parts(call)
    if by_offset:
        _by_offset(call)


def _by_regions(call: Call, p: Pass) -> None:
    """dx and the sums for weights, by programs that have whole regions."""
    s, along = call.s, call.along()
    programs = p.blocks
    in_common = along in (Along.R0, Along.R1) and not call.flags.per_cell
    if p.walk is Walk.WHOLE and in_common:
        most = device.multiprocessors(call.x.device) * (1 if s.count >= WHOLE_WEIGHTS else 2)
        programs = _for_sets(call, programs, most)
    room = None if along is Along.NONE else _Features(call, *call.numbers(1, programs if in_common else 1))
    device.launch(
        backward.region_gradient, (programs, 1, 1), p.warps,
        (call.dy, call.dsum, *call.inputs(), call.counts, *call.standardizer(), *_sums_of(room), *call.beside()),
        p.k1, p.blocks, p.axes, s.index, call.m.places, p.tile, call.of(p), int(p.walk), call.fixed,
    )  # fmt: skip
    if room is not None:
        room.add_up()


def _for_sets(call: Call, programs: int, most: int) -> int:
    """At most so many programs, but as many for each set of weights."""
    sets = call.s.sets if call.flags.sets else 1
    return max(1, min(programs // sets, most // sets)) * sets


def _sums_of(room: _Features | None) -> Pair:
    return (None, None) if room is None else room.sums


def _by_parts(call: Call) -> None:
    """Sums of parts, their means over each cell, and dx."""
    s, along, x, p = call.s, call.along(), call.x, call.s.sums
    of_column = along in (Along.CELL, Along.COLUMN)
    needed = call.needs_means()
    grid, columns, together, sets = merging(p, s.cells)
    along_sums = plain_sums = room = None
    if of_column or needed:
        along_sums = device.empty(x, p.parts, s.cells * columns)
        plain_sums = device.empty(x, p.parts, s.cells * columns) if call.flags.center or call.flags.bias else None
    programs = p.blocks
    if along is Along.R1 and not call.flags.per_cell:
        programs = _for_sets(call, programs, 2 * device.multiprocessors(x.device) // p.axes.parts_r1)
    if along in (Along.R0, Along.R1):
        rows = p.parts_r0 if along is Along.R1 else p.axes.parts_r1
        room = _Features(call, *call.numbers(rows, 1 if call.flags.per_cell else programs))
    device.launch(
        backward.part_sums, (programs * p.parts, 1, 1), p.warps,
        (call.dy, *call.inputs(), *call.standardizer(), along_sums, plain_sums, *_sums_of(room)),
        p.k1, s.cells * columns, p.blocks, p.axes, s.index, call.m.places, p.tile, call.of(p),
    )  # fmt: skip
    # One cell and one column for each weight: merging gives its gradient, too.
    merged = along is Along.CELL and s.cells == s.weights
    means = device.empty(x, 2, s.cells) if needed else None
    if needed or merged:
        device.launch(
            backward.merge_sums, grid, 4,
            (along_sums, plain_sums, call.weight, call.counts, means, *(call.outputs() if merged else (None, None))),
            s.cells, p.parts, s.count, s.index, call.of(p), columns, together, sets,
        )  # fmt: skip
    _apply_gradient(call, means)
    if of_column and not merged:
        wanted = along_sums if call.dweight is not None else None, plain_sums if call.dbias is not None else None
        _add_up(wanted, call.outputs(), *call.numbers(p.parts))
    if room is not None:
        room.add_up()


def _apply_gradient(call: Call, means: Tensor | None) -> None:
    """dx, and what is stored with it."""
    s, p = call.s, call.s.apply
    if call.beside() == (None, None, None):
        return
    device.launch(
        backward.part_gradient, p.grid, p.warps,
        (call.dy, call.dsum, *call.inputs(), means, *call.standardizer(), *call.beside()),
        p.k1, s.cells, p.axes, s.index, call.m.places, p.tile, call.of(p),
    )  # fmt: skip


def _by_offset(call: Call) -> None:
    """The gradients of weight and bias by kernels of their own."""
    s = call.s
    _, r0, k1, r1 = s.view
    period, inner = s.index.period, s.index.inner
    others = s.numel // s.weights
    parts = max(1, min(FEATURE_PARTS // s.slabs, -(-others // FEATURE_SHARE)))
    room = _Features(call, parts, s.weights, 1, s.weights)
    view = FeatureView(period, inner, r0 * k1 * r1, k1, r1, s.numel // s.slabs, parts, *s.gaps)
    device.launch(
        features.feature_sums, (-(-period // FEATURE_TILE) * parts * s.slabs, 1, 1), 4,
        (call.dy, *call.inputs(), *call.standardizer(), *room.sums),
        others, -(-others // parts), view,
        call.m.places, call.flags, FEATURE_TILE, OTHER_TILE, s.numel >= FAR, s.gaps.group > 0,
    )  # fmt: skip
    room.add_up()
