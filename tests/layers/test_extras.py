"""Padding, lengths, residuals, activations and the order of casts, on layers and functions; against plain torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import normkit
from normkit import functional
from normkit.errors import ArgumentError, DtypeError, ShapeError

# Each on (N, C, L): what makes it, and whether it normalizes a position by itself.
LAYERS = {
    "batch": lambda **k: normkit.BatchNorm1d(6, **k),
    "renorm": lambda **k: normkit.BatchRenorm1d(6, r_max=1.5, d_max=0.5, **k),
    "ghost": lambda **k: normkit.GhostBatchNorm1d(6, 2, **k),
    "instance": lambda **k: normkit.InstanceNorm1d(6, affine=True, track_running_stats=True, **k),
    "group": lambda **k: normkit.GroupNorm(2, 6, **k),
    "pixel": lambda **k: normkit.LayerNorm2d(6, **k),
    "general": lambda **k: normkit.Norm("b (g [c]) [...]", 6, num_groups=3, **k),
}
LENGTHS = torch.tensor([9, 4, 0, 7])


def real() -> Tensor:
    return torch.arange(9) < LENGTHS[:, None]


def shaken(layer: torch.nn.Module) -> torch.nn.Module:
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    return layer


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(name, training):
    """Equal to the same samples one by one without their padding; batch norm, to all real positions in a row."""
    torch.manual_seed(0)
    padded, plain = shaken(LAYERS[name]()), LAYERS[name]()
    plain.load_state_dict(padded.state_dict())
    padded.train(training), plain.train(training)
    x = torch.randn(4, 6, 9) * 3 + 1
    x[~real()[:, None].expand_as(x)] = torch.nan
    leaf = x.clone().requires_grad_()
    y = padded(leaf, lengths=LENGTHS)
    dy = torch.randn(4, 6, 9)
    y.backward(dy)
    where = real()[:, None].expand_as(x)
    assert not y[~where].any()
    assert not leaf.grad[~where].any()
    pieces = [x[i, :, : LENGTHS[i]] for i in range(4) if LENGTHS[i]]
    upstream = [dy[i, :, : LENGTHS[i]] for i in range(4) if LENGTHS[i]]
    if name in ("batch", "renorm"):
        pieces, upstream = [torch.cat(pieces, 1)], [torch.cat(upstream, 1)]
    elif name == "ghost":  # two chunks of two samples; the second has one that is all padding
        pieces, upstream = [torch.cat(pieces[:2], 1), pieces[2]], [torch.cat(upstream[:2], 1), upstream[2]]
    leaves = [piece.clone().requires_grad_() for piece in pieces]
    outs = [plain(piece[None])[0] for piece in leaves]
    for out, up in zip(outs, upstream, strict=True):
        out.backward(up)
    got = y.detach().transpose(1, 2)[real()]
    dx = leaf.grad.transpose(1, 2)[real()]
    # The same sums in another order: a few roundings.
    torch.testing.assert_close(got, torch.cat([t.detach().T for t in outs]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx, torch.cat([t.grad.T for t in leaves]), rtol=1e-4, atol=1e-5)
    for a, b in zip(padded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    if name in ("batch", "renorm"):
        for a, b in zip(padded.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_running_statistics_of_chunks_count_what_is_real():
    layer, x = normkit.GhostBatchNorm1d(6, 2, momentum=1.0), torch.randn(4, 6, 9)
    layer(x, lengths=LENGTHS)
    chunks = [torch.cat([x[0], x[1, :, :4]], 1), x[3, :, :7]]
    mean = (13 * chunks[0].mean(1) + 7 * chunks[1].mean(1)) / 20
    var = (13 * chunks[0].var(1) + 7 * chunks[1].var(1)) / 20
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var, var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["batch", "renorm", "ghost"])
def test_padding_alone_moves_nothing_and_a_single_real_value_is_refused(name):
    layer, x = LAYERS[name](), torch.randn(4, 6, 9)
    before = [t.clone() for t in layer.buffers() if t.is_floating_point()]
    with pytest.raises(ShapeError, match="more than one valid value per channel"):
        layer(x, lengths=[1, 0, 0, 0])
    assert not layer(x, lengths=[0, 0, 0, 0]).any()
    for now, was in zip([t for t in layer.buffers() if t.is_floating_point()], before, strict=True):
        assert torch.equal(now, was)


def test_running_statistics_of_instances_skip_samples_of_padding_alone():
    layer, plain = (normkit.InstanceNorm1d(6, track_running_stats=True, momentum=0.5) for _ in range(2))
    x = torch.randn(4, 6, 9)
    layer(x, lengths=LENGTHS)
    means = torch.stack([x[i, :, : LENGTHS[i]].mean(1) if LENGTHS[i] else plain.running_mean for i in range(4)])
    variances = torch.stack([x[i, :, : LENGTHS[i]].var(1) if LENGTHS[i] else plain.running_var for i in range(4)])
    torch.testing.assert_close(layer.running_mean, 0.5 * means.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var, 0.5 + 0.5 * variances.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: normkit.LayerNorm(8), lambda: normkit.RMSNorm(8)], ids=["layer", "rms"])
def test_tokens_of_padding(make):
    layer, mask = shaken(make()), torch.tensor([[True, True, False], [True, False, False]])
    x = torch.randn(2, 3, 8)
    y = layer(x, mask=mask)
    torch.testing.assert_close(y[mask], layer(x)[mask])
    assert not y[~mask].any()
    assert torch.equal(y, layer(x, lengths=[2, 1]))


@pytest.mark.parametrize("name", LAYERS)
def test_residual_and_activation_are_what_they_are_apart(name):
    fused = shaken(LAYERS[name](activation="gelu"))
    plain = LAYERS[name]()
    plain.load_state_dict(fused.state_dict())
    x, r = torch.randn(4, 6, 9), torch.randn(4, 6, 9)
    y, total = fused(x, residual=r, return_residual=True)
    assert torch.equal(total, x + r)
    torch.testing.assert_close(y, F.gelu(plain(x + r)), rtol=1e-5, atol=1e-5)
    assert fused(x, return_residual=True)[1] is x
    assert "activation='gelu'" in repr(fused)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert again.activation == "gelu"


def test_activation_memory_is_that_of_the_input_alone():
    """What the activation is given is computed again, so nothing of the input's size is kept but the input."""
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    kept: list[Tensor] = []

    def measure(module: torch.nn.Module) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            module(x)
        return sum({t.data_ptr(): t.nbytes for t in kept if t.numel() == x.numel()}.values())

    apart = torch.nn.Sequential(torch.nn.BatchNorm2d(16), torch.nn.SiLU())
    assert measure(normkit.BatchNorm2d(16, activation="silu")) == x.nbytes
    assert measure(apart) == 2 * x.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_orders_of_cast_and_a_weight_around_zero(dtype):
    x = torch.randn(5, 64).to(dtype)
    for w in (torch.randn(64).to(dtype), torch.randn(64)):
        wide = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        llama = w.to(dtype) * wide.to(dtype)
        gemma = (wide * (1.0 + w.float())).to(dtype)
        # One more rounding may fall the other way where the two means differ by one of float32.
        near = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0.0}
        torch.testing.assert_close(functional.rms_norm(x, (64,), w, 1e-6, cast="before"), llama, **near)
        torch.testing.assert_close(functional.rms_norm(x, (64,), w, 1e-6, zero_centered=True), gemma, **near)
    layer = normkit.RMSNorm(64, eps=1e-6, zero_centered=True, cast="before", dtype=dtype)
    assert not layer.weight.any()
    assert layer(x).dtype is dtype
    padded = normkit.LayerNorm(64, cast="before", dtype=dtype, activation="sigmoid")(x, mask=torch.arange(5) < 3)
    assert not padded[3:].any()
    assert padded[:3].all()


