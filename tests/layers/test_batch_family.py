"""Batch renormalization, ghost and frozen batch norm, the pure function, and batches that are not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit
from normkit import functional
from normkit.errors import ArgumentError, ShapeError

SHAPES = {"1d": (7, 3, 5), "2d": (7, 3, 2, 5), "3d": (7, 3, 2, 2, 3)}
FAMILY = {
    "BatchRenorm": {"r_max": 1.3, "d_max": 0.4},
    "GhostBatchNorm": {"virtual_batch_size": 3},
    "FrozenBatchNorm": {},
}
NAMES = [f"{name}{dims}" for name in FAMILY for dims in SHAPES]


def make(name: str, **options: object) -> nn.Module:
    """A layer with parameters and statistics that are not the initial ones."""
    layer = getattr(normkit, name)(3, **FAMILY[name[:-2]], **options)
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0) if key != "bias" else tensor.normal_()
    return layer


def channel(t: Tensor) -> list[int]:
    return [1, -1, *[1] * (t.dim() - 2)]


def batch_normed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch: the standardized batch (eps 1e-5), its mean and its biased variance."""
    dims = [d for d in range(x.dim()) if d != 1]
    mean, var = x.mean(dims), x.var(dims, correction=0)
    return (x - mean.view(channel(x))) / (var + 1e-5).sqrt().view(channel(x)), mean, var


