"""Weight standardization: against the definition, as a parametrization, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import normkit
from normkit.errors import ArgumentError, ShapeError, StateError
from normkit.functional import weight_standardization


def definition(weight, dim, eps=1e-5):
    axes = [axis for axis in range(weight.dim()) if axis != dim]
    var, mean = torch.var_mean(weight.double(), axes, correction=0, keepdim=True)
    return (weight.double() - mean) / (var + eps).sqrt()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (5, 7), (64, 128, 5)])
def test_it_is_the_definition(shape, dim, offset):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset
    want = definition(weight, dim % len(shape))
    # The bound of every normalization here: 4 eps (1 + |mean| / std).
    bound = 4 * torch.finfo(torch.float32).eps * (1 + offset) + 1e-6
    assert (weight_standardization(weight, dim=dim).double() - want).abs().max() < bound


def test_gradients():
    weight = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(weight_standardization, (weight, gain))
    assert gradgradcheck(weight_standardization, (weight, gain))


def test_a_filter_without_variance_is_zero_and_finite():
    weight = torch.full((2, 3, 3), 7.0, requires_grad=True)
    y = weight_standardization(weight)
    assert torch.equal(y, torch.zeros_like(y))
    y.square().sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_it_is_what_batch_norm_makes_of_the_filters():
    weight = torch.randn(8, 3, 3, 3)
    trick = F.batch_norm(weight.reshape(1, 8, -1), None, None, training=True, eps=1e-5).reshape_as(weight)
    # Two roundings of numbers below 4, each by half a unit.
    torch.testing.assert_close(weight_standardization(weight), trick, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gain", [False, True])
def test_it_can_be_copied_saved_and_removed(gain):
    conv = normkit.weight_standardization(nn.Conv2d(3, 4, 3), gain=gain)
    used = conv.weight.detach().clone()
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(twin.weight, used)
    other = normkit.weight_standardization(nn.Conv2d(3, 4, 3), gain=gain)
    other.load_state_dict(conv.state_dict())
    assert torch.equal(other.weight, used)
    normkit.remove_weight_standardization(conv)
    assert type(conv) is nn.Conv2d
    assert torch.equal(conv.weight, used)
    assert [name for name, _ in conv.named_parameters()] == ["weight", "bias"]


def test_training_moves_the_weight_beneath():
    conv = normkit.weight_standardization(nn.Conv2d(3, 4, 3), gain=True)
    before = {name: p.detach().clone() for name, p in conv.named_parameters()}
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    conv(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in conv.named_parameters())


def test_what_is_refused_changes_nothing():
    conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ArgumentError, match=r"has 4; got 4: use 0 for a convolution"):
        normkit.weight_standardization(conv, dim=4)
    with pytest.raises(ArgumentError, match="weight_standardization needs a parameter of Conv2d; 'weigth' is none"):
        normkit.weight_standardization(conv, "weigth")
    with pytest.raises(ShapeError, match=r"got shape \(4,\) with dim=0: leave this weight as it is"):
        normkit.weight_standardization(conv, "bias")
    with pytest.raises(StateError, match="call weight_standardization first"):
        normkit.remove_weight_standardization(conv)
    assert type(conv) is nn.Conv2d
    normkit.weight_standardization(conv)
    with pytest.raises(StateError, match="already has WeightStandardization"):
        normkit.weight_norm(conv)
