"""Filter response normalization: each channel of each sample by its own mean square, and a learned threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ShapeError
from normkit.functional.call.checks import check_dimensions, check_parameter
from normkit.functional.call.spec import Spec, checked
from normkit.functional.extras import Fusions, Output
from normkit.kernels import operator

PATTERN = "b c [...]"


def _check(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    check_dimensions(name, input, 3, "(N, C, positions ...)")
    if input.shape[2:].numel() == 1:
        raise ShapeError(
            f"{name} needs more than one position, got one from shape "
            f"{tuple(input.shape)}: of a single value only the sign is left; use layer_norm or no norm there"
        )
    return (input.shape[1],)


FILTER_RESPONSE = Spec("filter_response_norm", _check, center=False)


@overload
def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float = 1e-6,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float = 1e-6,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float = 1e-6,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float = 1e-6,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Divide each channel of each sample by the root mean square of its positions; the region is ``b c [...]``.

    ``y = max(x / sqrt(mean(x ** 2) + eps) * weight + bias, threshold)``. No mean is subtracted. The maximum is the
    thresholded linear unit; the paper uses it in place of an activation.

    Args:
        input: (N, C, ...) with at least one dimension of positions, any strides.
        weight, bias: (C,) or None.
        threshold: (C,), or None for no maximum.
        eps: added to the mean square, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`; the activation
            follows the maximum.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: a single position, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x = torch.tensor([[[1.0, -1.0, 1.0], [3.0, 0.0, 0.0]]])
        >>> functional.filter_response_norm(x, threshold=torch.zeros(2), eps=0.0)
        tensor([[[1.0000, 0.0000, 1.0000],
                 [1.7321, 0.0000, 0.0000]]])

    Source: Singh & Krishnan 2020, arXiv:1911.09737.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    call = checked(FILTER_RESPONSE, PATTERN, input, weight, bias, eps, fused)
    check_parameter("filter_response_norm", "threshold", threshold, (input.shape[1],), input)
    out = operator.run(call.arguments._replace(activation="none"))
    y = out.y
    if threshold is not None:
        # A maximum in the wider of the two dtypes, so that the threshold's gradient is summed in its own.
        y = torch.maximum(y, threshold.reshape(-1, *[1] * (y.dim() - 2))).to(y.dtype)
    return call.finished(y, input if out.sum is None else out.sum)
