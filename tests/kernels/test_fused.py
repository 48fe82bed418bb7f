"""Padding left out, a residual added, an activation applied: kernels against the definition, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from normkit.kernels import formula, operator
from normkit.kernels.formula import ACTIVATIONS, Arguments
from normkit.kernels.native import native

PATTERNS = {
    "batch": "[b] c [...]",
    "instance": "b c [...]",
    "group": "b (g=2 [c]) [...]",
    "image": "b [c] [...]",
    "pixel": "b [c] ...",
}
SHAPES = [(3, 8, 5, 7), (2, 6, 40, 33), (4, 64, 9, 3), (1, 4, 200, 200), (2, 130, 8, 20)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(native().kernels is None, reason="no compiled kernels")


def worst(got: Tensor, want: Tensor) -> float:
    """The error in units of the largest entry, at least 1."""
    return ((got.double() - want).abs().max() / max(1.0, want.abs().max().item())).item()


def run_with_moments(a: Arguments) -> formula.Result:
    return operator.run(a, moments=True)


def check(pattern, shape, layout, dtype, activation, residual, padded, affine, fixed, mask=None):
    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes).to(dtype)

    x = (2 * torch.randn(shape) + 3 * torch.randn(1, shape[1], 1, 1)).to(dtype).contiguous(memory_format=layout)
    leaves: dict[str, Tensor] = {"x": x}
    if padded:
        mask = torch.rand(shape[0], 1, *shape[2:]) > 0.4 if mask is None else mask
        leaves["x"] = torch.where(mask, x, torch.tensor(torch.nan, dtype=dtype)).contiguous(memory_format=layout)
    if residual:
        leaves["residual"] = draw(*shape).contiguous(memory_format=layout)
    if affine:
        leaves["weight"], leaves["bias"] = draw(shape[1]), draw(shape[1])
    stat = torch.float64 if dtype is torch.float64 else torch.float32
    mean, std = (torch.randn(shape[1], dtype=stat), torch.rand(shape[1], dtype=stat) + 0.5) if fixed else (None, None)

    def run(call, given):
        leaf = {name: t.clone().requires_grad_() for name, t in given.items()}
        moments = [t if t is None or call is run_with_moments else t.double() for t in (mean, std)]
        parameters = (leaf.get("weight"), leaf.get("bias"))
        extra = (leaf.get("residual"), mask, activation)
        out = call(Arguments(leaf["x"], *parameters, pattern, 1e-5, True, *moments, *extra))
        torch.manual_seed(1)
        ends = [out.y, out.sum] if residual else [out.y]
        up = [torch.randn(shape).to(dtype).to(end.dtype) for end in ends]
        return out, torch.autograd.grad(ends, list(leaf.values()), up)

    ours, grads = run(run_with_moments, leaves)
    exact, exact_grads = run(formula.norm, {name: t.nan_to_num().double() for name, t in leaves.items()})
    eps = torch.finfo(dtype).eps
    # y is one rounding from exact, of values up to 1 + |mean| / std = 10 or so away from the moments' own; a residual
    # in half precision is rounded when it is added, and so enters everything.
    bound = eps * (200 if residual and dtype.itemsize == 2 else 40)
    assert ours.y.stride() == x.stride()
    assert worst(ours.y, exact.y) <= bound
    if padded:
        assert not ours.y.masked_select(~mask).any()
    if not fixed:
        assert worst(ours.std, exact.std) <= bound
        # Of 40,000 regions of four elements one is nearly constant: rounding is magnified by 1 / std, torch's as well.
        bound *= max(1.0, 0.1 / exact.std.min().item())
    for got, want in zip(grads, exact_grads, strict=True):
        # Rounded inputs may fall on the other side of a kink: few do, but each by as much as a gradient is large.
        far = (got.double() - want).abs() > 2 * bound * max(1.0, want.abs().max().item())
        if activation in ("relu", "leaky_relu") and far.ndim == 4:
            assert far.float().mean() < 2e-3
        elif activation not in ("relu", "leaky_relu"):
            assert not far.any()


CASES = list(
    itertools.product(
        PATTERNS.values(), SHAPES, LAYOUTS, DTYPES, ACTIVATIONS, [False, True], [False, True], [False, True]
    )
)


@pytest.mark.parametrize("part", range(4))
def test_kernels_give_what_the_definition_gives(part):
    """A sample of all combinations, the same in every run."""
    gen = torch.Generator().manual_seed(part)
    for index in torch.randperm(len(CASES), generator=gen)[:25].tolist():
        torch.manual_seed(index)
        pattern, *rest = CASES[index]
        check(pattern, *rest, fixed=pattern == PATTERNS["batch"] and index % 3 == 0)


@pytest.mark.parametrize("pattern", PATTERNS.values())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_runs_of_real_elements_and_of_padding(pattern, layout):
    """As lengths make them: blocks that are all real pass as without a mask, beside some of padding and mixed ones."""
    for channels, dtype, activation in (
        (16, torch.float32, "none"),
        (66, torch.bfloat16, "silu"),
        (6, torch.float64, "none"),
    ):
        torch.manual_seed(channels)
        mask = torch.arange(40 * 33).view(1, 1, 40, 33) < torch.tensor([40 * 33, 701, 0, 1319]).view(4, 1, 1, 1)
        residual = dtype is torch.float64
        check(pattern, (4, channels, 40, 33), layout, dtype, activation, residual, True, True, False, mask)


@pytest.mark.slow
def test_kernels_give_what_the_definition_gives_in_every_combination():
    for index, (pattern, *rest) in enumerate(CASES):
        torch.manual_seed(index)
        check(pattern, *rest, fixed=pattern == PATTERNS["batch"] and index % 3 == 0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_agree_with_torch_everywhere(activation):
    z = torch.cat([torch.linspace(-30, 30, 4096), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 200.0, -200.0])])
    x, one = z.view(1, 1, -1), torch.ones(1)
    for dtype, unit in ((torch.float32, 4), (torch.float64, 4)):
        leaf = x.to(dtype).requires_grad_()
        moments = (0 * one.to(dtype), one.to(dtype))
        y = operator.run(Arguments(leaf, None, None, "[b] c [...]", 0.0, True, *moments, activation=activation)).y
        exact = x.to(dtype).double().requires_grad_()
        want = ACTIVATIONS[activation](exact)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
        (exact_slope,) = torch.autograd.grad(want.sum(), exact)
        eps = torch.finfo(dtype).eps
        # A few roundings of a number up to max(1, |z|).
        scale = z.double().abs().clamp(min=1).view_as(want)
        assert ((y.double() - want).abs() / scale).max() <= unit * eps
        kink = activation in ("relu", "leaky_relu")
        away = (exact != 0) | (not kink)
        assert ((slope.double() - exact_slope).abs() / scale)[away].max() <= 2 * unit * eps


@pytest.mark.parametrize("pattern", PATTERNS.values())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_as_far_as_a_first_value_that_misleads(pattern, layout):
    """The value that stands for padding is taken from the first real elements; here they say nothing about the rest."""
    x = torch.randn(4, 8, 30, 20) + 50
    x[:, :, :3] += 1000
    mask = torch.rand(4, 1, 30, 20) > 0.5
    x = x.contiguous(memory_format=layout)
    args = (None, None, pattern, 1e-5, True)
    got = run_with_moments(Arguments(x, *args, mask=mask))
    want = formula.norm(Arguments(x.double(), *args, mask=mask))
    ratio = (want.mean.abs() / want.std.clamp(min=1e-3)).max().item()
    bound = 4 * torch.finfo(torch.float32).eps * (1 + ratio)
    assert worst(got.y, want.y) <= bound
    assert ((got.std - want.std).abs() / want.std).max() <= bound


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch 2.15's opcheck
@pytest.mark.parametrize("name", ["norm", "norm_backward"])
def test_opcheck(name):
    x = torch.randn(2, 4, 6, requires_grad=True)
    r, w, b = (torch.randn(s, requires_grad=True) for s in ((2, 4, 6), (4,), (4,)))
    mask = torch.rand(2, 1, 6) > 0.3
    ops = torch.ops.normkit
    args = (x, w, b, "b (g=2 [c]) [...]", 1e-5, True, None, None, r, mask, "silu")
    if name == "norm":
        torch.library.opcheck(ops.norm.default, args)
        return
    _, total, mean, std = (t.detach() for t in ops.norm.default(*args))
    dy, dsum = (torch.randn(2, 4, 6, requires_grad=True) for _ in range(2))
    rest = ("b (g=2 [c]) [...]", 1e-5, True, mean, std, dsum, mask, "silu", None, None, "none", False, False, False)
    wanted = (False, True, True, True, False, False)
    torch.library.opcheck(ops.norm_backward.default, (dy, total.requires_grad_(), w, b, *rest, *wanted))


@pytest.mark.parametrize("fixed", [False, True])
def test_first_and_second_derivatives(fixed):
    x, r = (torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.rand(2, 1, 5) > 0.3
    moments = [torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5] if fixed else [None, None]

    def call(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        out = operator.run(Arguments(x, w, b, "[b] c [...]", 1e-5, True, *moments, r, mask, "tanh"))
        return out.y, out.sum

    assert torch.autograd.gradcheck(call, (x, r, w, b))
    assert torch.autograd.gradgradcheck(call, (x, r, w, b))
