"""The operators: registration, shapes under tracing, gradients, and what the kernels promise beyond right numbers."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from normkit.errors import ArgumentError, DtypeError, PatternError, ShapeError
from normkit.functional import batch_norm, group_norm, layer_norm, layer_norm2d, normalize
from normkit.functional.call.running import Running, update
from normkit.kernels import formula
from normkit.kernels.formula import Arguments
from normkit.kernels.native import native

PATTERNS = ["[b] c [...]", "b [c ...]", "b [c] ...", "b c [...]", "b (g=2 [c]) [...]", "[b] c [h] w"]
OPS = torch.ops.normkit


def worst(got, want):
    """The largest error, as a share of the largest value (of 1, where that is smaller)."""
    return ((got.double() - want).abs().max() / want.abs().max().clamp(min=1)).item()


def sample(*shape, dtype=torch.float64, grad=True, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def test_the_compiled_kernels_are_in_use():
    assert native().kernels is not None, native().reason


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch 2.15's opcheck
@pytest.mark.parametrize(
    ("pattern", "dtype"),
    # Every pattern in one of the dtypes: what tracing has to know of a pattern does not depend on the dtype.
    [
        pytest.param(pattern, dtype, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, pattern in enumerate(PATTERNS)
        for j, dtype in enumerate((torch.float32, torch.bfloat16))
    ],
)
def test_opcheck(pattern, dtype):
    x, w, b = sample(3, 4, 5, 6, dtype=dtype), sample(4, dtype=dtype), sample(4, dtype=dtype)
    y, _, mean, std = OPS.norm.default(x.detach(), w.detach(), b.detach(), pattern, 1e-5, True)
    torch.library.opcheck(OPS.norm.default, (x, w, b, pattern, 1e-5, True))
    torch.library.opcheck(OPS.norm.default, (x, None, None, pattern, 1e-5, False))
    torch.library.opcheck(OPS.norm.default, (x, w, b, pattern, 1e-5, True, mean, std))
    moments = (mean, std, None, None, "none", None, None, "none", False, False, False, False)
    args = (y, x.detach(), w.detach(), None, pattern, 1e-5, True, *moments, True, True, True, False, False)
    torch.library.opcheck(OPS.norm_backward.default, args)


def test_the_compiled_operators_do_what_their_schema_says():
    """They write to no argument and return no alias; tracing and gradients belong to the operators above them."""
    kernels, only = native().kernels, ("test_schema",)
    x, w = torch.randn(6, 8), torch.randn(8)
    plan = kernels.plan(6, 1, 1, 8, 8, 1, False, 1, 0, 0, 0)
    _, mean, std = kernels.normalize(x, w, w, plan, 1e-5, 1)
    torch.library.opcheck(kernels.normalize, (x, w, w, plan, 1e-5, 1), test_utils=only)
    torch.library.opcheck(kernels.infer, (x, w, w, plan, 1e-5, 1), test_utils=only)
    torch.library.opcheck(kernels.standardize, (x, mean, std, w, w, plan, 1e-5, 1), test_utils=only)
    args = (x, x, mean, std, w, plan, 1e-5, 1, False, True, True, True)
    torch.library.opcheck(kernels.backward, args, test_utils=only)
    torch.library.opcheck(kernels.move_running, (mean.clone(), std.clone(), mean, std, 8, 0.1), test_utils=only)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("center", [True, False])
def test_first_and_second_derivatives(pattern, center):
    x, w, b = sample(2, 4, 3, 2), sample(4, seed=1), sample(4, seed=2)

    def call(x, w, b):
        return OPS.norm.default(x, w, b, pattern, 1e-3, center)[0]

    assert gradcheck(call, (x, w, b), fast_mode=True)
    assert gradgradcheck(call, (x, w, b), fast_mode=True)


def test_moments_are_differentiable_outputs():
    x = sample(3, 4, 5)

    def call(x):
        y, _, mean, std = OPS.norm.default(x, None, None, "b [c] ...", 1e-3, True)
        return y, mean, std

    assert gradcheck(call, (x,))


def test_given_moments_are_differentiable_inputs():
    x, mean, std, w = sample(3, 4, 5), sample(4, seed=1), sample(4, seed=2).detach().abs().add(0.5), sample(4, seed=3)
    args = (x, mean, std.requires_grad_(), w)
    assert gradcheck(lambda x, m, s, w: OPS.norm.default(x, w, None, "[b] c [...]", 1e-3, True, m, s)[0], args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [8, 40, 256, 3000])
def test_a_row_with_given_moments_has_the_gradient_of_a_linear_map(n, dtype):
    """Given moments are constants for x, so dx = dy * weight / sqrt(var + eps), however long the row."""
    x, dy = sample(20, n, dtype=dtype), sample(20, n, dtype=dtype, grad=False, seed=1)
    mean, w = sample(20, dtype=torch.float32, seed=2), sample(n, dtype=torch.float32, seed=3)
    var = torch.linspace(0.5, 2, 20)
    OPS.norm.default(x, w, None, "b [c]", 1e-5, True, mean.detach(), var)[0].backward(dy)
    want = dy.double() * w.double() / (var.double() + 1e-5).sqrt()[:, None]
    assert worst(x.grad, want) <= torch.finfo(dtype).eps


def test_eager_calls_and_operator_calls_are_the_same():
    x, w = sample(3, 4, 5, dtype=torch.float32), sample(4, dtype=torch.float32)
    fast = normalize(x, "b [c] ...", w)
    slow = OPS.norm.default(x, w, None, "b [c] ...", 1e-5, True)[0]
    assert torch.equal(fast, slow)
    for one, other in zip(
        torch.autograd.grad(fast.sum(), (x, w)), torch.autograd.grad(slow.sum(), (x, w)), strict=True
    ):
        assert torch.equal(one, other)


SHAPES = [(7, 6, 11, 13), (2, 64, 17, 9), (40, 6, 3, 1), (3, 4, 300, 120), (1, 2, 70000, 1), (2100, 70, 1, 1)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernels_agree_with_the_reference(shape, layout, pattern):
    """Sizes that cross every block, tile, strip and chunk of the kernels, forward and backward, in fp32.

    y: the published bound, 4 eps (1 + |mean| / std), relative to the largest |y|. Gradients are built from the
    same x_hat, so its conditioning bounds them too, and sum up to 70,000 products: another factor of 4 for that.
    """
    gen = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape, generator=gen) + 3)
    w, b = torch.randn(shape[1], generator=gen), torch.randn(shape[1], generator=gen)
    dy = torch.randn(shape, generator=gen)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b)]
    y = normalize(leaves[0], pattern, leaves[1], leaves[2])
    got = torch.autograd.grad(y, leaves, dy)
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    y64, _, mean, std = formula.norm(Arguments(*exact, pattern, 1e-5, True))
    want = torch.autograd.grad(y64, exact, dy.double())
    bound = 4 * torch.finfo(torch.float32).eps * (1 + (mean.abs() / (std + 1e-5**0.5)).max().item())
    assert y.stride() == x.stride()
    assert worst(y, y64) <= bound
    for one, other in zip(got, want, strict=True):
        assert worst(one, other) <= 4 * bound


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 2, 70000, 3), (64, 6, 30, 30), (5, 64, 40, 41), (2, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bits_do_not_depend_on_threads_nor_on_the_run(shape, layout, pattern, threads):
    gen = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape, generator=gen)).requires_grad_()
    w, dy = torch.randn(shape[1], generator=gen).requires_grad_(), torch.randn(shape, generator=gen)

    def run(n):
        threads(n)
        y = normalize(x, pattern, w)
        return [y, *torch.autograd.grad(y, (x, w), dy)]

    first = run(1)
    for again in (run(1), run(2), run(3), run(8)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["b [c ...]", "b [c] ...", "b c [...]", "b (g=2 [c]) [...]"])
def test_a_sample_has_the_same_bits_in_every_batch(layout, pattern):
    x = torch.randn(9, 6, 21, 17, generator=torch.Generator().manual_seed(0))
    w = torch.randn(6, generator=torch.Generator().manual_seed(1))
    whole = normalize(LAYOUTS[layout](x), pattern, w)
    for part in (slice(0, 1), slice(4, 5), slice(3, 8)):
        if layout == "reversed":
            continue  # there the batch is innermost in memory, so a sample's neighbours do change the walk
        assert torch.equal(normalize(LAYOUTS[layout](x[part]), pattern, w), whole[part])


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [("b [c]", (70, 3)), ("b [c]", (70, 8)), ("b c [...]", (3, 6, 4, 4)), ("b [c] ...", (2, 5, 3, 70))],
)
def test_a_neighbour_out_of_range_changes_no_bits(pattern, shape):
    """Squares of 1e30 leave float32 and are summed again in double: for that statistic, not for those beside it."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wild = x.clone()
    wild[0] *= 1e30
    calm, other = (normalize(leaf.requires_grad_(), pattern) for leaf in (x, wild))
    assert torch.equal(other[1:], calm[1:])
    dy = torch.randn(shape)
    assert torch.equal(torch.autograd.grad(other, wild, dy)[0][1:], torch.autograd.grad(calm, x, dy)[0][1:])


