"""Defects seen in other implementations of these methods, each as a test of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import normkit
from cases import BATCH, INSTANCE, LAYOUTS, PIXEL, Oracle, layer_oracle, per_group
from normkit import functional
from normkit.errors import ShapeError

GROUPS = Oracle(per_group(2), 1e-5, channels_first=True)
ROWS = layer_oracle(-1)
RMS = layer_oracle(-1, center=False)

Method = Callable[..., Tensor]
METHODS: dict[str, tuple[Method, Oracle]] = {
    "batch_norm": (lambda x, *p: functional.batch_norm(x, None, None, *p, training=True), BATCH),
    "instance_norm": (lambda x, *p: functional.instance_norm(x, None, None, *p), INSTANCE),
    "group_norm": (lambda x, *p: functional.group_norm(x, 2, *p), GROUPS),
    "layer_norm2d": (lambda x, *p: functional.layer_norm2d(x, *p), PIXEL),
    "layer_norm": (lambda x, *p: functional.layer_norm(x, x.shape[-1:], *p), ROWS),
    "rms_norm": (lambda x, *p: functional.rms_norm(x, x.shape[-1:], *p[:1], eps=1e-5), RMS),
}
every = pytest.mark.parametrize("method", list(METHODS))


def assert_within(y: Tensor, oracle: Oracle, x: Tensor, units: float = 4) -> None:
    """The published bound, for y without weight and bias: see `contract.VALUE_UNITS`."""
    expected = oracle(x, {})
    bound = units * torch.finfo(y.dtype).eps * oracle.condition(x) * expected.abs().clamp(min=1)
    excess = ((y.double() - expected).abs() / bound).max().item()
    assert excess <= 1, f"{excess:.2f} times the bound"


def assert_gradients_within(method: Method, oracle: Oracle, x: Tensor, channels: int, units: float) -> None:
    """Gradients of input, weight and bias against the oracle's, relative to the largest entry of each."""
    torch.manual_seed(1)
    leaves = [x.detach().requires_grad_(), torch.randn(channels) + 2, torch.randn(channels)]
    leaves[1:] = [p.requires_grad_() for p in leaves[1 : 2 if method is METHODS["rms_norm"][0] else 3]]
    wide = [p.detach().double().requires_grad_() for p in leaves]
    dy = torch.randn(x.shape)
    ours = torch.autograd.grad(method(*leaves), leaves, dy)
    named = dict(zip(("weight", "bias"), wide[1:], strict=False))
    theirs = torch.autograd.grad(oracle(wide[0], named), wide, dy.double())
    scale = oracle.condition(x).max()
    for mine, exact in zip(ours, theirs, strict=True):
        bound = units * torch.finfo(x.dtype).eps * scale * exact.abs().max().clamp(min=1)
        assert (mine.double() - exact).abs().max() <= bound


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@every
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("channels_last_3d", "expanded")])
@pytest.mark.parametrize("mean", [1000, 3000])
def test_a_mean_a_thousand_times_the_deviation(method, layout, mean):
    """torch 2.13's group_norm is off by 1.0 here in channels_last."""
    call, oracle = METHODS[method]
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(8, 8, 16, 16) + mean)
    assert_within(call(x), oracle, x)


def test_layer_norm_of_neighbouring_large_numbers():
    y = functional.layer_norm(torch.tensor([40000.0, 40001.0, 40002.0, 40003.0]), (4,))
    torch.testing.assert_close(y, torch.tensor([-1.3416, -0.4472, 0.4472, 1.3416]), rtol=0, atol=5e-5)
    x = 1000 + torch.arange(16) * 1e-3
    assert_within(functional.layer_norm(x, (16,)), ROWS, x)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "rms_norm"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 123456.7])
def test_a_constant_region_gives_bias_exactly(method, layout, value):
    call, _ = METHODS[method]
    for shape in ((2, 2, 3, 5), (4, 6, 13, 31)):
        channels = shape[-1] if method == "layer_norm" else shape[1]
        bias = torch.randn(channels)
        x = LAYOUTS[layout](torch.full(shape, value))
        expected = bias.expand(shape) if method == "layer_norm" else bias.view(-1, 1, 1).expand(shape)
        assert torch.equal(call(x, torch.randn(channels), bias), expected)


def test_long_rows_of_small_variance():
    torch.manual_seed(0)
    x = torch.randn(64, 32768) * 0.01 + 100
    y = functional.layer_norm(x, (32768,))
    assert_within(y, ROWS, x)
    # The variance is about 1e-4 + eps; were it lost, the result would be a factor 3 larger, or not a number.
    torch.testing.assert_close(y.var(-1), torch.full((64,), 1e-4 / 1.1e-4), rtol=0.05, atol=0)


