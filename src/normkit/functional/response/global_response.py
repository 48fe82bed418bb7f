"""Global response normalization: each channel against the size of the others, added to the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from normkit.functional.call.checks import check_dimensions
from normkit.functional.call.moments import moments
from normkit.functional.call.precision import affine
from normkit.functional.call.spec import Spec, checked
from normkit.functional.extras import Fusions, Output
from normkit.kernels.formula import counts_of
from normkit.kernels.regions import region_of

PATTERN = "b c [...]"
LAST = "b [...] c"


def _check(name: str, input: Tensor, channels_last: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 3, "(N, positions ..., C)" if channels_last else "(N, C, positions ...)")
    return (input.shape[-1 if channels_last else 1],)


GLOBAL_RESPONSE = Spec("global_response_norm", _check, center=False)


@overload
def global_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def global_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def global_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def global_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Let each channel of a sample compete with the others: by its size over all positions, relative to their mean.

    ``y = x + x * n * weight + bias`` with ``n = g / (mean(g) + eps)`` and ``g = sqrt(sum(x ** 2))`` over the positions
    of a channel of a sample; the mean is over its channels. The region of g is ``b c [...]``.

    Args:
        input: (N, C, positions ...), any strides; (N, positions ..., C) with `channels_last`.
        weight, bias: (C,) or None.
        eps: added to the mean size, in units of the input.
        channels_last: whether the channels are the last dimension.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: fewer than three dimensions, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.tensor([[[3.0, 4.0], [0.0, 15.0]]])
        >>> functional.global_response_norm(x, eps=0.0)
        tensor([[[ 4.5000,  6.0000],
                 [ 0.0000, 37.5000]]])

    Source: Woo et al. 2023, arXiv:2301.00808.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    pattern = LAST if channels_last else PATTERN
    call = checked(GLOBAL_RESPONSE, pattern, input, weight, bias, eps, fused, channels_last)
    a = call.arguments
    channels, places = (-1, range(1, input.dim() - 1)) if channels_last else (1, range(2, input.dim()))
    total = call.total()
    _, size = moments(a._replace(x=total))
    # One value for each channel of each sample, in a shape that broadcasts against x.
    size = size.view([1 if d in places else size for d, size in enumerate(input.shape)])
    least = eps
    if a.mask is not None:
        counts = counts_of(a.mask, input.shape, region_of(pattern).levels(input.shape))
        size = size * counts.sqrt().to(size.dtype).view(size.shape)
    elif input.numel():
        # Root mean squares have the same ratios as lengths, if eps is given in their unit.
        least = eps / (input.numel() // size.numel()) ** 0.5
    scale = size / (size.mean(channels, keepdim=True) + least)
    features = [1 if d in places or d == 0 else size for d, size in enumerate(input.shape)]
    if weight is not None:
        scale = scale * weight.view(features)
    return call.rounded(affine(call.valid(total), scale + 1, None if bias is None else bias.view(features)), total)