CHUNKED = {
    "ghost": lambda **k: normkit.GhostBatchNorm1d(6, 2, **k),
    "renorm": lambda **k: normkit.BatchRenorm1d(6, **k),
    "sync": lambda **k: normkit.SyncBatchNorm(6, **k),
}


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("training", [True, False])
def test_relatives_of_batch_norm_take_residual_and_activation(name, training):
    torch.manual_seed(0)
    fused, plain = shaken(CHUNKED[name](activation="gelu")).train(training), CHUNKED[name]().train(training)
    plain.load_state_dict(fused.state_dict())
    x, r = torch.randn(4, 6, 9), torch.randn(4, 6, 9)
    y, total = fused(x, residual=r, return_residual=True)
    assert torch.equal(total, x + r)
    torch.testing.assert_close(y, F.gelu(plain(x + r)), rtol=1e-5, atol=1e-5)
    for got, want in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, want)
    assert not fused(x, lengths=LENGTHS)[2].any()


X = torch.zeros(4, 6, 9)


@pytest.mark.parametrize(
    ("error", "said", "extras"),
    [
        (ArgumentError, "did you mean 'relu'?", {"activation": "rleu"}),
        (DtypeError, "must be boolean", {"mask": torch.ones(4, 9)}),
        (ShapeError, "must broadcast to (4, 9)", {"mask": torch.ones(4, 6, 9).bool()}),
        (ShapeError, "4 whole numbers", {"lengths": [1, 2]}),
        (ArgumentError, "between 0 and the 9 positions", {"lengths": [1, 2, 3, 10]}),
        (ArgumentError, "got both", {"lengths": [1, 2, 3, 9], "mask": real()}),
        (ShapeError, "must have the input's shape (4, 6, 9), got (6, 9)", {"residual": X[0]}),
        (DtypeError, "got torch.float16", {"residual": X.half()}),
        (TypeError, "unexpected keyword argument 'masks'", {"masks": real()}),
    ],
)
def test_misuse_is_explained_and_changes_nothing(error, said, extras):
    layer = normkit.BatchNorm1d(6)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    with pytest.raises(error) as caught:
        layer(X, **extras)
    assert said in str(caught.value)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_misuse_when_a_layer_is_made():
    with pytest.raises(ArgumentError, match="did you mean 'gelu'"):
        normkit.GroupNorm(2, 4, activation="gleu")
    with pytest.raises(ArgumentError, match=r"'after' .* or 'before'"):
        normkit.RMSNorm(4, cast="befor")
    with pytest.raises(ShapeError, match="single one by the mask"):
        normkit.BatchNorm1d(2)(torch.randn(2, 2, 3), lengths=[1, 0])
