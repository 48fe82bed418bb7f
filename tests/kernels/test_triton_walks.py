"""Every way that a GPU kernel goes over a region, on small tensors, and the bounds that hold on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from interpreted import (
    DEVICE,
    LAYOUTS,
    PATTERNS,
    by_triton,  # noqa: F401
    check,
    draw,
    error,
    exact,
    marks,
    slow_if,
)

from normkit.kernels import formula, layout, operator
from normkit.kernels.backend import Want
from normkit.kernels.formula import Arguments
from normkit.kernels.triton import launch, passes, schedule
from normkit.kernels.triton.arguments import Along, Walk

# The interpreter computes with numpy, which warns where a square overflows.
pytestmark = [*marks, pytest.mark.filterwarnings("ignore:(overflow|invalid|divide|All-NaN):RuntimeWarning")]

SHAPE, ROWS = (2, 6, 9, 7), (2, 3, 1, 40)
LIMITS = {
    "walked twice": {"WHOLE": 8, "WHOLE_WEIGHTS": 8, "WHOLE_STRIDED": 8},
    "cut into parts": {"WHOLE": 8, "WHOLE_WEIGHTS": 8, "NEAR": 8, "NEAR_BETWEEN": 8, "NEAR_MANY": 8, "SHARE": 64},
    "short segments in pieces": {"WHOLE": 8, "NEAR": 8, "NEAR_BETWEEN": 8, "SHARE": 64, "SEGMENT": 16},
}


@pytest.fixture(params=LIMITS)
def limits(request, monkeypatch):
    """Limits so low that small tensors are walked in the ways of large ones."""
    set_limits(monkeypatch, request.param)
    return request.param


def set_limits(patch: pytest.MonkeyPatch, limits: str) -> None:
    for name, value in LIMITS[limits].items():
        patch.setattr(passes, name, value)
    layout.forget_plans()


def shape_for(pattern: str) -> tuple[int, ...]:
    """Few regions, each of which is a task for the interpreter."""
    return ROWS if pattern == "rows" else SHAPE


def made(
    pattern: str, shape: tuple[int, ...], memory: torch.memory_format, itemsize: int = 4, chunk: int = 256
) -> schedule.Schedule:
    x = torch.empty(shape, device="cpu").contiguous(memory_format=memory)
    plan = layout.plan_of(PATTERNS[pattern], x.shape, x.stride())
    return schedule.schedule(plan.view, plan.period, plan.inner, itemsize, chunk=chunk)


def under_limits(patterns: Iterable[str], *cases: tuple[torch.memory_format, ...]) -> list[Any]:
    """Limits, patterns, and the layouts of each case.

    Limits that lead to the schedule that others have led to make the same launches: they are slow in the interpreter.
    """
    seen: set[str] = set()
    values = []
    for pattern, memories, limits in itertools.product(patterns, cases, LIMITS):
        with pytest.MonkeyPatch.context() as patch:
            set_limits(patch, limits)
            of_all = itertools.product(memories, (2, 4), (256, schedule.CHUNK))
            key = repr([pattern, memories, *(made(pattern, shape_for(pattern), *of_one) for of_one in of_all)])
        values.append(slow_if(key in seen, limits, pattern, *(memories if len(memories) == 1 else ())))
        seen.add(key)
    layout.forget_plans()
    return values


@pytest.mark.parametrize(
    ("limits", "pattern", "memory"), under_limits(PATTERNS, *((memory,) for memory in LAYOUTS)), indirect=["limits"]
)
def test_every_walk_gives_what_the_definition_gives(monkeypatch, limits, pattern, memory):
    monkeypatch.setattr(schedule.schedule, "__defaults__", (2, 1, passes.Gaps(), 256))
    shape = shape_for(pattern)
    check(PATTERNS[pattern], shape, memory, torch.float32, affine=True)
    # In the interpreter each pattern in one of the layouts.
    if DEVICE != "cpu" or (list(PATTERNS).index(pattern) + LAYOUTS.index(memory)) % 2 == 0:
        check(PATTERNS[pattern], shape, memory, torch.bfloat16, affine=pattern != "image", center=False)


def test_the_limits_reach_every_walk_and_way_to_add_up(monkeypatch):
    seen: set[object] = set()
    for values in ({}, *LIMITS.values()):
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setattr(passes, name, value)
            for pattern, memory in itertools.product(PATTERNS, LAYOUTS):
                s = made(pattern, shape_for(pattern), memory)
                seen.add((s.forward.walk if s.forward else "parts", "forward"))
                seen.add((s.backward.walk if s.backward else "parts", s.features))
                seen.add(("flat", (s.forward or s.parts).tile.flat))
                seen.add(("whole tiles", (s.forward or s.parts).tile.even))
    assert seen >= {(walk, "forward") for walk in (Walk.WHOLE, Walk.TWICE, "parts")}
    assert seen >= {(Walk.WHOLE, along) for along in (Along.CELL, Along.R0, Along.R1, Along.OFFSET)}
    assert seen >= {(Walk.TWICE, along) for along in (Along.CELL, Along.R0)}
    assert seen >= {("parts", along) for along in (Along.CELL, Along.COLUMN, Along.R0, Along.R1)}
    assert seen >= {("flat", True), ("flat", False), ("whole tiles", True), ("whole tiles", False)}


# Bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "pattern"),
    under_limits(["batch", "group", "image", "pixel", "rows"], tuple(LAYOUTS)),
    indirect=["limits"],
)
@pytest.mark.parametrize("largest", [slow_if(True, 1e18), 3e38])
def test_values_whose_squares_exceed_the_range(limits, pattern, largest):
    """Such values are taken again, multiplied by a small power of two."""
    shape = shape_for(pattern)
    for memory, dtype, center in (
        (LAYOUTS[0], torch.float32, True),
        (LAYOUTS[1], torch.float32, False),
        (LAYOUTS[1], torch.bfloat16, True),
    ):
        x = draw(*shape, layout=memory)
        x[0, 1] *= 1e-3
        x = (x / x.abs().max() * largest).to(dtype)
        dy, w = draw(*shape, dtype=dtype, layout=memory), draw(shape[-1 if pattern == "rows" else 1])
        a = Arguments(x, w, w, PATTERNS[pattern], 1e-5, center)
        y, _, mean, std = operator.norm(a)
        grads = operator.norm_backward(dy, a._replace(mean=mean, var=std), False, Want(True, True, True))
        xe, we, dye = exact(x, w, dy)
        wide = Arguments(xe, we, we, PATTERNS[pattern], 1e-5, center)
        want, _, *moments = formula.norm(wide)
        far = 1 + (moments[0].abs() / moments[1]).max().item() if center else 1.0
        eps = torch.finfo(dtype).eps
        assert error(y, want) <= 4 * far * eps
        for got, exactly in zip((mean, std), moments, strict=True):
            if got.numel():
                assert error(got / largest, exactly / largest) <= 4 * torch.finfo(torch.float32).eps
        dx, *sums = formula.norm_backward(dye, wide, False)[:3]
        if dtype is torch.float32:  # in bfloat16 the interpreter loses gradients this small
            assert error(grads[0] * largest, dx * largest) <= 16 * far * eps
        for got, exactly in zip(grads[1:3], sums, strict=True):
            assert error(got, exactly, sums[1].abs().max().item()) <= 16 * far * 2e-7


def test_values_that_are_not_finite_spoil_their_own_region_only(limits):
    for bad in (torch.inf, -torch.inf, torch.nan):
        x = draw(*SHAPE)
        x[1, 2, 3, 4] = bad
        y = operator.norm(Arguments(x, None, None, PATTERNS["instance"], 1e-5, True)).y
        assert y[1, 2].isnan().any()
        x[1, 2] = 0
        clean = operator.norm(Arguments(x, None, None, PATTERNS["instance"], 1e-5, True)).y
        rest = torch.ones(SHAPE[:2], dtype=torch.bool, device=x.device)
        rest[1, 2] = False
        assert torch.equal(y[rest], clean[rest])


def test_an_infinite_value_under_rms_norm(limits):
    """The mean of squares is infinite, so all other values become 0, as by the definition."""
    x = draw(*SHAPE)
    x[1, 2, 3, 4] = torch.inf
    out = operator.norm(Arguments(x, None, None, PATTERNS["instance"], 1e-5, False))
    assert out.std[SHAPE[1] + 2] == torch.inf
    assert out.y[1, 2].isnan().sum() == 1
    assert (out.y[1, 2].nan_to_num() == 0).all()


@pytest.mark.parametrize(
    ("limits", "pattern", "memory"),
    # In the interpreter each pattern in one of the layouts: the test of every walk has them all.
    [
        slow_if((i + j) % 2 == 1 or bool(case.marks), *case.values)
        for i, pattern in enumerate(["batch", "instance", "group", "pixel", "rows", "image"])
        for j, memory in enumerate(LAYOUTS)
        for case in under_limits([pattern], (memory,))
    ],
    indirect=["limits"],
)
def test_a_large_mean(limits, pattern, memory):
    """The published bound: 4 eps (1 + |mean| / std)."""
    x = (1e4 + 1e-2 * draw(*shape_for(pattern))).contiguous(memory_format=memory)
    y = operator.norm(Arguments(x, None, None, PATTERNS[pattern], 1e-5, True)).y
    want, _, mean, std = formula.norm(Arguments(x.double().cpu(), None, None, PATTERNS[pattern], 1e-5, True))
    far = (1 + mean.abs() / (std.square() + 1e-5).sqrt()).max()
    assert error(y, want) <= 4 * torch.finfo(torch.float32).eps * far


# Parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["batch", "group", "rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, slow_if(True, torch.float16)])
def test_weights_of_half_precision_are_read_and_written_as_they_are(limits, pattern, dtype):
    shape = shape_for(pattern)
    x, dy = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
    size = shape[-1 if pattern == "rows" else 1]
    w, b = draw(size, dtype=dtype), draw(size, dtype=dtype)
    half, wide = (Arguments(x, s, t, PATTERNS[pattern], 1e-5, True) for s, t in ((w, b), (w.float(), b.float())))
    assert layout.ready_plan(half, None) >= 0  # no cast before the kernel
    y, _, mean, std = operator.norm(half)
    assert torch.equal(y, operator.norm(wide).y)
    plan = layout.ready_plan(half, None)
    backward = (dy, half._replace(mean=mean), plan, std, 1e-5, None, False, Want(True, True, True))
    dx, dweight, dbias, *_ = launch.norm_backward(*backward, (dtype, dtype))
    wants = operator.norm_backward(dy, wide._replace(mean=mean, var=std), False, Want(True, True, True))
    assert (dweight.dtype, dbias.dtype) == (dtype, dtype)
    for got, want in zip((dx, dweight, dbias), wants[:3], strict=True):
        # The interpreter cuts bfloat16 off, where a GPU rounds it.
        assert ((got.float() - want.float()).abs() <= torch.finfo(dtype).eps * want.float().abs()).all()


@pytest.mark.parametrize("pattern", ["batch", slow_if(True, "instance"), slow_if(True, "group"), "pixel", "rows"])
def test_gradients_that_are_not_wanted_are_not_computed(limits, pattern):
    shape = shape_for(pattern)
    x, dy = draw(*shape), draw(*shape)
    w = draw(shape[-1 if pattern == "rows" else 1])
    a = Arguments(x, w, w, PATTERNS[pattern], 1e-5, True)
    _, _, mean, std = operator.norm(a)
    a = a._replace(mean=mean, var=std)
    everything = operator.norm_backward(dy, a, False, Want(True, True, True))
    for want in [
        Want(True, False, False),
        Want(True, True, False),
        Want(False, False, True),
        Want(False, False, False),
    ]:
        got = operator.norm_backward(dy, a, False, want)
        for one, other, wanted in zip(got, everything, want, strict=True):
            assert (one is None) is not wanted
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_given_variance_that_is_slightly_negative():
    x, var = draw(*SHAPE), draw(6).abs()
    var[2] = -1e-7
    mean = draw(6)
    a = Arguments(x, None, None, PATTERNS["batch"], 1e-5, True, mean, var)
    want = formula.norm(a._replace(x=x.double().cpu(), mean=mean.double().cpu(), var=var.double().cpu())).y
    assert error(operator.norm(a).y, want) <= 1e-6
