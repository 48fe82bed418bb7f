"""`torch.func`: both modes, second derivatives, batching; torch's own layers in float64 are the oracle."""

import pytest
import torch

import normkit
from normkit.errors import StateError
from transforms.subjects import LAYERS, OF_TORCH, sample

# torch itself, which compiles its own formulas for forward mode when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.parametrize("name", OF_TORCH)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian", "vmap"])
def test_equals_torch(name, transform):
    x = sample(2).double()

    def result(layer: torch.nn.Module) -> torch.Tensor:
        def loss(x: torch.Tensor) -> torch.Tensor:
            return layer(x).pow(3).sum()

        if transform == "vmap":
            return torch.func.vmap(layer)(torch.stack([x, 2 * x]))
        return getattr(torch.func, transform)(loss if transform in ("grad", "hessian") else layer)(x)

    # Both in float64 with a few hundred roundings, grown by a third power: far below 1e-8.
    torch.testing.assert_close(result(LAYERS[name]().double()), result(OF_TORCH[name]().double()), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_jvp_and_vjp_agree(name):
    layer, x, tangent = LAYERS[name]().double(), sample().double(), sample().double()
    y, forward = torch.func.jvp(layer, (x,), (tangent,))
    pull = torch.func.vjp(layer, x)[1]
    upstream = torch.randn_like(y)
    # <u, J t> = <J^T u, t>, in float64.
    torch.testing.assert_close((upstream * forward).sum(), (pull(upstream)[0] * tangent).sum(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("batch, no")])
def test_gradients_of_each_sample(name):
    layer, x = LAYERS[name]().double(), sample().double()
    parameters = dict(layer.named_parameters())
    buffers = dict(layer.named_buffers())
    if not parameters:
        return

    def loss(parameters: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, (parameters, buffers), (one[None],)).pow(3).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, one in enumerate(x):
        expected = torch.autograd.grad(layer(one[None]).pow(3).sum(), list(parameters.values()))
        for got, want in zip(each.values(), expected, strict=True):
            torch.testing.assert_close(got[i], want, atol=1e-9, rtol=1e-9)  # float64, as above


def test_running_statistics_under_vmap_are_refused_with_the_remedy():
    layer = normkit.BatchNorm1d(4)
    with pytest.raises(StateError, match=r"under torch\.func\.vmap.*use eval\(\), track_running_stats=False"):
        torch.func.vmap(layer)(torch.stack([sample(), sample()]))
    assert torch.equal(layer.running_mean, torch.zeros(4))


def test_forward_mode_leaves_no_tangent_in_running_statistics():
    layer, x = normkit.BatchNorm1d(4), sample()
    with torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.autograd.forward_ad.unpack_dual(layer.running_mean).tangent is None
