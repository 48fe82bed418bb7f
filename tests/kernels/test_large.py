"""Tensors too large for the cache take other ways through memory: results go past the cache, and reads look ahead."""

from __future__ import annotations

import pytest
import torch

from normkit.functional import normalize

SHAPES = ((7, 3, 561, 601), (9, 48, 131, 127), (1100, 6, 33, 33))
"""Over 24 MiB in fp32, with rows that start anywhere in a cache line."""


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        (SHAPES[1], torch.bfloat16),
        *(pytest.param(shape, torch.bfloat16, marks=pytest.mark.slow) for shape in SHAPES[::2]),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pattern", ["b c [...]", "b (g [c]) [...]", "b [c] ...", "b [c ...]"])
def test_a_sample_has_the_bits_it_has_alone(
    pattern: str, layout: torch.memory_format, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if dtype is torch.bfloat16:
        shape = (2 * shape[0], *shape[1:])
    x = torch.randn(shape).to(dtype).to(memory_format=layout).requires_grad_()
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    groups = 3 if "g" in pattern else None
    y = normalize(x, pattern, weight, bias, num_groups=groups)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).cumsum(3).to(dtype))
    for i in (0, shape[0] // 2, shape[0] - 1):
        one = x[i : i + 1].detach().requires_grad_()
        alone = normalize(one, pattern, weight, bias, num_groups=groups)
        (d_alone,) = torch.autograd.grad(alone, one, torch.ones_like(one).cumsum(3).to(dtype))
        assert torch.equal(y[i : i + 1], alone)
        assert torch.equal(dx[i : i + 1], d_alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("pattern", "size"), [("b c [...]", 20), ("b c [...]", 120), ("b (g [c]) [...]", 120)])
def test_a_masked_sample_has_the_bits_it_has_alone(
    pattern: str, size: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    bytes_of_one = 64 * size * (size + 1) * dtype.itemsize
    samples = (25 << 20) // bytes_of_one + 1
    x = torch.randn(samples, 64, size, size + 1).to(dtype).to(memory_format=layout).requires_grad_()
    mask = torch.rand(samples, size, size + 1) > 0.3
    mask[:, 7:12] = False
    mask[1], mask[2, size // 2 :], mask[3] = True, False, False
    groups = 4 if "g" in pattern else None
    y = normalize(x, pattern, num_groups=groups, mask=mask)
    (dx,) = torch.autograd.grad(y, x, y.detach() + 1)
    for i in (0, 1, 2, 3, samples - 1):
        one = x[i : i + 1].detach().requires_grad_()
        alone = normalize(one, pattern, num_groups=groups, mask=mask[i : i + 1])
        (d_alone,) = torch.autograd.grad(alone, one, alone.detach() + 1)
        for large, small in ((y, alone), (dx, d_alone)):
            assert torch.equal(large[i : i + 1], small)
            assert not small[0, :, ~mask[i]].any()
    # Without padding each cell has mean 0 and variance 1, up to one rounding of each value, which is at most about 6.
    valid = y[1].detach().double()
    cells = valid.unflatten(0, (groups or 64, -1)).flatten(1)
    assert cells.mean(1).abs().max() < 6 * torch.finfo(dtype).eps
    assert (cells.var(1, correction=0) - 1).abs().max() < 6 * torch.finfo(dtype).eps + 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_is_right(layout: torch.memory_format) -> None:
    x = torch.randn(SHAPES[1]).to(memory_format=layout)
    y = normalize(x, "[b] c [...]")
    exact = x.double()
    var, mean = torch.var_mean(exact, (0, 2, 3), correction=0, keepdim=True)
    # One rounding of the result, one of the factor, one of the difference: y is at most about 5.
    torch.testing.assert_close(y.double(), (exact - mean) / (var + 1e-5).sqrt(), rtol=3e-7, atol=3e-7)
