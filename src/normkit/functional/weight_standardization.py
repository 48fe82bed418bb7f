"""Weight standardization: each filter of a weight with mean 0 and variance 1."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.call.checks import check_call, check_parameter
from normkit.functional.call.spec import Spec, carry_out
from normkit.pattern import all_but

STANDARDIZED = Spec("weight_standardization", lambda _, weight, shape: shape, checked_before=True)


def weight_standardization(weight: Tensor, gain: Tensor | None = None, eps: float = 1e-5, dim: int = 0) -> Tensor:
    """Standardize each filter of a weight; the region of a convolution's is ``c [...]``.

    ``w = (weight - mean) / sqrt(var + eps) * gain``, mean and (biased) variance over every dimension but `dim`.
    The gain is taken as it is: for the scaled form of Brock et al. pass ``gain / sqrt(fan_in)``.

    Args:
        weight: (C_out, C_in, ...) of a convolution, any strides; (C_in, C_out, ...) of a transposed one with ``dim=1``.
        gain: one value for each index of `dim`, or None.
        eps: added to the variance, in units of the weight squared.
        dim: the dimension of the filters.

    Returns:
        A tensor with the weight's shape, dtype and memory layout.

    Raises:
        ArgumentError: no such dimension, an eps that is no number.
        ShapeError: filters of a single element, whose variance does not exist, or a gain of another shape.
        DtypeError: a weight that is not floating point.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.weight_standardization(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), eps=0.0)
        tensor([[-1.,  1.],
                [-1.,  1.]])

    Source: Qiao et al. 2019, arXiv:1903.10520; with a gain: Brock et al. 2021, arXiv:2101.08692.
    """
    check_call("weight_standardization", weight, eps)
    if not -weight.dim() <= dim < weight.dim():
        raise ArgumentError(
            f"dim of weight_standardization must name a dimension of the weight, which has {weight.dim()}; got {dim}: "
            "use 0 for a convolution, 1 for a transposed one"
        )
    dim %= weight.dim()
    if weight.numel() == weight.shape[dim]:
        raise ShapeError(
            "weight_standardization needs filters of more than one element, for their variance to exist; got "
            f"shape {tuple(weight.shape)} with dim={dim}: leave this weight as it is"
        )
    check_parameter("weight_standardization", "gain", gain, (weight.shape[dim],), weight)
    return cast(Tensor, carry_out(STANDARDIZED, all_but(dim), weight, gain, None, eps, size=(weight.shape[dim],)))