def expected(name: str, layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in plain torch, with the new running statistics (momentum 0.1)."""
    run_mean, run_var = layer.running_mean.double(), layer.running_var.double()
    shape = channel(x)
    if name.startswith("Frozen"):
        y = (x - run_mean.view(shape)) / (run_var.view(shape) + 1e-5).sqrt()
        return y * weight.view(shape) + bias.view(shape), run_mean, run_var
    if name.startswith("Batch"):
        y, mean, var = batch_normed(x)
        s, s_run = (var + 1e-5).sqrt().detach(), (run_var + 1e-5).sqrt()
        r = torch.clip(s / s_run, 1 / 1.3, 1.3)
        d = torch.clip((mean.detach() - run_mean) / s_run, -0.4, 0.4)
        y = y * r.view(shape) + d.view(shape)
        count = x.numel() / 3
        var = var * count / (count - 1)
    else:
        parts = [batch_normed(part) for part in x.split(3)]
        sizes = [len(part) for part in x.split(3)]
        y = torch.cat([part[0] for part in parts])
        each = x[0, 0].numel()
        mean = sum(n * part[1] for n, part in zip(sizes, parts, strict=True)) / len(x)
        var = sum(n * part[2] * n * each / (n * each - 1) for n, part in zip(sizes, parts, strict=True)) / len(x)
    new = 0.9 * run_mean + 0.1 * mean.detach(), 0.9 * run_var + 0.1 * var.detach()
    return y * weight.view(shape) + bias.view(shape), *new


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NAMES)
def test_training_follows_the_definition(name, last):
    layer = make(name)
    # The running statistics lie around 1, so that r and d reach their limits in some channels and not in others.
    x = torch.randn(SHAPES[name[-2:]]) * torch.tensor([0.3, 1.0, 4.0]).view(channel(torch.empty(SHAPES[name[-2:]])))
    if last and x.dim() > 3:
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    wide = x.double().requires_grad_()
    x.requires_grad_()
    weight, bias = (t.detach().double().requires_grad_() for t in (layer.weight, layer.bias))
    y_wide, mean, var = expected(name, layer, wide, weight, bias)
    g = torch.randn(x.shape)
    y_wide.backward(g.double())
    y = layer(x)
    y.backward(g)
    # A few float32 roundings of values below 20; sums of up to 84 of them for the parameters.
    torch.testing.assert_close(y.double(), y_wide, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=2e-5)
    assert y.stride() == x.stride()
    for parameter, other in zip(layer.parameters(), (weight, bias), strict=False):
        torch.testing.assert_close(parameter.grad.double(), other.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=0)
    assert layer.num_batches_tracked == (0 if name.startswith("Frozen") else 1)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_and_state_are_those_of_batch_norm(name, affine):
    layer, plain = make(name, affine=affine).eval(), getattr(nn, f"BatchNorm{name[-2:]}")(3, affine=affine).eval()
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    fresh = getattr(normkit, name)(3, affine=affine, **FAMILY[name[:-2]])
    fresh.load_state_dict(plain.state_dict())
    x = torch.randn(SHAPES[name[-2:]])
    # The same arithmetic in another order.
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(fresh.eval()(x), layer(x))
    assert all(torch.equal(t, plain.state_dict()[key]) for key, t in layer.state_dict().items())


@pytest.mark.parametrize("name", ["BatchRenorm2d", "GhostBatchNorm2d", "FrozenBatchNorm2d"])
def test_second_derivatives(name):
    layer = make(name, dtype=torch.float64)
    x = torch.randn(4, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    # r and d are constants by definition, so that a difference quotient agrees only where both are at their limits.
    if name.startswith("Batch"):
        layer.r_max, layer.d_max = 1.0, 0.0

    def run(x: Tensor) -> Tensor:
        return copy.deepcopy(layer)(x)

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


@pytest.mark.parametrize("name", ["BatchRenorm2d", "GhostBatchNorm2d"])
def test_an_empty_batch_and_a_recomputed_one(name):
    layer, once = make(name), make(name)
    once.load_state_dict(layer.state_dict())
    before = copy.deepcopy(layer.state_dict())
    empty = torch.empty(0, 3, 2, 5, requires_grad=True)
    layer(empty).sum().backward()
    assert empty.grad.shape == empty.shape
    assert not layer.weight.grad.any()
    before["num_batches_tracked"] += 1  # as torch counts
    assert all(torch.equal(t, before[key]) for key, t in layer.state_dict().items())
    layer.load_state_dict(once.state_dict())
    x = torch.randn(7, 3, 2, 5, requires_grad=True)
    once(x)
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(t, once.state_dict()[key]) for key, t in layer.state_dict().items())


@pytest.mark.parametrize("momentum", [None, 1.0])
@pytest.mark.parametrize("name", ["BatchRenorm1d", "GhostBatchNorm1d"])
def test_momentum(name, momentum):
    layer = getattr(normkit, name)(3, momentum=momentum, **FAMILY[name[:-2]])
    batches = torch.randn(3, 6, 3)
    for x in batches:
        layer(x)
    seen = batches[-1:] if momentum else batches
    # Averages of at most 18 float32 values.
    torch.testing.assert_close(layer.running_mean, seen.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_half_precision():
    for name in ("BatchRenorm2d", "GhostBatchNorm2d", "FrozenBatchNorm2d"):
        layer = make(name)
        x = torch.randn(7, 3, 2, 5).bfloat16()
        wide = copy.deepcopy(layer)(x.float())
        y = layer(x)
        assert y.dtype == torch.bfloat16
        # Two roundings to 8 bits, of values below 8.
        torch.testing.assert_close(y.float(), wide, rtol=2**-7, atol=2**-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own
@pytest.mark.parametrize("name", ["BatchRenorm2d", "GhostBatchNorm2d", "FrozenBatchNorm2d"])
def test_compiled_as_one_graph(name):
    layer = make(name)
    plain = copy.deepcopy(layer)
    x, twin = (torch.randn(7, 3, 2, 5, generator=torch.Generator().manual_seed(5)).requires_grad_() for _ in range(2))
    torch.compiler.reset()
    # The partitioner of inductor, which chooses what backward computes again, without its code.
    y = torch.compile(layer, backend="aot_eager_decomp_partition", fullgraph=True)(x)
    (y**3).sum().backward()
    expected = plain(twin)
    (expected**3).sum().backward()
    # The same operators, perhaps in other steps; values below 30 in the gradient.
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-6)


def test_ghost_chunks():
    x = torch.randn(9, 3)
    plain = normkit.BatchNorm1d(3)
    # Nine samples by four: the single one left joins the second chunk, as it would have no variance.
    y = normkit.GhostBatchNorm1d(3, 4)(x)
    torch.testing.assert_close(y, torch.cat([plain(x[:4]), plain(x[4:])]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normkit.GhostBatchNorm1d(3, 100)(x), plain(x), rtol=1e-5, atol=1e-6)
    single = torch.randn(3, 3, 4)
    torch.testing.assert_close(
        normkit.GhostBatchNorm1d(3, 1)(single), functional.instance_norm(single), rtol=1e-5, atol=1e-6
    )


def test_frozen():
    layer = normkit.BatchNorm2d(3, eps=1e-3, activation="relu")
    layer(torch.randn(7, 3, 2, 5) + 4)
    frozen = normkit.FrozenBatchNorm2d.from_batch_norm(layer)
    x = torch.randn(7, 3, 2, 5)
    assert frozen.training
    assert torch.equal(frozen(x), layer.eval()(x))
    assert not list(frozen.parameters())
    assert frozen.weight.data_ptr() != layer.weight.data_ptr()
    assert repr(frozen) == "FrozenBatchNorm2d(3, eps=0.001, affine=True, activation='relu')"
    layer.load_state_dict(frozen.state_dict())
    state = frozen.state_dict()
    del state["num_batches_tracked"]  # as other libraries' frozen layers have it
    normkit.FrozenBatchNorm2d(3).load_state_dict(state)
    assert "num_batches_tracked" not in state
    bare = normkit.FrozenBatchNorm1d.from_batch_norm(nn.BatchNorm1d(3, affine=False))
    assert bare.weight is None


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: normkit.BatchRenorm1d(0), ArgumentError, "num_features of BatchRenorm1d must be at least 1, got 0"),
        (lambda: normkit.BatchRenorm1d(3, r_max=0.5), ArgumentError, r"r_max of BatchRenorm1d .* at least 1, got 0\.5"),
        (lambda: normkit.BatchRenorm1d(3, d_max=-1), ArgumentError, "d_max of BatchRenorm1d must not be negative"),
        (lambda: normkit.GhostBatchNorm1d(3, 0), ArgumentError, "virtual_batch_size of GhostBatchNorm1d .* got 0"),
        (lambda: normkit.GhostBatchNorm1d(3, 2.0), ArgumentError, r"virtual_batch_size must be a whole .* got 2\.0"),
        (lambda: normkit.FrozenBatchNorm1d(3, eps=-1), ArgumentError, "eps of FrozenBatchNorm1d must not be negative"),
        (lambda: normkit.FrozenBatchNorm2d.from_batch_norm(nn.ReLU()), ArgumentError, "made of a batch norm, got ReLU"),
        (
            lambda: normkit.FrozenBatchNorm2d.from_batch_norm(nn.BatchNorm2d(3, track_running_stats=False)),
            ArgumentError,
            "needs running statistics, got none from BatchNorm2d",
        ),
        (lambda: normkit.BatchRenorm2d(3)(torch.ones(4, 3)), ShapeError, r"(?s)\(N, C, H, W\), got .*in BatchRenorm2d"),
        (lambda: normkit.GhostBatchNorm1d(3, 2)(torch.ones(4, 2)), ShapeError, "layer's 3 channels"),
        (lambda: normkit.FrozenBatchNorm1d(3)(torch.ones(4, 2)), ShapeError, r"(?s)3 channels.*in FrozenBatchNorm1d"),
        (lambda: normkit.BatchRenorm1d(3)(torch.ones(1, 3)), ShapeError, "batch_renorm needs more than one value"),
        (lambda: normkit.GhostBatchNorm1d(3, 1)(torch.ones(4, 3)), ShapeError, "in each chunk.*virtual_batch_size=1"),
        (
            lambda: functional.batch_norm_update(torch.ones(1, 3), torch.zeros(3), torch.ones(3)),
            ShapeError,
            "batch_norm_update needs more than one value per channel",
        ),
    ],
)
def test_what_is_wrong_is_said(call, error, says):
    with pytest.raises(error, match=says):
        call()


# The pure function ----------------------------------------------------------------------------------------


def test_the_pure_function_is_batch_norm_and_changes_nothing():
    x, mean, var = torch.randn(4, 3, 5), torch.rand(3), torch.rand(3) + 1
    before = mean.clone(), var.clone()
    y, new = functional.batch_norm_update(x, mean, var, torch.full((3,), 2.0), torch.ones(3), momentum=0.3)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    expected = functional.batch_norm(x, mean, var, torch.full((3,), 2.0), torch.ones(3), True, 0.3)
    assert torch.equal(y, expected)
    # The same formula, once by the kernel in float64.
    torch.testing.assert_close(new, type(new)(mean, var), rtol=1e-6, atol=1e-7)
    _, kept = functional.batch_norm_update(x[:0], mean, var)
    assert torch.equal(kept.mean, mean)


def test_the_pure_function_under_transforms():
    xs, mean, var = torch.randn(6, 4, 3, 5), torch.rand(6, 3), torch.rand(6, 3) + 1
    ys, new = torch.func.vmap(functional.batch_norm_update)(xs, mean, var)
    for i in range(6):
        y, one = functional.batch_norm_update(xs[i], mean[i], var[i])
        torch.testing.assert_close(ys[i], y, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close((new.mean[i], new.var[i]), tuple(one), rtol=1e-5, atol=1e-6)

    def loss(x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        y, new = functional.batch_norm_update(x, mean, var)
        return (y**3).sum(), new.mean

    grads, means = torch.func.vmap(torch.func.grad(loss, has_aux=True))(xs, mean, var)
    for i in range(6):
        x = xs[i].double().requires_grad_()
        (batch_normed(x)[0] ** 3).sum().backward()
        # Cubes of values below 3, in float32.
        torch.testing.assert_close(grads[i].double(), x.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(means, new.mean)


# Batches that are not finite ------------------------------------------------------------------------------


class Seen(Tensor):
    """Any subclass: it goes the way of plain torch, beside the kernel's."""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("way", ["fast path", "operator", "float64", "half", "torch"])
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchRenorm1d", "GhostBatchNorm1d"])
def test_a_channel_that_is_not_finite_keeps_its_statistics(name, way, bad):
    options = {} if name == "BatchNorm1d" else FAMILY[name[:-2]]
    dtype = torch.float64 if way == "float64" else torch.float32
    layer = getattr(normkit, name)(3, dtype=dtype, **options)
    x = torch.randn(7, 3, 5, dtype=dtype) + 2
    layer(x)  # so that a second call can take the shortest way
    before = copy.deepcopy(layer.state_dict())
    x = x + 1
    x[1, 1, 2] = bad
    x = {"half": x.bfloat16(), "torch": x.as_subclass(Seen)}.get(way, x)
    if way == "operator":
        layer.running_mean, layer.running_var = (t[::1].expand(1, -1)[0] for t in layer.buffers() if t.dim())
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
    layer(x)
    for key in ("running_mean", "running_var"):
        now, was = getattr(layer, key), before[key]
        assert now.isfinite().all()
        assert now[1] == was[1]
        assert (now != was).tolist() == [True, False, True]
    assert layer.num_batches_tracked == 2
