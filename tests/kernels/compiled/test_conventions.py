"""The compiled kernels: weights as they are stored, conventions of language models, weights in slabs, strided rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit import functional
from normkit.kernels import fastpath, formula, layout, operator
from normkit.kernels.backend import Want
from normkit.kernels.formula import Arguments
from normkit.kernels.native import native
from normkit.pattern import parse

pytestmark = pytest.mark.skipif(native().kernels is None, reason="no compiled kernels")

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *HALVES]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""A rounding of the result, times a few for sums of float32."""
# Rows in lanes, side by side, in stages and in spans; and columns, whose rows have the weights.
SHAPES = {"tiny": (37, 5), "short": (33, 64), "row": (9, 900), "long": (3, 5000), "turned": (40, 96)}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype)


def backward(a: Arguments, out: formula.Result, dy: Tensor) -> formula.Gradients:
    want = Want(True, a.weight is not None, a.bias is not None)
    source = a.x if out.sum is None else out.sum
    return operator.norm_backward(dy, a._replace(x=source, residual=None, mean=out.mean, var=out.std), False, want)


def same(mine: tuple[Tensor | None, ...], other: tuple[Tensor | None, ...]) -> None:
    for one, two in zip(mine, other, strict=True):
        assert (one is None) == (two is None)
        assert one is None or (torch.equal(one, two) and one.dtype == two.dtype)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_cast_first_rounds_as_torch_does(dtype, shape, biased):
    """Bit by bit x_hat in half precision, times the weight, plus the bias, in that precision."""
    x = drawn(*SHAPES[shape], dtype=dtype, mean=2.0)
    if shape == "turned":
        x = x.T.contiguous().T
    weight, bias = drawn(x.shape[1], seed=1), drawn(x.shape[1], seed=2) if biased else None
    a = Arguments(x, weight, bias, "... [c]", 1e-6, biased, zero_centered=True, cast_first=True)
    hat = operator.norm(a._replace(weight=None, bias=None)).y
    expected = hat * (weight + 1).to(dtype)
    if bias is not None:
        expected = expected + bias.to(dtype)
    assert torch.equal(operator.norm(a).y, expected)
    activated = operator.norm(a._replace(activation="relu")).y
    assert torch.equal(activated, expected.relu())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", HALVES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_as_they_are_stored(dtype, stored, shape):
    """The same bits as from weights that have been converted, and 1 added, before; both may differ in type."""
    x, dy = (drawn(*SHAPES[shape], dtype=dtype, seed=seed) for seed in (0, 1))
    if shape == "turned":
        x, dy = (t.T.contiguous().T for t in (x, dy))
    weight, bias = drawn(x.shape[1], dtype=stored, seed=2), drawn(x.shape[1], seed=3)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    a = Arguments(x, weight, bias, "... [c]", 1e-5, True, activation="silu", zero_centered=True)
    b = a._replace(weight=weight.to(wide) + 1, bias=bias.to(wide), zero_centered=False)
    mine, other = operator.norm(a), operator.norm(b)
    same(mine, other)
    same(backward(a, mine, dy), backward(b, other, dy))


MODULATED = {
    "tokens": ("... [c]", (3, 7, 20), (3, 1, 20)),
    "many tokens": ("... [c]", (70, 3, 20), (70, 1, 20)),
    "long": ("... [c]", (2, 30, 1200), (2, 1, 1200)),
    "heads": ("... [c]", (2, 3, 6, 8), (2, 1, 6, 8)),
    "channels last": ("b c [...]", (3, 16, 5, 5), (3, 16, 1, 1)),
    "groups": ("b (g=2 [c]) [...]", (3, 16, 5, 5), (3, 16, 1, 1)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", MODULATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_each_sample(dtype, case, masked):
    pattern, shape, varies = MODULATED[case]
    x, dy = (drawn(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    if case == "channels last":
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    channels = [level.dim for level in parse(pattern).levels(x.shape) if level.feature]
    places = [1 if dim in channels else size for dim, size in enumerate(shape)]
    mask = drawn(*places, seed=4) > -0.7 if masked else None
    a = Arguments(x, drawn(*varies, seed=2), drawn(*varies, seed=3), pattern, 1e-3, True, mask=mask)
    a = a._replace(zero_centered=True, residual=drawn(*shape, dtype=dtype, seed=5).as_strided(shape, x.stride()))
    out = operator.norm(a)
    got = backward(a, out, dy)
    wide = a._replace(x=out.sum.double(), residual=None, weight=a.weight.double(), bias=a.bias.double())
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.y.double(), formula.norm(wide).y, rtol=tolerance, atol=tolerance)
    moments = {"mean": out.mean.double(), "var": out.std.double()}
    expected = formula.norm_backward(dy.double(), wide._replace(**moments), False)
    for one, two in ((got.x, expected.x), (got.weight, expected.weight), (got.bias, expected.bias)):
        scale = float(two.abs().max())
        torch.testing.assert_close(one.double().reshape(two.shape), two, rtol=0.0, atol=2 * tolerance * (1 + scale))


def test_slabs_are_used():
    """Otherwise the test above compares other walks than it says."""
    x = torch.empty(3, 7, 20)
    plan = layout.plan_of("... [c]", x.shape, x.stride(), (True, False, True))
    assert (plan.slabs, plan.period) == (3, 20)


HEADS = [(4, 8), (12, 64), (3, 130), (2, 3000)]


@pytest.mark.parametrize("fusion", [{}, {"activation": "gelu"}, {"residual": True}, {"mask": True}], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows_give_the_bits_of_dense_ones(dtype, heads, fusion):
    """Queries sliced out of a fused projection, in two orders of memory."""
    fused = drawn(2, 5, 3, *heads, dtype=dtype)
    for x in (fused[:, :, 1], fused[:, :, 2].transpose(1, 2)):
        dense = torch.empty_like(x).copy_(x)
        assert layout.plan_of("... [c]", x.shape, x.stride()).rows is not None
        options = dict(fusion)
        if "residual" in options:
            options["residual"] = torch.empty_like(x).copy_(drawn(*x.shape, dtype=dtype, seed=4))
        if "mask" in options:
            options["mask"] = drawn(*x.shape[:-1], 1, seed=5) > -0.5
        weight, bias, dy = drawn(heads[1], seed=1), drawn(heads[1], seed=2), torch.empty_like(x)
        dy.copy_(drawn(*x.shape, dtype=dtype, seed=3))
        a = Arguments(x, weight, bias, "... [c]", 1e-5, True, **options)
        mine, other = operator.norm(a), operator.norm(a._replace(x=dense))
        same(mine, other)
        assert mine.y.stride() == dense.stride()
        same(backward(a, mine, dy), backward(a._replace(x=dense), other, dy))


@pytest.mark.parametrize("cast", ["after", "before"])
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fast_path_knows_conventions_and_strided_rows(dtype, zero_centered, cast):
    """The second call of a shape; the first one goes through Python."""
    x = drawn(2, 5, 3, 4, 16, dtype=dtype)[:, :, 1].requires_grad_()
    weight = drawn(16, dtype=dtype, seed=1).requires_grad_()
    both = []
    for _ in range(2):
        y = functional.rms_norm(x, (16,), weight, 1e-6, cast=cast, zero_centered=zero_centered)
        both.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, weight))))
    same(both[0], both[1])
    assert [t.stride() for t in both[1]] == [t.stride() for t in both[0]]
    if fastpath.in_use:
        assert y.grad_fn.name() == "NormkitNormalizeBackward"
