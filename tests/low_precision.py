"""Formats of low precision, slowly and exactly: fractions, and lists of all values that a format has."""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction

import torch
from torch import Tensor

from normkit import functional


def values_of(exponent_bits: int, mantissa_bits: int, bias: int, codes: int) -> list[Fraction]:
    """The values of the first `codes` codes, which are those without a sign, in order."""
    found = []
    for code in range(codes):
        exponent, mantissa = divmod(code, 1 << mantissa_bits)
        assert exponent < 1 << exponent_bits
        fraction = Fraction(mantissa, 1 << mantissa_bits)
        found.append(
            Fraction(2) ** (1 - bias) * fraction if exponent == 0 else Fraction(2) ** (exponent - bias) * (1 + fraction)
        )
    return found


E4M3 = values_of(4, 3, 7, 127)  # the code after the last is NaN
E5M2 = values_of(5, 2, 15, 124)  # then infinity and NaN
E2M1 = values_of(2, 1, 1, 8)
INT8 = [Fraction(n) for n in range(128)]
VALUES = {torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2, torch.int8: INT8, torch.float4_e2m1fn_x2: E2M1}
NAN = None
"""In place of a fraction."""
Number = Fraction | None


def nearest(value: Fraction, known: list[Fraction]) -> int:
    """The code of the nearest known value; of two as near the even code; the last beyond the end."""
    at = bisect.bisect(known, abs(value))
    if at == len(known):
        return at - 1
    below, above = abs(value) - known[at - 1], known[at] - abs(value)
    return at - 1 if below < above or (below == above and (at - 1) % 2 == 0) else at


def float32(value: Fraction) -> Fraction:
    """Rounded to nearest in float32, ties to even."""
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - 23, -149)
    return round(value / unit) * unit  # Python rounds ties to even


