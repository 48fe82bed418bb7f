"""What GPU kernels fuse around a norm, and conventions of its weight: every walk against the definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from interpreted import (
    DEVICE,
    LAYOUTS,
    PATTERNS,
    by_triton,  # noqa: F401
    check_call,
    draw,
    marks,
)
from test_triton_walks import LIMITS, ROWS, SHAPE

from normkit.kernels import layout, operator
from normkit.kernels.backend import Want
from normkit.kernels.formula import Arguments
from normkit.kernels.triton import launch, passes, schedule
from normkit.kernels.triton.arguments import Along, Walk
from normkit.pattern import parse

pytestmark = marks


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


WALKS = {"in registers": {}, **{name: LIMITS[name] for name in ("walked twice", "cut into parts")}}


@pytest.fixture(params=WALKS)
def walk(request, monkeypatch):
    set_limits(monkeypatch, request.param)
    return request.param


def set_limits(monkeypatch, name):
    for limit, value in WALKS[name].items():
        monkeypatch.setattr(passes, limit, value)
    monkeypatch.setattr(schedule.schedule, "__defaults__", (2, 1, passes.Gaps(), 256))
    layout.forget_plans()


def call(
    pattern, memory, dtype, gate=None, first=False, skip=False, residual=False, padded=False, activation="none",
    affine="features", convention=None, fixed=False,
):  # fmt: skip
    """A call on a small tensor; `affine` says what weight and bias vary over."""
    shape = ROWS if pattern == "rows" else SHAPE
    levels = parse(PATTERNS[pattern]).levels(shape)
    x, other = ((2 * draw(*shape) + 1).to(dtype).contiguous(memory_format=memory) for _ in range(2))
    mask = None
    if padded:
        mask = torch.rand(shape[0], 1, *shape[2:], device=DEVICE) > 0.4
        if pattern == "rows":
            mask = mask[..., :1]
        x = torch.where(mask, x, torch.tensor(torch.nan, dtype=dtype)).contiguous(memory_format=memory)
    sizes = {
        "features": [math.prod(level.size for level in levels if level.feature)],
        "samples": [shape[0], *(1 if d != (3 if pattern == "rows" else 1) else shape[d] for d in (1, 2, 3))],
        "none": None,
    }[affine]
    w, b = (None, None) if sizes is None else (draw(*sizes), draw(*sizes))
    cells = math.prod(level.size for level in levels if not level.reduced)
    moments = (draw(cells), draw(cells).abs() + 0.5) if fixed else (None, None)

    def beside():
        """What is at padding reaches nothing."""
        t = draw(*shape, dtype=dtype, layout=memory)
        return t if mask is None else torch.where(mask, t, torch.tensor(torch.nan, dtype=dtype))

    return Arguments(
        x, w, b, PATTERNS[pattern], 1e-5, True, *(t if t is None else t.to(torch.float32) for t in moments),
        residual=other if residual else None, mask=mask, activation=activation,
        gate=beside().contiguous(memory_format=memory) if gate else None,
        skip=beside().contiguous(memory_format=memory) if skip else None,
        gate_activation=gate or "none", gate_first=first, zero_centered=convention == "zero_centered",
    )  # fmt: skip


CASES = list(
    itertools.product(
        ("batch", "instance", "group", "pixel", "rows", "mixed"),
        LAYOUTS,
        (torch.float32, torch.bfloat16),
        (None, "silu", "plus_one", "gelu"),
        (False, True),
        (False, True),
        (False, True),
        (False, True),
        ("none", "gelu"),
        ("features", "samples", "none"),
        (None, "zero_centered"),
        (False, True),
    )
)


def drawn(part: int, count: int):
    gen = torch.Generator().manual_seed(part)
    for index in torch.randperm(len(CASES), generator=gen, device="cpu")[:count].tolist():
        pattern, memory, dtype, gate, first, skip, residual, padded, activation, affine, convention, fixed = CASES[
            index
        ]
        first = first and gate is not None
        yield index, call(
            pattern, memory, dtype, gate, first, skip, residual and not first, padded, activation, affine, convention,
            fixed,
        ), fixed  # fmt: skip


@pytest.mark.parametrize("part", [0, *(slow(part) for part in range(1, 40))])
def test_what_is_fused_gives_what_the_definition_gives(walk, part):
    """A sample of all combinations, the same in every run."""
    for index, a, fixed in drawn(part + 100 * list(WALKS).index(walk), 4):
        torch.manual_seed(index)
        check_call(a, fixed)


def launched(monkeypatch):
    """The names and grids of the kernels that are launched from now on."""
    seen: list[tuple[str, int]] = []
    launch_kernel = launch.device.launch

    def counted(kernel, grid, *rest):
        seen.append((kernel.fn.__name__, grid[0]))
        launch_kernel(kernel, grid, *rest)

    monkeypatch.setattr(launch.device, "launch", counted)
    return seen


@pytest.mark.parametrize("walk", ["in registers", *map(slow, ("walked twice", "cut into parts"))])
@pytest.mark.parametrize("pattern", ["group", *map(slow, ("batch", "pixel", "rows"))])
@pytest.mark.parametrize("first", [True, slow(False)])
def test_gradients_that_are_not_wanted_are_not_computed(monkeypatch, walk, pattern, first):
    set_limits(monkeypatch, walk)
    a = call(pattern, LAYOUTS[0], torch.float32, "silu", first, skip=True, activation="silu")
    _, _, mean, std = operator.norm(a)
    dy = torch.randn_like(a.x)
    a = a._replace(mean=mean, var=std)
    everything = operator.norm_backward(dy, a, False, Want(True, True, True, True, True))
    for place in (0, 3, 4):
        want = Want(*(i == place for i in range(5)))
        got = operator.norm_backward(dy, a, False, want)
        for one, other, wanted in zip(got, everything, want, strict=True):
            assert (one is None) is not wanted
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("walk", ["in registers", *map(slow, ("walked twice", "cut into parts"))])
@pytest.mark.parametrize("pattern", ["group", "rows", *map(slow, ("batch", "pixel"))])
def test_a_product_in_half_precision_has_the_bits_of_single_operations(monkeypatch, walk, pattern):
    """The interpreter cuts bfloat16 off, where a GPU rounds it."""
    set_limits(monkeypatch, walk)
    for dtype in (torch.float16,) if DEVICE == "cpu" else (torch.float16, torch.bfloat16):
        a = call(pattern, LAYOUTS[0], dtype)
        plain = operator.norm(a._replace(weight=None, bias=None)).y
        shape = [1, 1, 1, -1] if pattern == "rows" else [1, -1, 1, 1]
        w, b = (t.view(shape).to(dtype) for t in (a.weight, a.bias))
        rounded = a._replace(cast_first=True)
        assert torch.equal(operator.norm(rounded).y, plain * w + b)
        assert torch.equal(operator.norm(rounded._replace(bias=None)).y, plain * w)
        centered = rounded._replace(bias=None, zero_centered=True)
        assert torch.equal(operator.norm(centered).y, plain * (a.weight.view(shape) + 1).to(dtype))
        wide = rounded._replace(x=a.x.float())
        assert torch.equal(operator.norm(wide).y, operator.norm(wide._replace(cast_first=False)).y)


# Weights that differ between rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("walk", ["in registers", "cut into parts"])
@pytest.mark.parametrize(("rows", "groups", "size"), [(9, 2, 12), slow(37, 4, 24), slow(5, 3, 7), slow(1, 2, 40)])
def test_rows_in_groups_have_sums_of_each_program(monkeypatch, walk, rows, groups, size):
    set_limits(monkeypatch, walk)
    seen = launched(monkeypatch)
    x, w, b = draw(rows, groups * size), draw(groups * size), draw(groups * size)
    check_call(Arguments(x, w, b, f"... (g={groups} [c])", 1e-5, False))
    grids = [grid for name, grid in seen if name in ("region_gradient", "part_sums")]
    assert len(grids) == 1
    if walk == "in registers":
        # Two programs for each of the interpreter's two multiprocessors, as many for each group of weights.
        assert grids[0] <= max(4, groups)
        assert grids[0] % groups == 0


@pytest.mark.parametrize("walk", ["in registers", "cut into parts"])
@pytest.mark.parametrize(("samples", "tokens", "size"), [(2, 5, 12), slow(2, 37, 24), slow(5, 3, 7), slow(3, 1, 40)])
def test_rows_of_samples_have_sums_of_each_program(monkeypatch, walk, samples, tokens, size):
    """A weight for each sample, as in adaptive layer norm; no program has rows of two samples."""
    set_limits(monkeypatch, walk)
    seen = launched(monkeypatch)
    x, w, b = draw(samples, tokens, size), draw(samples, 1, size), draw(samples, 1, size)
    a = Arguments(x, w, b, "... [c]", 1e-5, True, zero_centered=True)
    check_call(a._replace(gate=draw(*x.shape), gate_activation="sigmoid", skip=draw(*x.shape)))
    grids = [grid for name, grid in seen if name in ("region_gradient", "part_sums")]
    assert len(grids) == 1
    if walk == "in registers":
        assert all(grid <= max(4, samples) and grid % samples == 0 for grid in grids)


def test_schedules_keep_the_weights_of_samples_and_groups_apart():
    dit = schedule.schedule((32 * 256, 1, 1, 1152), 1152, 1, 2, 32)
    assert (dit.sets, dit.features, dit.weights, dit.k0) == (32, Along.R1, 32 * 1152, 32)
    mamba = schedule.schedule((4096 * 8, 1, 1, 512), 4096, 1)
    assert (mamba.sets, mamba.backward.tile.transposed, mamba.forward.tile.transposed) == (8, True, False)
    assert mamba.backward.k1 == 4096
    images = schedule.schedule((32 * 32, 1, 1, 8 * 1024), 256, 1024, 2, 32)
    assert (images.features, images.index.cell_mod, images.sets) == (Along.R0, 32 * 32, 1)
    last = schedule.schedule((32, 1024, 256, 1), 256, 1, 2, 32)
    assert (last.features, last.index.cell_mod, last.cells) == (Along.CELL, 32 * 256, last.weights)
    plain = schedule.schedule((32 * 256, 1, 1, 1152), 1152, 1)
    assert (plain.sets, plain.forward.tile, plain.forward.warps) == (1, dit.forward.tile, dit.forward.warps)
    assert dit.forward.walk is Walk.WHOLE


# Rows with gaps between them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("walk", ["in registers", "cut into parts"])
@pytest.mark.parametrize("size", [slow(16), 7])
def test_rows_with_gaps_are_read_where_they_are(monkeypatch, walk, size):
    """The key of a fused projection: the same bits as of a dense copy."""
    set_limits(monkeypatch, walk)
    key = draw(2, 3, 3, 2, size)[:, :, 1]
    w, dy = draw(size), draw(2, 3, 2, size)
    gate = draw(2, 3, 2, size)
    for extras in ({}, {"gate": gate, "gate_activation": "silu"}, {"gate": gate, "gate_first": True}):
        results = []
        for x in (key, key.contiguous()):
            a = Arguments(x, w, w, "... [c]", 1e-5, True, **extras)
            assert layout.ready_plan(a, None) >= 0
            out = operator.norm(a)
            back = a._replace(mean=out.mean, var=out.std)
            grads = operator.norm_backward(dy, back, False, Want(True, True, True, bool(extras), False))
            results.append([*out, *grads])
        for one, other in zip(*results, strict=True):
            assert one is other is None or torch.equal(one, other)
        assert results[0][0].is_contiguous()
    summed = Arguments(key, w, w, "... [c]", 1e-5, True, residual=gate)
    dense = operator.norm(summed._replace(x=key.contiguous()))
    assert all(torch.equal(one, other) for one, other in zip(operator.norm(summed), dense, strict=True))
