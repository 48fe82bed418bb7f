"""Scale normalization: each token by its length, times one learned number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError
from normkit.functional.call.checks import check_parameter
from normkit.functional.call.moments import with_moments
from normkit.functional.call.precision import as_dtype
from normkit.functional.call.spec import Spec, checked
from normkit.functional.extras import Fusions, Output
from normkit.functional.layer import LAST_DIM, check_last
from normkit.kernels.context import is_watched

TINY = 1e-38
"""Added to the mean square of a row of zeros, which else would be 0 / 0; far below the squares of any other row."""


def _check(name: str, input: Tensor, weight: Any) -> tuple[int, ...]:
    shape = check_last(name, input, tuple(input.shape[-1:]))
    check_parameter(name, "weight", weight, () if weight is not None and weight.dim() == 0 else (1,), input)
    return shape


SCALE = Spec("scale_norm", _check, center=False)


@overload
def scale_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def scale_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def scale_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def scale_norm(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Divide the last dimension by its Euclidean length, and multiply it by one number; the region is ``... [c]``.

    ``y = x / max(||x||, eps) * weight``.

    Args:
        input: (..., C), any strides.
        weight: one number, of shape (1,) or (), or None for 1.
        eps: the smallest length that is divided by, in units of the input; above 0.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: an input without dimensions, or more than one weight.
        ArgumentError: eps not above 0.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.scale_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([10.0]))
        tensor([[6., 8.]])

    Source: Nguyen & Salazar 2019, arXiv:1910.05895.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    call = checked(SCALE, LAST_DIM, input, None, None, eps, fused, weight)
    if not eps > 0:
        raise ArgumentError(f"eps of scale_norm must be above 0, got {eps}: use 1e-5")
    a = call.arguments
    if not input.numel():
        return call.finished(call.total() * (1 if weight is None else as_dtype(weight, input)), call.total())
    total = call.total()
    x = total if a.mask is None else torch.where(a.mask, total, 0)
    size, one = input.shape[-1], x.new_ones(()) if weight is None else weight
    # The length is the root of the size times the root mean square, so this is RMS norm with equal weights.
    gain = (one if one.element_size() > 2 else one.float()).expand(size) / math.sqrt(size)
    plain = a._replace(x=x, weight=gain, eps=TINY, residual=None, activation="none")
    out = with_moments(plain)
    assert out.std is not None
    y, std, least = out.y, out.std.detach(), eps / math.sqrt(size)
    # Asked only on a CPU, where the answer is there at once; a NaN is not above, either.
    if is_watched(x) or not x.is_cpu or not float(std.amin()) >= least:
        short = (std < least).view(*input.shape[:-1], 1)
        y = torch.where(short, (x * (one / eps)).to(y.dtype), y)
    return call.finished(y, total)