def floor_log2(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent - (value < Fraction(2) ** exponent)


def largest(group: list[float]) -> Number:
    return max(abs(Fraction(v)) for v in group) if all(map(math.isfinite, group)) else NAN


def plain_scale(most: Number, last: Fraction) -> Number:
    if most is NAN:
        return NAN
    return max(float32(most / last), Fraction(2) ** -126) if most else Fraction(1)


def power_scale(most: Number, exponent: int) -> Number:
    if most is NAN:
        return NAN
    return Fraction(2) ** max(floor_log2(most) - exponent, -127) if most else Fraction(2) ** -127


def codes_of(group: list[float], scale: Number, known: list[Fraction]) -> list[int | None]:
    """Code and sign of each element as one number: the sign counts as many as the format has codes; None for NaN."""
    if scale is NAN:
        return [None] * len(group)
    found: list[int | None] = []
    for value in group:
        if math.isnan(value):
            found.append(None)
            continue
        code = len(known) - 1 if math.isinf(value) else nearest(float32(Fraction(value) / scale), known)
        found.append(code + (1000 if math.copysign(1, value) < 0 else 0))
    return found


def expected(rows: Tensor, scaling: str, dtype: torch.dtype, size: int, given: float | None = None):
    """Codes, scales and the scale of all, for rows of float32."""
    known = VALUES[dtype]
    groups = [[[float(v) for v in part] for part in row.split(size)] for row in rows]
    most = [[largest(group) for group in row] for row in groups]
    total: Number = None
    if scaling == "mxfp8":
        scales = [[power_scale(m, floor_log2(known[-1])) for m in row] for row in most]
    elif scaling == "nvfp4":
        finite = [m for row in most for m in row if m is not NAN]
        total = Fraction(given) if given is not None else plain_scale(max(finite, default=Fraction(0)), 6 * E4M3[-1])
        ratio = [[m if m is NAN else float32(float32(m / 6) / total) for m in row] for row in most]
        scales = [[r if r is NAN else E4M3[max(nearest(r, E4M3), 1)] for r in row] for row in ratio]
    elif given is not None:
        scales = [[Fraction(given)] * len(row) for row in most]
    else:
        scales = [[plain_scale(m, known[-1]) for m in row] for row in most]
    used = scales if total is None else [[s if s is NAN else float32(s * total) for s in row] for row in scales]
    codes = [
        [code for group, scale in zip(row, by, strict=True) for code in codes_of(group, scale, known)]
        for row, by in zip(groups, used, strict=True)
    ]
    return codes, scales, total


def rounded(rows: Tensor, **options) -> tuple[Tensor, ...]:
    """Rows of any values in a format: a norm of zeros with a bias of 1, times the rows as its gate."""
    x = torch.zeros_like(rows)
    return functional.quantized_layer_norm(x, bias=torch.ones_like(rows[0]), gate=rows, **options)


def read_codes(y: Tensor) -> list[list[int | None]]:
    """The codes of elements as `codes_of` counts them, from their bytes."""
    if y.dtype is torch.int8:
        return [[abs(v) + 1000 * (v < 0) for v in row] for row in y.tolist()]
    if y.dtype is torch.float4_e2m1fn_x2:
        split = [[half for byte in row for half in (byte & 15, byte >> 4)] for row in y.view(torch.uint8).tolist()]
        return [[(code & 7) + 1000 * (code >> 3) for code in row] for row in split]
    last = len(VALUES[y.dtype])
    return [
        [None if code & 127 >= last else (code & 127) + 1000 * (code >> 7) for code in row]
        for row in y.view(torch.uint8).tolist()
    ]


def read_scales(scale: Tensor) -> list[list[Number]]:
    """Scales as fractions, from their bytes where they have one."""
    if scale.dtype is torch.float32:
        return [[NAN if math.isnan(v) else Fraction(v) for v in row] for row in scale.tolist()]
    rows = scale.view(torch.uint8).tolist()
    if scale.dtype is torch.float8_e8m0fnu:
        return [[NAN if code == 255 else Fraction(2) ** (code - 127) for code in row] for row in rows]
    return [[NAN if code == 127 else E4M3[code] for code in row] for row in rows]


def check(rows: Tensor, scaling: str, dtype: torch.dtype, size: int, given: float | None = None) -> None:
    """The function's bits are those of the format."""
    options = {"group_size": size} if scaling == "group" else {}
    if given is not None:
        given = torch.tensor(given).item()  # rounded to float32
        options["global_scale" if scaling == "nvfp4" else "scale"] = torch.tensor(given, device=rows.device)
    y, scale, *total = rounded(rows, scaling=scaling, dtype=dtype, **options)
    codes, scales, of_all = expected(rows.cpu(), scaling, dtype, size, given)
    got = read_codes(y.cpu())
    if dtype in (torch.int8, torch.float4_e2m1fn_x2):  # without NaN, and int8 without a negative 0
        codes = [
            [0 if code is None or (code == 1000 and dtype is torch.int8) else code for code in row] for row in codes
        ]
    assert got == codes
    if given is None or scaling == "nvfp4":
        assert read_scales(scale.cpu()) == scales
    if scaling == "nvfp4":
        assert Fraction(total[0].item()) == of_all


def between(known: list[Fraction]) -> Tensor:
    """All values of a format, the middles between them, and the numbers of float32 next to those; of both signs."""
    points = torch.tensor([float(v) for v in known] + [float((a + b) / 2) for a, b in itertools.pairwise(known)])
    around = torch.cat([points, *(points.nextafter(torch.tensor(to)) for to in (0.0, torch.inf))])
    return torch.cat([around, -around])


def awkward(*sizes: int) -> Tensor:
    """Rows of every magnitude that float32 has, with zeros of both signs."""
    x = torch.randn(sizes) * 2.0 ** torch.randint(-20, 20, sizes)
    magnitudes = torch.linspace(-148, 126, sizes[0]).round()
    x = (x.double() * 2.0 ** magnitudes[:, None].double()).float().clamp(-3e38, 3e38)
    x[0] = 0
    x[:, 0], x[:, 1] = 0.0, -0.0
    return x
