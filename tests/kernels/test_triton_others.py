"""What the GPU kernels do besides norms: weight normalization, running statistics."""

from __future__ import annotations

import math

import pytest
import torch
from interpreted import (
    DEVICE,
    DTYPES,
    by_triton,  # noqa: F401
    draw,
    error,
    exact,
    marks,
)

from normkit.functional.call.running import Running, update
from normkit.kernels import weight
from normkit.kernels.dtypes import arithmetic_dtype

pytestmark = marks


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((16, 8, 3, 3), 0),
        ((40, 300), 0),
        ((30, 50), 1),
        ((150, 150), None),
        ((400, 400), None),
        ((2, 40000), 0),
        # Filters of a transposed convolution: columns of one cell, read once, twice and in parts.
        ((12, 5, 3, 3), 1),
        ((700, 5, 3, 3), 1),
        ((6000, 5, 3, 3), 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_norm(shape, dim, dtype):
    if DEVICE == "cpu" and math.prod(shape) > 200000 and dtype not in (torch.float32, torch.bfloat16):
        pytest.skip("thousands of programs, which the interpreter takes one after another")
    v = (draw(*shape) * torch.tensor(1e-3 if dtype is torch.float16 else 1e18)).to(dtype)
    v.view(-1)[0] = 0
    if dim is not None:
        v.select(dim, 1).zero_()
    kept = 1 if dim is None else shape[dim]
    g, dw = draw(kept, dtype=arithmetic_dtype(dtype)), draw(*shape, dtype=dtype)
    w, length = weight.weight_norm(v, g, dim)
    dv, dg = weight.weight_norm_backward(dw, v, g, length, dim)
    ve, ge, dwe = exact(v, g, dw)
    shaped = ge.view([1 if d != dim else -1 for d in range(len(shape))]) if dim is not None else ge.reshape(())
    want = weight._reference(ve, shaped, dim)
    wants = weight._gradients(dwe, ve, shaped, dim)
    eps = torch.finfo(dtype).eps
    lengths = weight._length(ve, dim).reshape(-1)
    lengths = torch.where(lengths > 0, lengths, 1)
    assert (length.double().cpu() / lengths - 1).abs().max() <= 1e-6
    assert error(w, want) <= 2 * eps
    largest = wants[0].abs().max().item()
    assert error(dv / largest, wants[0] / largest) <= 16 * eps
    assert error(dg, wants[1].reshape(-1)) <= 64 * torch.finfo(g.dtype).eps


@pytest.mark.parametrize("samples", [1, 3])
def test_running_statistics(samples):
    channels = 300
    mean, std = draw(samples * channels), draw(samples * channels).abs()
    mean[5], std[7] = torch.nan, torch.inf
    old = (draw(channels), draw(channels).abs())
    updated, expected = [t.clone() for t in old], [t.clone().cpu() for t in old]
    update(Running(*updated, 20, 0.3), mean, std)
    m, v = mean.view(samples, -1).mean(0).cpu(), (std.square() * 20 / 19).view(samples, -1).mean(0).cpu()
    finite = m.isfinite() & v.isfinite()
    assert finite.sum() == channels - 2
    for got, first, new in zip(updated, expected, (m, v), strict=True):
        torch.testing.assert_close(got.cpu(), torch.where(finite, first.lerp(new, 0.3), first))
