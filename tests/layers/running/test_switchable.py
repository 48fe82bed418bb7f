"""Switchable norm: what its three parts are, and what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import normkit
from normkit import functional
from normkit.errors import ArgumentError

ONE_OF = {"instance": 0, "layer": 1, "batch": 2}


def layer_of(kind: str) -> normkit.SwitchableNorm:
    """One part alone: a softmax of logits so far apart is 1 and 0 in float32."""
    layer = normkit.SwitchableNorm(4)
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits.fill_(-200)[ONE_OF[kind]] = 200
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ONE_OF)
def test_each_part_alone_is_that_norm(kind: str, training: bool):
    x = torch.randn(3, 4, 5, 2) * 3 + 1e3  # a mean far from 0 shows whether a square of it is subtracted
    one = {
        "instance": normkit.InstanceNorm2d(4),
        "layer": normkit.Norm("b [c ...]", affine=False),
        "batch": normkit.BatchNorm2d(4),
    }[kind]
    layer = layer_of(kind).train(training)
    # The mean is rounded in units of 1e3 in both, which is some 1e-4 of the deviation of 3.
    torch.testing.assert_close(layer(x), one.train(training)(x), rtol=1e-4, atol=1e-4)


def test_running_statistics_are_those_of_batch_norm():
    layer, batch = normkit.SwitchableNorm(4, momentum=None), normkit.BatchNorm2d(4, momentum=None)
    for _ in range(3):
        x = torch.randn(3, 4, 5, 2) + 2
        layer(x)
        batch(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[name], batch.state_dict()[name])
    x[0, 1] = torch.inf
    before = copy.deepcopy(layer.state_dict())
    layer(x)
    for name in ("running_mean", "running_var"):
        assert (layer.state_dict()[name] == before[name]).tolist() == [False, True, False, False]
    layer.reset_running_stats()
    assert (layer.running_mean.tolist(), layer.running_var.tolist()) == ([0] * 4, [1] * 4)


def test_a_checkpoint_updates_once():
    layer = normkit.SwitchableNorm(4)
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 4, 5)
    layer(x).square().sum().backward()
    checkpoint(twin, x, use_reentrant=False).square().sum().backward()
    for mine, other in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(layer.var_weight.grad, twin.var_weight.grad, rtol=0, atol=0)


def test_a_padded_sample_is_normalized_as_without_its_padding():
    """Instance and layer norm of it alone, and batch norm of all valid values."""
    torch.manual_seed(0)
    x, lengths = torch.randn(3, 4, 6, dtype=torch.float64), [6, 4, 2]
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    padded = x.masked_fill(torch.arange(6) >= torch.tensor(lengths)[:, None, None], torch.nan)
    y = functional.switchable_norm(padded, None, None, logits, -logits, training=True, lengths=lengths)
    shares, others = logits.softmax(0), (-logits).softmax(0)
    valid = [one[:, :length] for one, length in zip(x, lengths, strict=True)]
    batch = torch.cat(valid, 1)
    for one, out, length in zip(valid, y, lengths, strict=True):
        parts = [(one.mean(1), one.var(1, correction=0)), (one.mean(), one.var(correction=0))]
        parts.append((batch.mean(1), batch.var(1, correction=0)))
        mean = sum(share * part[0] for share, part in zip(shares, parts, strict=True))
        var = sum(share * part[1] for share, part in zip(others, parts, strict=True))
        torch.testing.assert_close(out[:, :length], (one - mean[:, None]) / (var[:, None] + 1e-5).sqrt())
        assert not out[:, length:].any()


def test_constant_channels_have_finite_gradients():
    x = torch.ones(2, 3, 4, requires_grad=True)
    normkit.SwitchableNorm(3)(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_residual_and_activation_are_those_of_every_norm():
    x, residual = torch.randn(2, 2, 3, 4)
    y, total = normkit.SwitchableNorm(3)(x, residual=residual, return_residual=True, activation="relu")
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, normkit.SwitchableNorm(3)(total).relu())


def test_errors_name_rule_value_and_remedy():
    x, three = torch.randn(2, 4, 3), torch.zeros(3)
    with pytest.raises(ArgumentError, match="needs running_mean and running_var outside training, got None: pass both"):
        functional.switchable_norm(x, None, None, three, three)
    with pytest.raises(ValueError, match=r"var_weight of switchable_norm must have shape \(3,\).*got \(2,\)"):
        functional.switchable_norm(x, None, None, three, torch.zeros(2), training=True)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("training", [True, False])
def test_a_mean_far_from_zero_costs_no_more_digits_than_any_norm(ratio: float, training: bool):
    torch.manual_seed(0)
    # Means of one size and sign in all channels, as an offset of the data has: layer norm's deviation is then near 1.
    x = torch.randn(6, 4, 8, 8) + ratio
    layer = normkit.SwitchableNorm(4, momentum=None)
    y = layer(x)
    if not training:
        y = layer.eval()(x)
    wide = x.double()
    batch = (wide.mean((0, 2, 3), keepdim=True), wide.var((0, 2, 3), correction=0, keepdim=True))
    if not training:
        batch = tuple(t.double().view(4, 1, 1) for t in (layer.running_mean, layer.running_var))
    parts = [(wide.mean(d, keepdim=True), wide.var(d, correction=0, keepdim=True)) for d in ((2, 3), (1, 2, 3))]
    mean, var = (sum(part[i] for part in (*parts, batch)) / 3 for i in (0, 1))
    expected = (wide - mean) / (var + layer.eps).sqrt()
    error = (y.double() - expected).abs().max() / expected.abs().max()
    # The project's bound, with the deviation of 1: a mean is a float32 number.
    assert error <= 4 * torch.finfo(torch.float32).eps * (1 + ratio)
