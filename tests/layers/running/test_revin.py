"""RevIN: there and back, and the statistics of a call."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import normkit
from normkit import functional
from normkit.errors import ArgumentError, ShapeError, StateError


def layer_of(channels: int = 3, **options: object) -> normkit.RevIN:
    layer = normkit.RevIN(channels, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-2, 1.5, channels))
        layer.bias.copy_(torch.linspace(-1, 1, channels))
    return layer


def of_the_paper(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized x, and y taken back, as the paper's implementation computes them, in float64."""
    x, y, weight, bias = (t.double() for t in (x, y, weight, bias))
    mean, stdev = x.mean(1, keepdim=True), (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    return (x - mean) / stdev * weight + bias, (y - bias) / (weight + 1e-10) * stdev + mean


def test_a_forecast_of_another_length_comes_back_as_in_the_paper():
    layer = layer_of()
    x, y = torch.randn(2, 8, 3) * 5 + 100, torch.randn(2, 4, 3)
    normalized, back = of_the_paper(x, y, layer.weight.detach(), layer.bias.detach())
    # x is rounded to some 1e-5 of 100, which is 2e-6 of its deviation.
    torch.testing.assert_close(layer(x).double(), normalized, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.inverse(y).double(), back, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(y, "denorm"), layer.inverse(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("times", [2, 7, 96, 513])
def test_a_constant_series_comes_back_exactly(dtype: torch.dtype, times: int):
    layer = layer_of(dtype=dtype)
    x = torch.tensor([0.1, -3.7, 1234.5], dtype=dtype).expand(2, times, 3).clone()
    y = layer(x)
    assert torch.equal(y, layer.bias.expand(y.shape))
    assert torch.equal(layer.inverse(y), x)


@pytest.mark.parametrize("weight", [0.0, 1e-10, -1e-10, 3e-6, -3e-6])
def test_a_weight_near_zero_gives_finite_results_with_its_sign(weight: float):
    layer = normkit.RevIN(1)
    with torch.no_grad():
        layer.weight.fill_(weight)
    x = torch.tensor([[[1.0], [3.0]]])
    layer(x)
    y = layer.inverse(torch.tensor([[[1e-6]]]))
    sign = -1 if weight < 0 else 1
    torch.testing.assert_close(y, torch.full_like(y, 2 + sign * 0.1))
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_the_gradient_follows_the_statistics_into_the_inverse():
    layer = layer_of(dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)

    def there_and_back(x: Tensor) -> Tensor:
        return layer.inverse(layer(x).tanh())

    assert torch.autograd.gradcheck(there_and_back, (x,))


def test_padded_times_count_in_nothing():
    layer = layer_of(dtype=torch.float64)
    x, lengths = torch.randn(2, 6, 3, dtype=torch.float64), [6, 4]
    padded = x.clone()
    padded[1, 4:] = torch.nan
    y = layer(padded, lengths=lengths)
    back = layer.inverse(y)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(y[i, :length], layer(x[i : i + 1, :length])[0])
        torch.testing.assert_close(back[i, :length], x[i, :length])
        assert not y[i, length:].any()
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    assert torch.equal(layer(padded, mask=mask), y)


def test_copies_and_state_dicts_have_no_statistics():
    layer = layer_of()
    x = torch.randn(2, 5, 3, requires_grad=True)
    layer(x)  # statistics with a graph, which can be neither copied nor pickled
    assert list(layer.state_dict()) == ["weight", "bias"]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(StateError, match="got no window yet: call the layer on the input first"):
            twin.inverse(x)
        twin(x)
        assert torch.equal(twin.inverse(x), layer.inverse(x))


def test_more_dimensions_of_time():
    x = torch.randn(2, 3, 4, 5)
    y, statistics = functional.revin(x)
    flat, _ = functional.revin(x.flatten(1, 2))
    torch.testing.assert_close(y.flatten(1, 2), flat)
    assert statistics.mean.shape == (2, 1, 1, 5)
    torch.testing.assert_close(functional.revin_inverse(y, statistics), x)


def test_errors_name_rule_value_and_remedy():
    layer = normkit.RevIN(3)
    with pytest.raises(StateError, match=r"(?s)what it has normalized, got no window yet.*in RevIN\(3"):
        layer.inverse(torch.ones(2, 5, 3))
    layer(torch.randn(2, 5, 3))
    with pytest.raises(ShapeError, match=r"shape \(2, T, 3\), got shape \(4, 5, 3\): pass the forecast of the batch"):
        layer.inverse(torch.ones(4, 5, 3))
    with pytest.raises(ArgumentError, match="'norm' or 'denorm', got 'denrom': did you mean 'denorm'"):
        layer(torch.ones(2, 5, 3), "denrom")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="mask or lengths with mode='norm' alone, got them with 'denorm'"):
        layer(torch.ones(2, 5, 3), "denorm", lengths=[5, 5])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_leaves_the_last_window_in_place(reentrant: bool):
    """Backward computes the first window again; what is taken back after it belongs to the second."""
    layer = layer_of()
    first, second = torch.randn(2, 2, 5, 3) * 4 + 10
    y = checkpoint(layer, first.requires_grad_(), use_reentrant=reentrant)
    layer(second)
    expected = layer.inverse(second)
    y.square().sum().backward()
    assert torch.equal(layer.inverse(second), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_inverse_inside_of_a_checkpoint_uses_its_own_window(reentrant: bool):
    layer = layer_of()
    windows = torch.randn(2, 2, 5, 3) * 4 + 10

    def forecast(x: Tensor) -> Tensor:
        return layer.inverse(layer(x).tanh())

    found = []
    for run in (forecast, lambda x: checkpoint(forecast, x, use_reentrant=reentrant)):
        layer.zero_grad()
        leaves = [x.clone().requires_grad_() for x in windows]
        # Both before the first backward, so that the window of the first is no longer the last one then.
        sum(run(x).square().sum() for x in leaves).backward()
        found.append([leaf.grad for leaf in leaves] + [layer.weight.grad.clone(), layer.bias.grad.clone()])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(recomputed, plain)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e5])
def test_a_mean_far_from_zero_costs_no_digits(ratio: float):
    torch.manual_seed(0)
    x = torch.randn(4, 96, 3) + torch.tensor([1.0, -0.7, 1.1]) * ratio
    layer = layer_of()
    y = layer(x)
    exact, _ = of_the_paper(x, x, layer.weight.detach(), layer.bias.detach())
    eps = torch.finfo(torch.float32).eps
    # Some roundings of numbers near 1: x minus its mean is exact in the kernels, however large both are.
    assert (y.double() - exact).abs().max() <= 4 * eps * exact.abs().max()
    # Back at its scale an output has the roundings of a number of that size.
    assert (layer.inverse(y).double() - x.double()).abs().max() <= 4 * eps * x.double().abs().max()