@pytest.mark.parametrize("n", [2, 3, 7, 16])
@pytest.mark.parametrize(
    ("mean", "scale", "eps"), [(0, 1, 1e-5), (1e4, 1, 1e-5), (0, 1e30, 1e-5), (0, 1e-25, 0)], ids=str
)
def test_rows_of_a_few_elements(n, mean, scale, eps):
    """They are computed in float32, sixteen at once. Here are one block, several, and a last group that is not full."""
    x = (torch.randn(1500, n, generator=torch.Generator().manual_seed(0)) * scale + mean).requires_grad_()
    weight, bias, dy = sample(n, dtype=torch.float32), sample(n, dtype=torch.float32), sample(1500, n).float()
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want, _, means, stds = formula.norm(Arguments(*exact, "b [c]", eps, True))
    bound = 4 * torch.finfo(torch.float32).eps * (1 + means.abs() / stds).view(-1, 1)
    got = normalize(x, "b [c]", weight, bias, eps=eps)
    assert ((got.double() - want).abs() / bound).max() <= want.abs().max()
    # A gradient of x is of the size of weight * dy / std. In the sums over rows, errors add up as in a random walk.
    ours = torch.autograd.grad(got, (x, weight, bias), dy)
    theirs = torch.autograd.grad(want, exact, dy.double())
    size, walk = (weight.abs().max() * dy.abs().max()).item(), bound.square().sum().sqrt()
    for g, h, of in zip(ours, theirs, (bound / stds.view(-1, 1), walk, walk), strict=True):
        assert ((g.double() - h).abs() <= of * size).all()
    part = normalize(x[700:719].detach(), "b [c]", weight, bias, eps=eps)
    assert torch.equal(part, got[700:719])


