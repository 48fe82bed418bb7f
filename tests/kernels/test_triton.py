"""The norms of the GPU kernels: every walk and flag against the definition, on a GPU or interpreted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from interpreted import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    PATTERNS,
    SHAPES,
    by_triton,  # noqa: F401
    check,
    draw,
    error,
    exact,
    marks,
    slow_if,
)
from torch import Tensor

import contract
from cases import CASES
from normkit.errors import ShapeError
from normkit.kernels import formula, operator
from normkit.kernels.backend import Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import ACTIVATIONS, Arguments
from normkit.kernels.triton import passes
from normkit.pattern import parse

pytestmark = marks


QUICK = {SHAPES[1]: ("batch", "group", "mixed"), SHAPES[3]: ("batch",)}


@pytest.mark.parametrize(
    ("shape", "layout", "pattern"),
    [
        # In the interpreter each pattern in one of the layouts.
        slow_if(pattern not in QUICK.get(shape, PATTERNS) or (i + j) % 2 == 1, shape, layout, pattern)
        for shape in SHAPES
        for i, layout in enumerate(LAYOUTS)
        for j, pattern in enumerate(PATTERNS)
    ],
)
def test_kernels_give_what_the_definition_gives(shape, layout, pattern):
    if DEVICE == "cpu" and pattern in ("rows", "pixel") and shape == SHAPES[3]:
        pytest.skip("thousands of programs, which the interpreter takes one after another")
    for index, dtype in enumerate(DTYPES if shape == SHAPES[0] else DTYPES[:3:2]):
        check(PATTERNS[pattern], shape, layout, dtype, affine=index != 2, center=index != 3)


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr(passes, "FAR", 0)
    # In the interpreter each pattern in one of the layouts: offsets are computed in the same way in all.
    pairs = list(itertools.product(("batch", "group", "rows", "mixed", "all"), LAYOUTS))
    for pattern, layout in pairs if DEVICE != "cpu" else (pair for i, pair in enumerate(pairs) if (i + i // 2) % 2):
        check(PATTERNS[pattern], SHAPES[1], layout, torch.float32, affine=True)


# What is fused ---------------------------------------------------------------------------------------------


CASES_OF_FUSED = list(
    itertools.product(
        ("batch", "instance", "group", "image", "pixel", "mixed"),
        [(3, 8, 5, 7), (2, 6, 40, 33), (1, 4, 100, 100), (2, 64, 9, 3)],
        LAYOUTS,
        DTYPES[:3],
        ACTIVATIONS,
        [False, True],
        [False, True],
        [False, True],
    )
)


@pytest.mark.parametrize("part", [slow_if(part >= 3, part) for part in range(18)])
def test_what_is_fused_gives_what_the_definition_gives(part):
    """A sample of all combinations, the same in every run."""
    gen = torch.Generator().manual_seed(part)
    for index in torch.randperm(len(CASES_OF_FUSED), generator=gen, device="cpu")[:5].tolist():
        torch.manual_seed(index)
        check_fused(*CASES_OF_FUSED[index], fixed=index % 4 == 0)


def check_fused(pattern, shape, layout, dtype, activation, residual, padded, affine, fixed):
    x = (2 * draw(*shape) + 1).to(dtype).contiguous(memory_format=layout)
    stat = arithmetic_dtype(dtype)
    levels = parse(PATTERNS[pattern]).levels(shape)
    features = math.prod(level.size for level in levels if level.feature)
    cells = math.prod(level.size for level in levels if not level.reduced)
    mask = None
    if padded:
        lead = (1 if pattern == "instance" else shape[0], 1)
        mask = torch.rand(*lead, *shape[2:], device=DEVICE) > 0.4
        # Padded values do not reach any result.
        x = torch.where(mask, x, torch.tensor(torch.nan, dtype=dtype)).contiguous(memory_format=layout)
    extra = draw(*shape, dtype=dtype, layout=layout) if residual else None
    w, b = (draw(features, dtype=stat), draw(features, dtype=stat)) if affine else (None, None)
    mean, std = (draw(cells, dtype=stat), draw(cells, dtype=stat).abs() + 0.5) if fixed else (None, None)
    dy, dsum = draw(*shape, dtype=dtype, layout=layout), draw(*shape, dtype=dtype, layout=layout) if residual else None
    rest = (PATTERNS[pattern], 1e-5, True)
    whole = None if mask is None else mask.expand(shape[0], *mask.shape[1:])
    out = operator.norm(Arguments(x, w, b, *rest, mean, std, extra, whole, activation))
    source = out.sum if residual else x
    moments = (mean, std) if fixed else (out.mean, out.std)
    call = Arguments(source, w, b, *rest, *moments, dsum, whole, activation)
    got = operator.norm_backward(dy, call, fixed, Want(True, affine, affine))

    se, we, be, me, sde, dye, dse = exact(source.nan_to_num(), w, b, mean, std, dy, dsum)
    on_cpu = None if whole is None else whole.cpu()
    leaves = [t.requires_grad_() for t in (se, we, be) if t is not None]
    want = formula.norm(Arguments(se, we, be, *rest, me, sde, None, on_cpu, activation))
    grads = list(torch.autograd.grad(want.y, leaves, dye))
    grads[0] = grads[0] if dse is None else grads[0] + dse
    eps, fine = torch.finfo(dtype).eps, torch.finfo(stat).eps
    if residual:
        assert error(torch.where(whole, source, 0) if padded else source,
                     torch.where(whole, x + extra, 0) if padded else x + extra) <= eps  # fmt: skip
    if padded:
        assert not out.y.masked_select(~whole).any()
    if not fixed:
        # Where all is padding, the deviation counts as 1.
        assert error(out.std, want.std) <= 16 * fine
        assert error(out.mean, want.mean) <= 16 * fine
    far = ((1 + want.mean.abs()) / (want.std.square() + 1e-5).sqrt()).max().item() if not fixed else 8
    near = fine * far + eps
    assert error(out.y, want.y) <= 4 * near
    kink = activation in ("relu", "leaky_relu")
    for one, other in zip((t for t in got if t is not None), grads, strict=True):
        off = (one.double().cpu() - other).abs() > 32 * near * max(1.0, other.abs().max().item())
        # An input may fall on the other side of a kink; then its own gradient differs, and sums by little.
        if kink and one.shape == x.shape:
            assert off.double().mean() < 2e-3
        elif not kink:
            assert not off.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_agree_with_torch_everywhere(activation):
    z = torch.cat([torch.linspace(-30, 30, 1024), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 200.0, -200.0])]).to(DEVICE)
    x, one = z.view(1, 1, -1), torch.ones(1, device=DEVICE)
    for dtype in (torch.float32, torch.float64):
        moments = (0 * one.to(dtype), one.to(dtype))
        call = Arguments(x.to(dtype), None, None, "[b] c [...]", 0.0, True, *moments, activation=activation)
        y = operator.norm(call).y
        ones = torch.ones_like(x, dtype=dtype)
        dx, *_ = operator.norm_backward(ones, call, True, Want(True, False, False))
        wide = x.to(dtype).double().cpu().requires_grad_()
        want = ACTIVATIONS[activation](wide)
        (slope,) = torch.autograd.grad(want.sum(), wide)
        eps = torch.finfo(dtype).eps
        # A few roundings of a number up to max(1, |z|); the exponential's argument may be rounded, too.
        scale = wide.detach().abs().clamp(min=1)
        assert ((y.double().cpu() - want).abs() / scale).max() <= 8 * eps
        away = (wide != 0) | (activation not in ("relu", "leaky_relu"))
        assert ((dx.double().cpu() - slope).abs() / scale)[away].max() <= 16 * eps


# Promises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case.elementwise], ids=str)
def test_the_contract_of_every_method(case):
    for layout in ("contiguous", "channels_last") if len(case.shape) == 4 else ("contiguous", "inside"):
        contract.values(case, "float32", layout)
        contract.values(case, "bfloat16 beside float32", layout)
    # What comes from above is brought into the layout of x before it reaches the kernels, the same for all of them.
    contract.gradients(case, "float32", "contiguous", ("permuted", "of a sum") if DEVICE == "cpu" else None)
    contract.empty(case)
    if case.torch:
        contract.running_statistics(case)


SMALL, LARGE = (5, 8, 5, 7), (3, 8, 24, 24)


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        slow_if(shape == LARGE and pattern in ("pixel", "rows"), shape, pattern)
        for shape in (SMALL, LARGE)
        for pattern in ("instance", "group", "image", "pixel", "rows")
    ],
)
def test_bits_of_a_sample_do_not_depend_on_its_batch(shape, pattern):
    for layout in LAYOUTS:
        x, dy = draw(*shape, layout=layout), draw(*shape, layout=layout)
        features = math.prod(level.size for level in parse(PATTERNS[pattern]).levels(shape) if level.feature)
        w = draw(features)

        def call(x: Tensor, dy: Tensor, w: Tensor = w) -> tuple[Tensor, Tensor]:
            a = Arguments(x, w, w, PATTERNS[pattern], 1e-5, True)
            y, _, mean, std = operator.norm(a)
            return y, operator.norm_backward(dy, a._replace(mean=mean, var=std), False, Want(True, False, False))[0]

        together = call(x, dy)
        for at in (slice(0, 1), slice(1, 3)):
            for alone, part in zip(call(x[at], dy[at]), together, strict=True):
                assert torch.equal(alone, part[at])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["batch", "instance", "group", "pixel"])
def test_a_large_mean_and_outliers(pattern, layout):
    """The published bound: 4 eps (1 + |mean| / std)."""
    for x in (1e4 + 1e-2 * draw(2, 8, 60, 60), torch.where(draw(2, 8, 60, 60) > 3, 1e6, 1.0)):
        x = x.contiguous(memory_format=layout)
        y = operator.norm(Arguments(x, None, None, PATTERNS[pattern], 1e-5, True)).y
        want, _, mean, std = formula.norm(Arguments(x.double().cpu(), None, None, PATTERNS[pattern], 1e-5, True))
        far = (1 + mean.abs() / (std.square() + 1e-5).sqrt()).max()
        assert error(y, want) <= 4 * torch.finfo(torch.float32).eps * far


def test_views_that_are_not_aligned():
    flat = draw(2 * 8 * 35 + 1)
    x = flat[1:].view(2, 8, 5, 7)
    for pattern in ("batch", "group"):
        a = Arguments(x, None, None, PATTERNS[pattern], 1e-5, True)
        y, _, mean, std = operator.norm(a)
        assert torch.equal(y, operator.norm(a._replace(x=x.clone())).y)
        dx = operator.norm_backward(x, a._replace(mean=mean, var=std), False, Want(True, False, False))[0]
        assert dx.shape == x.shape


def test_a_weight_of_another_length_is_refused():
    x, w = draw(2, 8, 5), draw(7)
    with pytest.raises(ShapeError, match="weight must have 8 elements for this region, got 7"):
        operator.norm(Arguments(x, w, None, "[b] c [...]", 1e-5, True))
    with pytest.raises(ShapeError, match="std must have 8 elements for this region, got 7"):
        operator.norm(Arguments(x, None, None, "[b] c [...]", 1e-5, True, draw(8), w))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_calls_are_captured_into_a_graph():
    x, w = draw(64, 8, 5, 7), draw(8)

    def call() -> Tensor:
        a = Arguments(x, w, w, PATTERNS["batch"], 1e-5, True)
        y, _, mean, std = operator.norm(a)
        return operator.norm_backward(y, a._replace(mean=mean, var=std), False, Want(True, True, True))[0]

    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    x.copy_(draw(64, 8, 5, 7))
    graph.replay()
    assert torch.equal(captured, call())
