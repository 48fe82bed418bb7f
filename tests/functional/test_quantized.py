"""Norms in formats of low precision: exactly the format's bits, and what is computed before values are rounded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from low_precision import E2M1, VALUES, awkward, between, check, rounded
from normkit.errors import ArgumentError, DtypeError, ShapeError
from normkit.functional import quantized_layer_norm, quantized_rms_norm

E4M3, E5M2, INT8, FP4 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.float4_e2m1fn_x2
FORMATS = [
    *((scaling, dtype, size) for scaling, size in (("row", 64), ("group", 16)) for dtype in (E4M3, E5M2, INT8)),
    *(("mxfp8", dtype, 32) for dtype in (E4M3, E5M2)),
    ("nvfp4", FP4, 16),
]
each_format = pytest.mark.parametrize(("scaling", "elements", "size"), FORMATS)


@each_format
def test_rows_of_every_magnitude(scaling, elements, size):
    check(awkward(24, 64), scaling, elements, size)


@each_format
def test_values_that_are_not_finite(scaling, elements, size):
    rows = torch.randn(6, 64)
    rows[0, 3], rows[1, 40], rows[2, 63], rows[3, :] = torch.nan, torch.inf, -torch.inf, torch.nan
    check(rows, scaling, elements, size)
    if scaling in ("row", "nvfp4"):
        check(rows, scaling, elements, size, given=0.02)


@pytest.mark.parametrize("dtype", [E4M3, E5M2, INT8])
def test_ties_go_to_even_and_the_rest_saturates(dtype):
    points = between(VALUES[dtype])
    check(points[None], "row", dtype, len(points), given=1.0)
    check((points * 0.75)[None], "row", dtype, len(points), given=0.75)
    check((points * 3)[None], "row", dtype, len(points), given=1.0)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_ties_in_blocks_with_a_power_of_two(dtype):
    points = between(VALUES[dtype])
    rows = torch.cat([points, points.new_zeros(-len(points) % 31)]).view(-1, 31)
    # One element of each block sets its scale to 1: the largest value, or what is beyond it and saturates.
    top = float(VALUES[dtype][-1])
    for first in (top, 1.1 * top, -top):
        check(torch.cat([torch.full((len(rows), 1), first), rows.clamp(-top, top)], 1), "mxfp8", dtype, 32)


def test_ties_in_blocks_of_four_bits():
    points = between(E2M1)
    rows = torch.cat([points, points.new_zeros(-len(points) % 15)]).view(-1, 15).clamp(-6, 6)
    rows = torch.cat([torch.full((len(rows), 1), 6.0), rows], 1)
    check(rows, "nvfp4", FP4, 16, given=1.0)
    check(rows * 1000, "nvfp4", FP4, 16, given=1.0)  # beyond 6 * 448
    check(torch.cat([rows, rows * 2**-8, rows * 2**-12]), "nvfp4", FP4, 16, given=1.0)  # scales that are subnormal


def test_ties_of_block_scales():
    steps = between(VALUES[E4M3])
    steps = steps[steps >= 0][:400]
    rows = torch.rand(len(steps), 16) * steps[:, None]
    rows[:, 7] = -6 * steps
    check(rows, "nvfp4", FP4, 16, given=1.0)


def test_a_power_of_two_is_the_specification_s():
    """OCP Microscaling Formats 1.0, 6.3: the exponent of the largest value, less that of the largest element."""
    row = torch.zeros(1, 32)
    for most, exponent in ((1.0, -8), (511.9, 0), (512.0, 1), (2.0**127, 119), (2.0**-126, -127), (1e-44, -127)):
        row[0, 5] = most
        _, scale = quantized_layer_norm(torch.zeros(1, 32), bias=torch.ones(32), gate=row, scaling="mxfp8")
        assert scale.view(torch.uint8).item() == exponent + 127
        assert scale.dtype is torch.float8_e8m0fnu


def test_nvfp4_is_restored_from_three_factors():
    x = torch.randn(8, 64)
    y, scale, of_all = quantized_rms_norm(x, scaling="nvfp4")
    codes = torch.stack([y.view(torch.uint8) & 15, y.view(torch.uint8) >> 4], -1).flatten(1).long()
    values = torch.tensor([float(v) for v in E2M1] + [-float(v) for v in E2M1])[codes]
    restored = (values.view(8, 4, 16) * scale.float()[..., None] * of_all).flatten(1)
    want = F.rms_norm(x, (64,), eps=1e-6)
    # Half of the widest step of E2M1, 2 of 6; a block's scale has an error of 1/16, which can cut off as much.
    bound = want.view(8, 4, 16).abs().amax(-1, keepdim=True) * (1 / 6 + 1 / 16)
    assert ((restored - want).view(8, 4, 16).abs() <= bound).all()
    assert of_all == want.abs().max() / (6 * 448)


def oracle(x, weight, bias, eps, center, residual, gate, activation, zero_centered):
    """What is rounded, in float64, and the sum."""
    total = x if residual is None else x + residual
    s = total.double()
    s = s - s.mean(-1, keepdim=True) if center else s
    z = s / (s.square().mean(-1, keepdim=True) + eps).sqrt()
    z = z * (weight.double() + zero_centered) if weight is not None else z
    z = z + bias.double() if bias is not None else z
    return z if gate is None else z * activation(gate.double()), total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("center", [True, False])
@each_format
def test_what_is_computed_before(scaling, elements, size, center, dtype):
    """Residual, norm and gate in the input's dtype: the same bits as those of the values themselves."""
    options = {"scaling": scaling, "dtype": elements, **({"group_size": size} if scaling == "group" else {})}
    x, residual, gate = (torch.randn(3, 4, 64).to(dtype) for _ in range(3))
    weight, bias = torch.randn(64).to(dtype), torch.randn(64).to(dtype)
    call = {"residual": residual, "gate": gate, "gate_activation": "silu", "return_residual": True}
    call |= {"zero_centered": True, **options}
    if center:
        *got, total = quantized_layer_norm(x, weight, bias, 1e-3, **call)
    else:
        *got, total = quantized_rms_norm(x, weight, 1e-3, **call)
        bias = None
    z, want = oracle(x, weight, bias, 1e-3, center, residual, gate, F.silu, 1)
    assert torch.equal(total, want)
    # float64 rounds to float32 in one way or, next to a tie, in the other; the drawn numbers have no such tie.
    direct = rounded(z.float().view(12, 64), **options)
    assert all(same_bits(one, other) for one, other in zip(got, direct, strict=True))


