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
        pattern, memory, dtype, gate, first, skip, residual, padded, activation, affine, convention, fixed = CASES[index]
        first = first and gate is not None
        yield index, call(
            pattern, memory, dtype, gate, first, skip, residual and not first, padded, activation, affine, convention,
            fixed,
        ), fixed  # fmt: skip


@pytest.mark.parametrize("part", [*range(4), *(pytest.param(part, marks=pytest.mark.slow) for part in range(4, 40))])
def test_what_is_fused_gives_what_the_definition_gives(walk, part):
    """A sample of all combinations, the same in every run."""
    for index, a, fixed in drawn(part + 100 * list(WALKS).index(walk), 4):
        torch.manual_seed(index)
        check_call(a, fixed)
