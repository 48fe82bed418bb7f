"""Derivatives as users take them: upstream gradients that depend on the input, transforms, forward mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import normkit
from normkit import functional
from normkit.kernels import formula

METHODS = {
    "layer_norm": lambda x: functional.layer_norm(x, (5,)),
    "rms_norm": lambda x: functional.rms_norm(x, (5,), eps=1e-5),
    "group_norm": lambda x: functional.group_norm(x, 2),
    "instance_norm": functional.instance_norm,
    "batch_norm": lambda x: functional.batch_norm(x, None, None, training=True),
    "batch_norm, given": lambda x: functional.batch_norm(x, torch.full((4,), 0.3), torch.full((4,), 2.0)),
}
DEFINITIONS = {
    "layer_norm": lambda x: standardized(x, (2,)),
    "rms_norm": lambda x: x / (x.square().mean(2, keepdim=True) + 1e-5).sqrt(),
    "group_norm": lambda x: standardized(x.reshape(3, 2, 10), (2,)).reshape(x.shape),
    "instance_norm": lambda x: standardized(x, (2,)),
    "batch_norm": lambda x: standardized(x, (0, 2)),
    "batch_norm, given": lambda x: (x - 0.3) / (2.0 + 1e-5) ** 0.5,
}
method = pytest.mark.parametrize("name", METHODS)


def standardized(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    deviation = x - x.mean(dims, keepdim=True)
    return deviation / (deviation.square().mean(dims, keepdim=True) + 1e-5).sqrt()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield torch.randn(3, 4, 5) + 1
    torch.set_default_dtype(torch.float32)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    # Float64 against the same formula in another order; each derivative multiplies the values by some ten.
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


@method
def test_derivatives_of_a_loss_whose_gradient_depends_on_the_input(name, x):
    """The second and third, which gradgradcheck misses: it takes upstream gradients that depend on nothing."""
    x.requires_grad_()
    losses = [f[name](x).pow(3).sum() for f in (METHODS, DEFINITIONS)]
    for _ in range(3):
        ours, theirs = (torch.autograd.grad(loss, x, create_graph=True)[0] for loss in losses)
        assert_same(ours, theirs)
        losses = [ours.square().sum(), theirs.square().sum()]


@method
def test_transforms_of_torch_func(name, x):
    def results(f):
        def loss(x: Tensor) -> Tensor:
            return f(x).pow(3).sum()

        yield torch.func.grad(loss)(x)
        yield torch.func.vjp(f, x)[1](x)[0]
        yield torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x)
        yield torch.func.jacrev(torch.func.jacrev(loss))(x)
        yield torch.func.vmap(torch.func.grad(loss))(torch.stack([x, 2 * x]))

    for ours, theirs in zip(results(METHODS[name]), results(DEFINITIONS[name]), strict=True):
        assert_same(ours, theirs)


def test_gradients_of_each_sample(x):
    """Of the parameters, as private training takes them."""
    layer = normkit.GroupNorm(2, 4)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (sample[None],)).pow(3).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).pow(3).sum().backward()
        for name, parameter in parameters.items():
            assert_same(each[name][i], parameter.grad)


# torch itself, which compiles its own formulas for forward mode when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit")
@method
def test_forward_mode(name, x):
    tangent = torch.randn_like(x)
    expected = torch.func.jvp(DEFINITIONS[name], (x,), (tangent,))[1]
    assert_same(torch.func.jvp(METHODS[name], (x,), (tangent,))[1], expected)
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        y = METHODS[name](torch.autograd.forward_ad.make_dual(x, tangent))
        assert_same(torch.autograd.forward_ad.unpack_dual(y).tangent, expected)


def test_a_region_of_single_values_is_not_the_whole_tensor(x):
    """An ellipsis that stands for nothing: every value is its own mean, in the reference as in the kernels."""
    bias = torch.randn(5)
    y, _, mean, std = formula.norm(formula.Arguments(x[0], None, bias, "b c [...]", 1e-5, True))
    assert torch.equal(y, bias.expand(4, 5))
    assert torch.equal(mean, x[0].flatten())
    assert torch.equal(std, torch.zeros(20))
    assert torch.equal(functional.normalize(x[0], "b c [...]", bias=bias), y)
    assert functional.normalize(x[:, :0, 0], "b c [...]").shape == (3, 0)


def test_a_pattern_is_exported_for_every_batch_size(x):
    layer = normkit.Norm("b (g [c]) [...]", 4, num_groups=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    wider = torch.randn(7, 4, 5)
    assert torch.equal(program.module()(wider), layer(wider))