def same_bits(one, other):
    if one.dtype is torch.float32:
        return torch.equal(one.flatten(), other.flatten())
    return torch.equal(one.view(torch.uint8).flatten(), other.view(torch.uint8).flatten())


@each_format
def test_shapes_layouts_and_empty_inputs(scaling, elements, size):
    options = {"scaling": scaling, "dtype": elements, **({"group_size": size} if scaling == "group" else {})}
    x = torch.randn(64, 5, 3).permute(2, 1, 0)
    residual = torch.randn(3, 5, 64)
    out = quantized_layer_norm(x, residual=residual, return_residual=True, **options)
    assert all(t.is_contiguous() for t in out)
    again = quantized_layer_norm(x.contiguous(), residual=residual, return_residual=True, **options)
    assert all(same_bits(one, other) for one, other in zip(out, again, strict=True))
    bytes_of = 32 if scaling == "nvfp4" else 64
    assert out[0].shape == (3, 5, bytes_of)
    assert out[1].shape == (3, 5, 1 if scaling == "row" else 64 // size)
    for shape in ((0, 64), (3, 0, 64), (3, 0)):
        y, scale, *_ = quantized_rms_norm(torch.randn(shape), **options)
        assert y.shape == (*shape[:-1], shape[-1] // (64 // bytes_of))
        assert scale.shape == (*shape[:-1], 1 if scaling == "row" else shape[-1] // size)


@pytest.mark.parametrize(
    ("scaling", "elements", "size"), [("row", E4M3, 0), ("group", INT8, 16), ("mxfp8", E5M2, 32), ("nvfp4", FP4, 16)]
)
def test_traced_calls_are_eager_calls(scaling, elements, size):
    x, residual, gate, weight = torch.randn(3, 64), torch.randn(3, 64), torch.randn(3, 64), torch.randn(64)
    args = (x, weight, weight, None, 1e-5, True, elements, scaling, size, residual, gate, "gelu", True)
    torch.library.opcheck(torch.ops.normkit.quantize.default, args)
    if scaling in ("row", "nvfp4"):
        args = (*args[:3], torch.tensor(0.1), *args[4:])
        torch.library.opcheck(torch.ops.normkit.quantize.default, args, test_utils=("test_schema", "test_faketensor"))

    def call(x):
        options = {"group_size": size} if scaling == "group" else {}
        return quantized_rms_norm(x, weight, scaling=scaling, dtype=elements, gate=gate, **options)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    out = call(x)
    assert not any(t.requires_grad for t in out)
    assert all(same_bits(one, other) for one, other in zip(compiled(x), out, strict=True))


ERRORS = [
    (
        {"scaling": "rows"},
        ArgumentError,
        "scaling of quantized_rms_norm must be one of 'row', 'group', 'mxfp8', 'nvfp4', got 'rows': "
        "did you mean 'row'?",
    ),
    (
        {"dtype": torch.float16},
        ArgumentError,
        "dtype of quantized_rms_norm with scaling='row' must be torch.float8_e4m3fn or torch.float8_e5m2 or "
        "torch.int8, got torch.float16: leave it out, or for wider ones use rms_norm",
    ),
    (
        {"scaling": "mxfp8", "dtype": torch.int8},
        ArgumentError,
        "dtype of quantized_rms_norm with scaling='mxfp8' must be torch.float8_e4m3fn or torch.float8_e5m2, got "
        "torch.int8: leave it out, or for wider ones use rms_norm",
    ),
    (
        {"scaling": "group"},
        ShapeError,
        "scaling='group' of quantized_rms_norm needs channels in groups of 128, got 48: use group_size=48",
    ),
    (
        {"scaling": "mxfp8"},
        ShapeError,
        "scaling='mxfp8' of quantized_rms_norm needs channels in groups of 32, got 48: pad them, or use scaling='row'",
    ),
    ({"scaling": "group", "group_size": 0}, ArgumentError, "group_size of .* must be at least 1, got 0: use 128"),
    ({"scaling": "group", "group_size": 1.5}, ArgumentError, "group_size must be a whole number of at least 1"),
    (
        {"group_size": 16},
        ArgumentError,
        "group_size of quantized_rms_norm belongs to scaling='group', got 'row': leave it out",
    ),
    (
        {"scaling": "mxfp8", "scale": torch.tensor(1.0)},
        ArgumentError,
        "scale of quantized_rms_norm belongs to scaling='row', got 'mxfp8': leave it out",
    ),
    (
        {"global_scale": torch.tensor(1.0)},
        ArgumentError,
        "global_scale of quantized_rms_norm belongs to scaling='nvfp4', got 'row': leave it out",
    ),
    (
        {"scale": torch.ones(2)},
        ShapeError,
        r"scale of quantized_rms_norm must be one number in float32, got shape \(2,\) in torch.float32: leave it out "
        "to have it computed",
    ),
    (
        {"gate_activation": "silu"},
        ArgumentError,
        "gate_first and gate_activation of quantized_rms_norm need a gate, got None: give gate=",
    ),
    (
        {"gate": torch.ones(48)},
        ShapeError,
        r"gate of quantized_rms_norm must broadcast to the input's shape \(2, 48\) with as many dimensions, "
        r"got \(48,\)",
    ),
    (
        {"gate": torch.ones(2, 48, dtype=torch.float64)},
        DtypeError,
        "gate of quantized_rms_norm must have the input's dtype torch.float32, got torch.float64: convert one of the "
        "two",
    ),
    ({"residual": torch.ones(3)}, ShapeError, "the residual of quantized_rms_norm must have the input's shape"),
]


@pytest.mark.parametrize(("options", "kind", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors_say_what_to_do(options, kind, text):
    with pytest.raises(kind, match=text):
        quantized_rms_norm(torch.ones(2, 48), **options)


def test_what_was_given_is_returned():
    x, one = torch.randn(2, 32), torch.tensor(0.5)
    assert quantized_rms_norm(x, scale=one)[1] is one
    assert quantized_layer_norm(x, scaling="nvfp4", global_scale=one)[2] is one
    assert quantized_rms_norm(x, return_residual=True)[2] is x


def test_a_small_gate_is_one_for_many():
    x, gate = torch.randn(4, 3, 32, dtype=torch.bfloat16), torch.randn(4, 1, 32)
    whole = gate.to(x.dtype).expand(x.shape)
    for one, other in zip(quantized_rms_norm(x, gate=gate), quantized_rms_norm(x, gate=whole), strict=True):
        assert same_bits(one, other)


def test_a_scalar_has_no_rows():
    with pytest.raises(ShapeError, match="needs a last dimension"):
        quantized_rms_norm(torch.tensor(1.0))