@every
@pytest.mark.parametrize("magnitude", [1e18, 1e30])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_magnitudes_whose_squares_overflow(method, magnitude, layout):
    call, oracle = METHODS[method]
    torch.manual_seed(0)
    x = LAYOUTS[layout]((torch.randn(4, 6, 5, 7) + 1) * magnitude).requires_grad_()
    y = call(x)
    assert_within(y.detach(), oracle, x.detach())
    torch.manual_seed(1)
    dy = torch.randn(y.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(oracle(wide, {}), wide, dy.double())
    # About 1 / magnitude, whose own rounding is relative to it.
    torch.testing.assert_close(dx.double() * magnitude, exact * magnitude, rtol=1e-4, atol=1e-5)


@every
def test_half_precision_beyond_its_own_sums(method):
    call, oracle = METHODS[method]
    torch.manual_seed(0)
    narrow = (torch.randn(4, 6, 16, 16) * 0.1 + 5).to(torch.bfloat16)
    assert_within(call(narrow), oracle, narrow)
    large = (torch.rand(4, 6, 16, 16) * 60000).to(torch.float16)
    assert_within(call(large), oracle, large)


def test_rms_norm_of_zeros_and_of_half_precision():
    x = torch.zeros(2, 8, requires_grad=True)
    y = normkit.RMSNorm(8)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 8))
    assert x.grad.isfinite().all()
    torch.manual_seed(0)
    x = (torch.randn(4, 64) * 1e-3).to(torch.bfloat16)
    exact = normkit.RMSNorm(64)(x.float())
    # The same eps in both, so that only the result's rounding to bf16 is left.
    torch.testing.assert_close(
        normkit.RMSNorm(64, dtype=torch.bfloat16)(x).float(), exact, rtol=torch.finfo(torch.bfloat16).eps, atol=0
    )


def test_layer_norm_of_one_value():
    layer = normkit.LayerNorm(1)
    with torch.no_grad():
        layer.bias.fill_(3)
    y = layer(torch.full((5, 1), 1e6))
    y.sum().backward()
    assert torch.equal(y, torch.full((5, 1), 3.0))
    assert torch.equal(layer.weight.grad, torch.zeros(1))


@pytest.mark.parametrize("method", ["batch_norm", "group_norm", "layer_norm", "rms_norm", "layer_norm2d"])
@pytest.mark.parametrize("rows", [65535, 65537])
def test_more_rows_than_a_small_grid_holds(method, rows):
    call, oracle = METHODS[method]
    torch.manual_seed(0)
    x = torch.randn(rows, 4) * 2 + 1
    assert_within(call(x), oracle, x)
    # Sums of 65537 terms near 1: their partial sums round at the size of the whole, sqrt(65537) = 256, which
    # is about the largest entry, so the bound stays relative to that; 4 times 16 units for the longer sum.
    assert_gradients_within(call, oracle, x, 4, units=64)


@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
def test_the_last_rows_reach_the_weights_gradient(method):
    call, oracle = METHODS[method]
    for rows in (1, 2, 3, 7, 8, 9, 31, 33, 65, 130):
        for size in (2, 3, 8, 17, 40):
            torch.manual_seed(rows)
            assert_gradients_within(call, oracle, torch.randn(rows, size) + 1, size, units=16)


@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("size", [2, 7, 64, 1000])
def test_one_dimension(method, size):
    call, oracle = METHODS[method]
    torch.manual_seed(0)
    x = torch.randn(size) * 2 + 1
    assert_within(call(x), oracle, x)
    assert_gradients_within(call, oracle, x, size, units=16)


@pytest.mark.parametrize("method", ["batch_norm", "group_norm", "layer_norm2d"])
@pytest.mark.parametrize("strides", [(6, 1, 1, 1), (6, 1, 6, 6), (6, 1, 99, 7), (1, 5, 1, 1), (12, 2, 1, 1)])
def test_one_pixel_whose_strides_mean_nothing(method, strides):
    call, oracle = METHODS[method]
    torch.manual_seed(0)
    x = torch.randn(100).as_strided((5, 6, 1, 1), strides)
    assert_within(call(x), oracle, x)
    assert_gradients_within(call, oracle, x, 6, units=16)


@every
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_the_same_bits_with_any_number_of_threads(method, layout):
    call, _ = METHODS[method]
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(16, 32, 28, 28)).requires_grad_()
    size = x.shape[-1 if method in ("layer_norm", "rms_norm") else 1]
    weight = torch.randn(size, requires_grad=True)
    dy = torch.randn(x.shape)
    runs = []
    for number in (1, 2, 2, 3):
        with threads(number):
            y = call(x, weight)
            runs.append([y, *torch.autograd.grad(y, [x, weight], dy)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("method", ["instance_norm", "group_norm", "layer_norm2d", "layer_norm", "rms_norm"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_bits_in_any_batch(method, layout):
    call, _ = METHODS[method]
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(24, 12, 23, 17))
    y = call(x)
    for first, last in ((0, 1), (5, 6), (3, 20)):
        assert torch.equal(call(LAYOUTS[layout](x[first:last])), y[first:last])


def test_double_backward_in_evaluation():
    layer = normkit.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.sum(), x)
    # y = x * r with r = 1 / sqrt(1 + eps), so the second derivative of y^3 is 6 r^3 x.
    torch.testing.assert_close(second, 6 * x.detach() / (1 + layer.eps) ** 1.5)


def test_instance_norm_of_one_pixel_is_refused_for_every_batch():
    for batch in (1, 2):
        with pytest.raises(ShapeError, match="more than one position"):
            normkit.InstanceNorm2d(3)(torch.randn(batch, 3, 1, 1))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    rows, size = 65537, 32768
    x = torch.empty(rows, size, dtype=torch.float16)
    for part in x.split(4096):
        part.copy_(torch.randn(size) + 3)
    x[-1] += 1
    y = functional.layer_norm(x, (size,))
    for row in (0, 65535, 65536):
        assert_within(y[row], ROWS, x[row])
