"""Any region, written as a pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import PatternError
from normkit.functional.call.checks import check_call, check_parameter
from normkit.functional.call.spec import Spec, carry_out
from normkit.functional.extras import Epilogues, Output
from normkit.pattern import Region, bound


def feature_shape(region: Region, shape: torch.Size) -> tuple[int, ...]:
    """The shape of weight and bias: the sizes of the dimensions that hold a channel axis."""
    if not region.has_features:
        raise PatternError(
            f"a weight varies over the axes whose name starts with c; {region.text!r} has none: "
            "rename the channel axis, as in 'b [c] ...'"
        )
    levels = region.levels(shape)
    dims = sorted({level.dim for level in levels if level.feature})
    # Lists, because torch.compile cannot hand a generator to math.prod.
    return tuple([math.prod([level.size for level in levels if level.dim == dim]) for dim in dims])


_kept_shape = lru_cache(maxsize=4096)(feature_shape)


_ANY = Spec("normalize", lambda _, x, shape: shape)
SPECS = {
    (center, checked): _ANY._replace(center=center, checked_before=checked)
    for center in (True, False)
    for checked in (True, False)
}
"""By whether the mean is subtracted, and whether weight and bias are known to be those of the features."""


@overload
def normalize(
    x: Tensor,
    pattern: str | Region,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    num_groups: int | None = None,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def normalize(
    x: Tensor,
    pattern: str | Region,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    num_groups: int | None = None,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def normalize(
    x: Tensor,
    pattern: str | Region,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    num_groups: int | None = None,
    *,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def normalize(
    x: Tensor,
    pattern: str | Region,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    num_groups: int | None = None,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    gate_activation: str | None = None,
    gate_first: bool = False,
) -> Output:
    """Normalize over the region that a pattern puts in brackets.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and (biased) variance over the bracketed axes;
    with ``center=False`` the mean is taken as 0, so that var is the mean square.

    Args:
        x: any shape the pattern fits, any strides; float64, float32, bfloat16 or float16.
        pattern: for instance ``"b (g [c]) [...]"``, or a `normkit.pattern.Region`.
        weight, bias: one value for each channel (the axes whose name starts with ``c``); or with as many dimensions as
            x, each of size 1 or x's; or None.
        eps: added to the variance, in units of x squared.
        center: subtract the mean.
        num_groups: the size of the axis ``g``, where the pattern has one.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

    Returns:
        A tensor with x's shape, dtype and memory layout.

    Raises:
        PatternError: the pattern cannot be read.
        ShapeError: the input does not fit the pattern, or weight and bias do not fit the input.
        DtypeError, ArgumentError: a dtype that is not floating point, an eps that is no number, another device.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.arange(8.0).reshape(1, 4, 2)
        >>> functional.normalize(x, "b (g [c]) [...]", num_groups=2, eps=0.0)[0, :2]
        tensor([[-1.3416, -0.4472],
                [ 0.4472,  1.3416]])
    """
    check_call("normalize", x, eps)
    region = bound(pattern, {} if num_groups is None else {"g": num_groups})
    shape, checked = None, True
    if weight is not None or bias is not None:
        # Sizes that a compiler knows only by name cannot be kept.
        shape = (feature_shape if torch.compiler.is_compiling() else _kept_shape)(region, x.shape)
        checked = all(t is None or t.dim() != x.dim() or t.shape == shape for t in (weight, bias))
        if checked:
            check_parameter("normalize", "weight", weight, shape, x)
            check_parameter("normalize", "bias", bias, shape, x)
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    return carry_out(SPECS[bool(center), checked], region.text, x, weight, bias, eps, fused, shape)
