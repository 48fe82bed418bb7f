"""Iterative norm: decorrelated channels, and the state that it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import normkit
from normkit import functional
from normkit.errors import ArgumentError


def correlated(count: int = 200, channels: int = 4) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(count, channels, dtype=torch.float64) @ torch.randn(channels, channels, dtype=torch.float64) + 3


def covariance(y: Tensor) -> Tensor:
    """Of the channels in dimension 1, over all else."""
    rows = y.detach().double().movedim(1, -1).flatten(0, -2)
    return torch.cov(rows.T, correction=0)


def whitening_of(x: Tensor, eps: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance(x) + eps * torch.eye(x.shape[1], dtype=torch.float64))
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


def test_newtons_iterations_reach_the_inverse_root_of_the_eigenvectors():
    x = correlated()
    errors = []
    for iterations in (0, 2, 5, 30):
        whitening = torch.zeros(1, 4, 4, dtype=torch.float64)
        functional.iter_norm(x, torch.zeros(4).double(), whitening, training=True, iterations=iterations, momentum=1.0)
        errors.append(float(torch.linalg.matrix_norm(whitening[0] - whitening_of(x, 1e-5))))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9  # the iteration converges quadratically
    y = functional.iter_norm(x, None, None, training=True, iterations=30)
    # Apart from eps, which is 1e-4 of the smallest variance here.
    torch.testing.assert_close(covariance(y), torch.eye(4).double(), rtol=0, atol=1e-3)


def test_groups_are_decorrelated_each_by_itself():
    x = correlated()
    y = functional.iter_norm(x, None, None, training=True, num_groups=2, iterations=30)
    for part in (slice(0, 2), slice(2, 4)):
        alone = functional.iter_norm(x[:, part], None, None, training=True, iterations=30)
        torch.testing.assert_close(y[:, part], alone)
    assert covariance(y)[:2, 2:].abs().max() > 0.1


def test_one_channel_in_a_group_is_batch_norm():
    x = torch.randn(6, 3, 4, 2)
    torch.testing.assert_close(normkit.IterNorm(3, num_groups=3)(x), normkit.BatchNorm2d(3)(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_evaluation_uses_the_running_statistics(layout: torch.memory_format):
    layer = normkit.IterNorm(4, momentum=None, iterations=20)
    x = torch.randn(16, 4, 3, 3).contiguous(memory_format=layout)
    y = layer(x)
    assert y.is_contiguous(memory_format=layout)
    # One batch, of which the average takes all; the float32 sums differ in their order.
    torch.testing.assert_close(layer.eval()(x), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_whitening[0].double(), whitening_of(x, 1e-5), rtol=1e-4, atol=1e-5)
    layer.reset_running_stats()
    assert torch.equal(layer.running_whitening[0], torch.eye(4))


def test_a_group_that_is_not_finite_keeps_its_statistics():
    layer = normkit.IterNorm(4, num_groups=2)
    x = torch.randn(8, 4)
    layer(x)
    before = copy.deepcopy(layer.state_dict())
    x[0, 1] = torch.inf
    layer(x)
    assert (layer.running_mean == before["running_mean"]).tolist() == [True, True, False, False]
    assert (layer.running_whitening == before["running_whitening"]).flatten(1).all(1).tolist() == [True, False]


def test_a_checkpoint_updates_once():
    layer = normkit.IterNorm(4)
    twin = copy.deepcopy(layer)
    x = torch.randn(8, 4, 3)
    layer(x).square().sum().backward()
    checkpoint(twin, x, use_reentrant=False).square().sum().backward()
    for mine, other in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_padding_reaches_neither_output_nor_statistics():
    x, lengths = torch.randn(3, 4, 5, dtype=torch.float64), [5, 3, 4]
    padded = x.masked_fill(torch.arange(5) >= torch.tensor(lengths)[:, None, None], torch.nan)
    layer, twin = (normkit.IterNorm(4, dtype=torch.float64) for _ in range(2))
    y = layer(padded, lengths=lengths, activation="relu")
    valid = [one[:, :length].T for one, length in zip(x, lengths, strict=True)]
    expected = twin(torch.cat(valid)).relu().split(lengths)
    for out, exact, length in zip(y, expected, lengths, strict=True):
        torch.testing.assert_close(out[:, :length].T, exact)
        assert not out[:, length:].any()
    torch.testing.assert_close(layer.running_whitening, twin.running_whitening)


@pytest.mark.parametrize("training", [True, False])
def test_padding_that_is_nan_reaches_no_gradient(training: bool):
    """NaN times 0 is NaN, so padding has to be taken out before the products, also where statistics are given."""
    x, lengths = torch.randn(3, 4, 5, dtype=torch.float64), [5, 3, 4]
    padding = torch.arange(5) >= torch.tensor(lengths)[:, None, None]
    layer = normkit.IterNorm(4, dtype=torch.float64).train(training)
    found = []
    for filling in (0.0, torch.nan):
        leaf = x.masked_fill(padding, filling).requires_grad_()
        y = layer(leaf, lengths=lengths)
        y.square().sum().backward()
        found.append((y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad))
        layer.zero_grad()
    for plain, with_nan in zip(*found, strict=True):
        torch.testing.assert_close(with_nan, plain)
        assert plain.abs().sum() > 0
    assert not found[1][1].masked_select(padding).any()


def test_autocast_does_not_round_the_covariance():
    x = torch.randn(64, 4) * 100 + 1000
    with torch.autocast("cpu", torch.bfloat16):
        y = normkit.IterNorm(4)(x)
    torch.testing.assert_close(y, normkit.IterNorm(4)(x), rtol=0, atol=0)


def test_errors_name_rule_value_and_remedy():
    with pytest.raises(ArgumentError, match="num_groups of IterNorm must divide the channels, got 4 groups for 6 chan"):
        normkit.IterNorm(6, num_groups=4)
    with pytest.raises(ArgumentError, match="iterations of IterNorm must not be negative, got -1: the paper uses 5"):
        normkit.IterNorm(6, iterations=-1)
    with pytest.raises(ArgumentError, match="running_whitening outside training, got None: pass both"):
        functional.iter_norm(torch.ones(2, 4), None, None)
    with pytest.raises(ValueError, match=r"running_whitening of iter_norm must have shape \(1, 4, 4\)"):
        functional.iter_norm(torch.ones(2, 4), torch.zeros(4), torch.zeros(4, 4))


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("training", [True, False])
def test_a_mean_far_from_zero_costs_no_digits(ratio: float, training: bool):
    """In training the mean is subtracted in two steps, so that its rounding to float32 does not matter."""
    torch.manual_seed(0)
    x = torch.randn(16, 4, 8, 8) + torch.tensor([1.0, -0.7, 0.9, 1.1]).view(4, 1, 1) * ratio
    layer = normkit.IterNorm(4, num_groups=2, momentum=None)
    exact = normkit.IterNorm(4, num_groups=2, momentum=None, dtype=torch.float64)
    y, expected = layer(x), exact(x.double())
    if not training:
        # The running mean is a float32 number, and the oracle uses the same one.
        exact.load_state_dict(layer.state_dict())
        y, expected = layer.eval()(x), exact.eval()(x.double())
    error = (y.double() - expected).abs().max() / expected.abs().max()
    # Some roundings of numbers near 1: the differences from the mean are exact, their squares are summed in float32.
    assert error < 16 * torch.finfo(torch.float32).eps