@pytest.mark.parametrize("shape", [(200, 165), (200, 777), (3, 5000)])
def test_squares_of_half_precision_that_underflow(shape):
    """Squares of 1e-30 are 0 in float32, so they cannot judge a mean: the kernels looked for a better one forever."""
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-30).bfloat16()
    want = (x.double() - x.double().mean(1, keepdim=True)) / 1e-5**0.5
    torch.testing.assert_close(normalize(x, "b [c]").double(), want, rtol=2**-8, atol=want.abs().max().item() * 2**-8)


def test_a_plan_that_does_not_cover_the_tensor_is_refused():
    kernels, call = native().kernels, Arguments(torch.randn(4, 8), None, None, "b [c]", 1e-5, True)
    with pytest.raises(RuntimeError, match="the plan does not cover the tensor"):
        kernels.norm(call, kernels.plan(4, 1, 1, 9, 9, 1, False, 1, 0, 0, 0), None, 1e-5, None, True)
    with pytest.raises(RuntimeError, match="no plan -1"):
        kernels.norm(call, -1, None, 1e-5, None, True)
    call = call._replace(weight=torch.ones(7))
    with pytest.raises(RuntimeError, match="weight must be contiguous"):
        kernels.norm(call, kernels.plan(4, 1, 1, 8, 8, 1, False, 1, 0, 0, 0), None, 1e-5, None, True)


def test_running_statistics_move_the_same_way_without_the_kernels(monkeypatch):
    mean, std = torch.randn(3, 5), torch.rand(3, 5)
    got, want = [[torch.ones(5), torch.full((5,), 2.0)] for _ in range(2)]
    update(Running(*got, 7, 0.3), mean.view(-1), std.view(-1))
    monkeypatch.setattr("normkit.functional.call.running.is_watched", lambda _: True)
    update(Running(*want, 7, 0.3), mean.view(-1), std.view(-1))
    # Both round a handful of numbers near 1.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_moving_running_statistics_counts_as_a_change_in_place():
    mean, var = torch.zeros(3), torch.ones(3)
    x = torch.randn(4, 3, requires_grad=True)
    y = batch_norm(x, mean, var)
    batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_checkpointed_step_updates_running_statistics_once():
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        mean, var = torch.zeros(3), torch.ones(3)
        x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0)).add(5).requires_grad_()
        checkpoint(lambda x: batch_norm(x, mean, var, training=True), x, use_reentrant=reentrant).sum().backward()  # noqa: B023
        torch.testing.assert_close(mean, 0.1 * x.detach().mean((0, 2)))


def test_messages_say_rule_value_and_remedy():
    x = torch.randn(2, 6, 4)
    with pytest.raises(DtypeError, match=r"defined for float64.*got torch.int64: convert the input first"):
        layer_norm(torch.ones(2, 3, dtype=torch.int64), (3,))
    with pytest.raises(ArgumentError, match=r"eps must be a number, got nan in layer_norm2d: use 1e-5"):
        layer_norm2d(x, eps=float("nan"))
    with pytest.raises(ShapeError, match=r"weight of layer_norm2d must have shape \(6,\).*got \(5,\)"):
        layer_norm2d(x, torch.ones(5))
    with pytest.raises(DtypeError, match=r"weight of group_norm must have the input's dtype torch.float32"):
        group_norm(x, 2, torch.ones(6, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"4 groups for 6 channels: the nearest that does is 3"):
        group_norm(x, 4)
    with pytest.raises(PatternError, match=r"a weight varies over the axes whose name starts with c"):
        normalize(x, "b x [...]", torch.ones(6))
    mean, var = torch.zeros(6), torch.ones(6)
    with pytest.raises(ShapeError, match=r"more than one value per channel.*got one from shape \(1, 6, 1\)"):
        batch_norm(torch.ones(1, 6, 1), mean, var, training=True)
    assert mean.eq(0).all()
    assert var.eq(1).all()
