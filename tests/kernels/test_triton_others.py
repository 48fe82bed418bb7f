"""What the GPU kernels do besides norms: weight normalization, running statistics, rows in low precision."""

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
    slow_if,
)
from triton.runtime import interpreter

import low_precision
from normkit import functional
from normkit.functional.call.running import Running, update
from normkit.kernels import devices, weight
from normkit.kernels.dtypes import arithmetic_dtype

pytestmark = marks


WEIGHTS = [
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
]


@pytest.mark.parametrize(
    ("dtype", "shape", "dim"),
    [
        # The shape decides how a tensor is read, the dtype how a number is: each dtype has every other shape.
        slow_if(dtype is not torch.float32 and (math.prod(shape) > 50000 or (i + j) % 2 == 1), dtype, shape, dim)
        for i, dtype in enumerate(DTYPES)
        for j, (shape, dim) in enumerate(WEIGHTS)
    ],
)
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


KINDS = {
    "fp8e4nv": (torch.float8_e4m3fn, torch.uint8),
    "fp8e5": (torch.float8_e5m2, torch.uint8),
    "bf16": (torch.bfloat16, torch.uint16),
}


@pytest.fixture
def by_torch(monkeypatch):
    """The interpreter cuts bits off to reach bfloat16, and loses a carry on the way to 8 bits: so torch rounds."""
    if DEVICE != "cpu":
        return
    convert = interpreter._convert_float

    def rounded_by_torch(values, input_dtype, output_dtype, rounding_mode):
        if str(output_dtype) not in KINDS:
            return convert(values, input_dtype, output_dtype, rounding_mode)
        dtype, bits = KINDS[str(output_dtype)]
        assert bits is torch.uint16 or "RTNE" in str(rounding_mode)
        return torch.from_numpy(values).to(dtype).view(bits).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded_by_torch)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("given", [False, True])
def test_rows_in_eight_bits(dtype, given):
    for length in (7, 300):
        x, w, b = draw(5, 3, length), draw(length), draw(length)
        scale = torch.tensor(0.01, device=DEVICE) if given else None
        y, own = functional.quantized_layer_norm(x, w, b, dtype=dtype, scale=scale)
        want = torch.nn.functional.layer_norm(x, (length,), w, b)
        want = want.clamp(-own * torch.finfo(dtype).max, own * torch.finfo(dtype).max)
        assert y.shape == x.shape
        assert y.dtype == dtype
        assert own.shape == (() if given else (5, 3, 1))
        # Half a unit of the format's last place; the smallest numbers have a fixed one.
        step = torch.finfo(dtype)
        bound = (want.abs() * step.eps / 2 + own * step.smallest_normal * step.eps) * 1.01 + 1e-6
        assert ((y.float() * own - want).abs() <= bound).all()
        if not given:
            assert torch.equal(y.float().abs().amax(-1), torch.full((5, 3), step.max, device=DEVICE))
    rms, own = functional.quantized_rms_norm(x, w, dtype=dtype)
    assert (
        (rms.float() * own - torch.nn.functional.rms_norm(x, (length,), w, 1e-6)).abs() <= 0.1 * own * step.max
    ).all()


@pytest.mark.usefixtures("by_torch")
@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU divides within 2 units of the last place, the interpreter exactly")
@pytest.mark.parametrize(
    ("scaling", "dtype", "size"),
    [
        *(("row", dtype, 80) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)),
        *(("group", dtype, 16) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)),
        *(("mxfp8", dtype, 32) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)),
    ],
)
def test_formats_of_low_precision(monkeypatch, scaling, dtype, size):
    used = devices.triton_kernels().quantize
    served = []
    monkeypatch.setattr(devices.triton_kernels(), "quantize", lambda *args: served.append(used(*args)) or served[-1])
    rows = low_precision.awkward(20, 96 if scaling == "mxfp8" else 80)
    rows[1, 3], rows[2, 40], rows[3, 63] = torch.nan, torch.inf, -torch.inf
    low_precision.check(rows, scaling, dtype, size)
    points = low_precision.between(low_precision.VALUES[dtype])[: 384 if dtype is torch.int8 else None]
    if scaling == "row":
        low_precision.check(points[None], scaling, dtype, len(points), given=1.0)
    if scaling == "mxfp8":
        low_precision.check(points[: len(points) // 32 * 32][None], scaling, dtype, size)
    assert served
    assert None not in served


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("scaling", ["row", "group", "mxfp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("center", [True, False])
def test_what_is_computed_before_rounding(scaling, dtype, center):
    """Residual, half-precision weights around 0 and a gate: within a step of what the formula rounds."""
    x, residual, gate = (draw(3, 5, 256, dtype=dtype) for _ in range(3))
    w, b = draw(256, dtype=dtype), draw(256, dtype=dtype)
    fused = {"residual": residual, "gate": gate, "gate_activation": "silu", "zero_centered": True}
    call, args = (functional.quantized_layer_norm, (w, b)) if center else (functional.quantized_rms_norm, (w,))
    y, scale, total = call(x, *args, **fused, scaling=scaling, return_residual=True)
    assert torch.equal(total, x + residual)
    s = total.double()
    s = s - s.mean(-1, keepdim=True) if center else s
    z = s / (s.square().mean(-1, keepdim=True) + (1e-5 if center else 1e-6)).sqrt() * (w.double() + 1)
    z = ((z + b.double()) if center else z) * torch.nn.functional.silu(gate.double())
    used = scale.double().repeat_interleave(256 // scale.shape[-1], -1)
    # One of 8 steps between powers of two; half a step is rounding, and the smallest numbers have a fixed one. Values
    # beyond the largest element of a block with a power of two lose up to an eighth.
    bound = z.abs() * 2**-4 + used * 2**-10 + (z.abs() / 8 * (scaling == "mxfp8"))
    assert ((y.double() * used - z).abs() <= bound * 1.001).all()


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("scaling", ["row", "group", "mxfp8"])
def test_a_row_in_low_precision_has_the_same_bits_in_any_batch(scaling):
    x, w = draw(37, 128), draw(128)
    y, scale = functional.quantized_rms_norm(x, w, scaling=scaling)
    for start, end in ((0, 1), (17, 18), (36, 37), (3, 9)):
        alone, own = functional.quantized_rms_norm(x[start:end], w, scaling=scaling)
        assert torch.equal(alone.view(torch.uint8), y[start:end].view(torch.uint8))
        assert torch.equal(own.view(torch.uint8), scale[start:end].view(torch.uint8))


def test_what_the_kernel_of_low_precision_leaves_to_the_formula():
    x = draw(2, 96)
    for options in ({"scaling": "group", "group_size": 48}, {"scaling": "nvfp4"}):
        y, scale, *_ = functional.quantized_layer_norm(x, **options)
        assert scale.shape == (2, 96 // options.get("group_size", 16))
        assert y.is_contiguous()
