"""`torch.func`: both modes, second derivatives, batching; torch's own layers in float64 are the oracle."""

import pytest
import torch

import normkit
from normkit.errors import StateError
from transforms.subjects import LAYERS, OF_TORCH, sample

# torch itself, which compiles its own formulas for forward mode when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


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


# Running statistics that move belong to no pure function: see the tests of what is refused.
PURE = [name for name in LAYERS if name not in ("batch", "ghost", "batch with extras")]


@pytest.mark.parametrize("name", PURE)
def test_jvp_and_vjp_agree(name):
    layer, x, tangent = LAYERS[name]().double(), sample().double(), sample().double()
    y, forward = torch.func.jvp(layer, (x,), (tangent,))
    pull = torch.func.vjp(layer, x)[1]
    upstream = torch.randn_like(y)
    # <u, J t> = <J^T u, t>, in float64.
    torch.testing.assert_close((upstream * forward).sum(), (pull(upstream)[0] * tangent).sum(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in PURE if not name.startswith("batch, no")])
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


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in PURE])
def test_running_statistics_that_a_transform_does_not_know_are_refused_with_the_remedy(name):
    layer, x = LAYERS[name](), sample()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(StateError, match=r"under torch\.func.*use eval\(\), .*functional_call"):
        torch.func.grad(lambda x: layer(x).pow(3).sum())(x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in PURE])
def test_running_statistics_that_are_handed_in_move(name):
    layer, twin, x = LAYERS[name](), LAYERS[name](), sample()
    parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())

    def loss(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, (parameters, buffers), (x,)).pow(3).sum()

    each = torch.func.grad(loss)(parameters, buffers)
    twin(x).pow(3).sum().backward()
    for key, parameter in twin.named_parameters():
        torch.testing.assert_close(each[key], parameter.grad, atol=1e-4, rtol=1e-4)  # fp32, sums of third powers
    for key, buffer in twin.named_buffers():
        torch.testing.assert_close(layer.get_buffer(key), buffer, atol=1e-6, rtol=1e-6)  # fp32, few roundings


def test_forward_mode_leaves_no_tangent_in_running_statistics():
    layer, x = normkit.BatchNorm1d(4), sample()
    with torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.autograd.forward_ad.unpack_dual(layer.running_mean).tangent is None


MAPPED = {
    "batch_norm": (lambda: normkit.BatchNorm2d(8), (3, 4, 8, 5, 5)),
    "batch_norm, flat": (lambda: normkit.BatchNorm1d(8), (3, 4, 8)),
    "group_norm": (lambda: normkit.GroupNorm(4, 8), (3, 4, 8, 5, 5)),
    "instance_norm": (lambda: normkit.InstanceNorm2d(8, affine=True), (3, 4, 8, 5, 5)),
    "layer_norm of an image": (lambda: normkit.Norm("b [c ...]", num_features=8), (3, 4, 8, 5, 5)),
    "layer_norm2d": (lambda: normkit.LayerNorm2d(8), (3, 4, 8, 5, 5)),
    "layer_norm": (lambda: normkit.LayerNorm(8), (3, 4, 6, 8)),
    "layer_norm of two": (lambda: normkit.LayerNorm((6, 8)), (3, 4, 6, 8)),
    "rms_norm": (lambda: normkit.RMSNorm(8), (3, 4, 6, 8)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("at", [0, 1, -1])
@pytest.mark.parametrize("case", MAPPED)
def test_copies_of_a_layer_side_by_side_are_those_layers(case, at, training):
    make, shape = MAPPED[case]
    layers = [make().train(training) for _ in range(shape[0])]
    for parameter in [p for layer in layers for p in layer.parameters()]:
        torch.nn.init.normal_(parameter)
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(shape).movedim(0, at).contiguous().requires_grad_()
    leaves = [x, *parameters.values()]

    def one(p, b, x):
        return torch.func.functional_call(layers[0], (p, b), (x,))

    # Without the fallback, which would call the kernel once for each copy, a call that has no rule is an error.
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        y = torch.func.vmap(one, in_dims=(0, 0, at))(parameters, buffers, x)
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, leaves, dy)
    gradients = (gradients[0].movedim(at, 0), *gradients[1:])
    for i, layer in enumerate(layers):
        xi = x.movedim(at, 0)[i].detach().requires_grad_()
        yi = layer(xi)
        # The same kernel on another view: sums in another order, a few roundings of values of order 1 to 10.
        torch.testing.assert_close(y[i], yi, atol=4e-6, rtol=1e-5)
        for mine, alone in zip(gradients, torch.autograd.grad(yi, [xi, *layer.parameters()], dy[i]), strict=True):
            torch.testing.assert_close(mine[i], alone, atol=3e-5, rtol=1e-5)
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer)


def test_copies_may_share_input_and_weights():
    layer = normkit.GroupNorm(2, 6)
    x, bias = torch.randn(4, 6, 3), torch.randn(5, 6)
    y = torch.func.vmap(lambda b: normkit.functional.group_norm(x, 2, layer.weight, b))(bias)
    torch.testing.assert_close(y, layer(x) + bias[:, None, :, None])


@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 3, 2, 2), 0), ((5, 6), 0), ((5, 6), 1), ((4, 3, 2), 2), ((5, 6), None)]
)
@pytest.mark.parametrize("at", [0, 1])
def test_copies_of_a_normed_weight_are_one_call(shape, dim, at):
    from normkit.kernels import weight

    v = torch.randn(7, *shape).movedim(0, at).requires_grad_()
    kept = [1 if d != dim else n for d, n in enumerate(shape)] if dim is not None else []
    g = torch.rand(7, *kept).requires_grad_()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        w = torch.func.vmap(lambda v, g: weight.normalized_weight(v, g, dim), in_dims=(at, 0))(v, g)
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    dw = torch.randn_like(w)
    dv, dg = torch.autograd.grad(w, (v, g), dw)
    for i in range(7):
        vi, gi = v.movedim(at, 0)[i].detach().requires_grad_(), g[i].detach().requires_grad_()
        wi = weight.normalized_weight(vi, gi, dim)
        # The same kernel on another view: sums in another order.
        torch.testing.assert_close(w[i], wi, atol=1e-6, rtol=1e-5)
        for mine, alone in zip((dv.movedim(at, 0)[i], dg[i]), torch.autograd.grad(wi, (vi, gi), dw[i]), strict=True):
            torch.testing.assert_close(mine, alone, atol=1e-5, rtol=1e-5)
