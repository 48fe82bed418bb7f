"""Weight normalization computes its definition, in every dim, dtype and derivative."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from weights import linear, parts

from normkit.errors import ArgumentError, StateError
from normkit.parametrize import WeightNorm, remove_weight_norm, weight_norm

SHAPES = [((4, 3), 0), ((4, 3), 1), ((4, 3), -1), ((4, 3), None), ((5,), 0), ((5,), None), ((2, 3, 2, 2), -3)]


def oracle(g: Tensor, v: Tensor, dim: int | None) -> Tensor:
    """The definition, in float64, for lengths that are not 0."""
    g, v = g.double(), v.double()
    if dim is None or dim == -1:  # torch keeps None as -1
        return g * v / v.flatten().norm()
    axis = dim % v.ndim
    axes = [i for i in range(v.ndim) if i != axis]
    return g * v / ((v * v).sum(axes, keepdim=True) if axes else v * v).sqrt()


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_values_and_gradients_equal_the_definition(shape, dim):
    torch.manual_seed(0)
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape))
    before = module.weight.detach().clone()
    weight_norm(module, dim=dim)
    assert torch.equal(module.weight, before)
    g, v = parts(module)
    with torch.no_grad():
        g.mul_(torch.randn_like(g))
        v.mul_(3)
    upstream = torch.randn(shape)
    ours = torch.autograd.grad(module.weight, (g, v), upstream)
    wide = [p.detach().double().requires_grad_() for p in (g, v)]
    expected = oracle(*wide, dim)
    # The norm, the quotient and the product each round once or twice: 4 units in the last place in all.
    torch.testing.assert_close(module.weight.double(), expected, rtol=4 * torch.finfo().eps, atol=0)
    for mine, theirs in zip(ours, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        # A gradient subtracts the radial part, so its error is relative to the largest entry.
        bound = 16 * torch.finfo().eps * max(1.0, theirs.abs().max().item())
        assert (mine.double() - theirs).abs().max().item() <= bound


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_second_derivatives(shape, dim):
    norm = WeightNorm(None if dim is None else dim % len(shape))
    torch.manual_seed(0)
    v = torch.randn(shape, dtype=torch.float64)
    g = norm.right_inverse(v)[0].requires_grad_()
    v.requires_grad_()
    assert torch.autograd.gradcheck(norm, (g, v))
    assert torch.autograd.gradgradcheck(norm, (g, v))


def test_a_vector_with_a_single_element_has_its_sum_of_squares_on_the_clamp():
    v = torch.tensor([[2.0, 0.0], [0.0, -3.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.5], [2.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WeightNorm(0), (g, v))


def test_a_zero_vector_gives_zero_and_finite_gradients_where_torch_gives_nan():
    module = linear(bias=False)
    with torch.no_grad():
        module.weight[1] = 0
    theirs = parametrizations.weight_norm(copy.deepcopy(module))
    assert theirs.weight.isnan().any(), "torch has mended this: say so in the docs"
    weight_norm(module)
    g, v = parts(module)
    assert torch.equal(module.weight[1], torch.zeros(5))
    with torch.no_grad():
        g[1] = 2.0
    first = torch.autograd.grad(module.weight.square().sum() + module.weight.sum(), (g, v), create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), (g, v))
    assert all(grad.isfinite().all() for grad in (*first, *second))
    assert torch.equal(first[1][1], torch.full((5,), 2.0)), "with a length, the row must be able to leave 0"


@pytest.mark.parametrize("magnitude", [1e-30, 1e18, 1e30])
def test_squares_neither_overflow_nor_vanish(magnitude):
    module = linear(bias=False)
    with torch.no_grad():
        module.weight.mul_(magnitude)
    weight_norm(module)
    g, v = parts(module)
    torch.testing.assert_close(g.double(), v.double().norm(dim=1, keepdim=True), rtol=1e-6, atol=0)
    with torch.no_grad():
        g.fill_(1.0)
    torch.testing.assert_close(module.weight.double(), oracle(g, v, 0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_lengths_are_computed_in_single(dtype):
    torch.manual_seed(0)
    module = nn.Linear(4096, 3, bias=False, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(3, 4096) * 8)
    weight_norm(module)
    g, v = parts(module)
    # 4096 squares near 64 sum to 262144: beyond fp16, and bf16 would stop counting at 256 of them. The
    # only rounding left is that of the result.
    torch.testing.assert_close(g.double(), v.double().norm(dim=1, keepdim=True), rtol=torch.finfo(dtype).eps, atol=0)
    assert module.weight.dtype == dtype
    torch.testing.assert_close(
        module.weight.double(), oracle(g, v, 0), rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny
    )


@pytest.mark.parametrize("dim", [0, 1, None])
def test_state_is_that_of_torch_and_loads_both_ways(dim):
    ours, theirs = weight_norm(linear(), dim=dim), parametrizations.weight_norm(linear(), dim=dim)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for key in mine:
        assert mine[key].shape == other[key].shape
        torch.testing.assert_close(mine[key], other[key], rtol=2 * torch.finfo().eps, atol=0)
    x = torch.randn(3, 5)
    trained = parametrizations.weight_norm(linear(1), dim=dim)
    ours.load_state_dict(trained.state_dict())
    torch.testing.assert_close(ours(x), trained(x))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x), trained(x))


def both_of_torch() -> dict[str, object]:
    def old(module: nn.Module, name: str, dim: int | None) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls it deprecated
            return torch.nn.utils.weight_norm(module, name, dim)

    return {"parametrization": parametrizations.weight_norm, "hook": old}


@pytest.mark.parametrize("theirs", both_of_torch())
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((7,), None), ((7,), 0), ((7,), -1)]
    + [((4, 3), dim) for dim in (None, *range(-2, 2))]
    + [((4, 3, 2, 5), dim) for dim in (None, *range(-4, 4))],
)
def test_every_dim_means_what_it_means_to_torch(shape, dim, theirs):
    torch.manual_seed(0)

    def module() -> nn.Module:
        made = nn.Module()
        made.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        return made

    def ready(made: nn.Module) -> nn.Module:
        for hook in made._forward_pre_hooks.values():
            hook(made, ())  # the old function computes the weight before forward
        return made

    ours, other = weight_norm(module(), dim=dim), both_of_torch()[theirs](module(), "weight", dim)
    g, v = parts(ours)
    with torch.no_grad():
        g.mul_(torch.randn_like(g))
        v.add_(torch.randn_like(v))
    state = ours.state_dict()
    if theirs == "hook":
        state = {f"weight_{name}": value for name, value in zip("gv", state.values(), strict=True)}
    other.load_state_dict(state)
    # Both round the norm, the quotient and the product.
    torch.testing.assert_close(ours.weight, ready(other).weight, rtol=1e-6, atol=1e-7)
    upstream = torch.randn(shape)
    mine = torch.autograd.grad(ours.weight, (g, v), upstream)
    same = [p for _, p in sorted(other.named_parameters())]
    for one, two in zip(mine, torch.autograd.grad(other.weight, same, upstream), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    fresh = weight_norm(module(), dim=dim)
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh.weight, ours.weight)
    used = ours.weight.detach().clone()
    assert torch.equal(remove_weight_norm(copy.deepcopy(ours)).weight, used)


@pytest.mark.parametrize("dim", [None, -1])
def test_the_class_itself_takes_the_same_dims(dim):
    module = linear()
    before = module.weight.detach().clone()
    parametrize.register_parametrization(module, "weight", WeightNorm(dim))
    assert torch.equal(module.weight, before)
    assert parts(module)[0].shape == ()
    with pytest.raises(ArgumentError, match="dim of WeightNorm must be at least 0, -1 or None, got -2: call weight_n"):
        WeightNorm(-2)


def test_a_length_that_its_dtype_cannot_hold_is_refused():
    """Where torch's own gives nan."""
    module = nn.Linear(4096, 2, bias=False, dtype=torch.float16)
    with torch.no_grad():
        module.weight.fill_(2000.0)  # the root of 4096 times as much: 128000
    for dim in (0, None):
        with pytest.raises(StateError, match=r"must be finite as torch\.float16, whose largest number is 6\.55e\+04"):
            weight_norm(module, dim=dim)
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, torch.full_like(module.weight, 2000.0))
    weight_norm(module, dim=1)
    with pytest.raises(StateError, match="must be finite as"):
        module.weight = torch.full_like(module.weight, 60000.0)
    assert torch.equal(module.weight, torch.full_like(module.weight, 2000.0))
    wide = weight_norm(nn.Linear(4096, 2, bias=False, dtype=torch.bfloat16))
    wide.weight = torch.full((2, 4096), 2000.0, dtype=torch.bfloat16)
    assert wide.weight.isfinite().all()


def test_on_meta_there_is_nothing_to_check():
    module = weight_norm(linear().to("meta"), dim=-1)
    module.load_state_dict(weight_norm(linear(1), dim=-1).state_dict(), assign=True)
    torch.testing.assert_close(module.weight, linear(1).weight)
